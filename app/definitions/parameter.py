"""A definition's parameters, inputs and outputs, and where its weights lie, as values, to and from JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.weights.checkpoint import TensorSlot


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
class ExternalRange:
    """The bytes of one weight inside an external data file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    location: str
    offset: int

    @property
    def slot(self) -> TensorSlot:
        """Return the range as a tensor of that file; raises CheckpointError if its name is not accepted."""
        return TensorSlot.checked(self.name, self.dtype, list(self.shape), self.offset)

    def to_json(self) -> list[Any]:
        """Return a row."""
        return [self.name, self.dtype, list(self.shape), self.location, self.offset]

    @classmethod
    def from_json(cls, row: list[Any]) -> "ExternalRange":
        """Read what `to_json` wrote."""
        name, dtype, shape, location, offset = row
        return cls(name, dtype, tuple(shape), location, offset)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of the graph. A `shape` holds a number per fixed dimension and a symbol per dynamic one.

    Equal symbols mean equal sizes. If `high` is given, the graph uses the values as indices into something of that
    size, so they must lie in [low, high). `low` is -high if negative ones count from the end, as ONNX has it, and 0 if
    not.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    high: int | None = None
    low: int = 0

    @property
    def dynamic(self) -> bool:
        """Whether any dimension has no fixed size."""
        return any(isinstance(dim, str) for dim in self.shape)

    def to_json(self) -> dict[str, Any]:
        """Return the object stored with a definition and sent to clients."""
        shape = list(self.shape)
        return {"name": self.name, "dtype": self.dtype, "shape": shape, "low": self.low, "high": self.high}

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> "InputSpec":
        """Read what `to_json` wrote, or what it wrote before there was a `low`."""
        return cls(item["name"], item["dtype"], tuple(item["shape"]), item["high"], item.get("low", 0))


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
