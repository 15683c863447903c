"""A definition's parameters, inputs and outputs as values, to and from JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Parameter:
    """One named weight slot. `dtype` is a safetensors name such as "F32"."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def to_json(self) -> list[Any]:
        """Return the row [name, dtype, shape]; a row, not an object, because there may be 100,000."""
        return [self.name, self.dtype, list(self.shape)]

    @classmethod
    def from_json(cls, row: list[Any]) -> "Parameter":
        """Read what `to_json` wrote."""
        name, dtype, shape = row
        return cls(name, tuple(shape), dtype)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of the graph. A `shape` holds a number per fixed dimension and a symbol per dynamic one.

    Equal symbols mean equal sizes. If `high` is given, the graph uses the values as indices into something of that
    size, so they must lie in [0, high).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    high: int | None = None

    @property
    def dynamic(self) -> bool:
        """Whether any dimension has no fixed size."""
        return any(isinstance(dim, str) for dim in self.shape)

    def to_json(self) -> dict[str, Any]:
        """Return the object stored with a definition and sent to clients."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), "high": self.high}

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> "InputSpec":
        """Read what `to_json` wrote."""
        return cls(item["name"], item["dtype"], tuple(item["shape"]), item["high"])


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output of the graph; `shape` is None if it could not be inferred."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None

    def to_json(self) -> dict[str, Any]:
        """Return the object stored with a definition and sent to clients."""
        shape = None if self.shape is None else list(self.shape)
        return {"name": self.name, "dtype": self.dtype, "shape": shape}

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> "OutputSpec":
        """Read what `to_json` wrote."""
        shape = item["shape"]
        return cls(item["name"], item["dtype"], None if shape is None else tuple(shape))
