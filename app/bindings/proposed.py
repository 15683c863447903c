"""What is proposed for a checkpoint that does not bind, and what cannot be told of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, NamedTuple

MAX_NAMED = 5
EXPORTED = "onnx::"  # how torch.onnx.export starts a name it makes up: it has transposed such a matrix


class Twin(NamedTuple):
    """Another parameter that had the same values at first, transposed if `turned`, and how that is known."""

    other: str
    turned: bool
    evidence: str


NO_TWINS: Final[Mapping[str, Sequence[Twin]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Proposal:
    """A rule, what speaks for it, the parameters it would bind, and the tensors that it would feed them with."""

    rule: Mapping[str, Any]
    evidence: tuple[str, ...]
    parameters: tuple[str, ...]
    tensors: frozenset[str]

    def to_json(self) -> dict[str, Any]:
        """Return {rule, evidence, parameters}."""
        return {"rule": dict(self.rule), "evidence": list(self.evidence), "parameters": list(self.parameters)}


@dataclass(frozen=True, slots=True)
class Unclear:
    """What cannot be told: which of `tensors` feed `parameters`, or which way round they lie."""

    parameters: tuple[str, ...]
    tensors: tuple[str, ...]
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Return {parameters, tensors, detail}."""
        return {"parameters": list(self.parameters), "tensors": list(self.tensors), "detail": self.detail}


@dataclass(frozen=True)
class Proposed:
    """Rules and what is unclear besides."""

    proposals: tuple[Proposal, ...] = ()
    unclear: tuple[Unclear, ...] = ()

    @cached_property
    def by_parameter(self) -> Mapping[str, Proposal]:
        """The proposal that would bind each parameter."""
        return {name: one for one in reversed(self.proposals) for name in one.parameters}

    @cached_property
    def by_tensor(self) -> Mapping[str, Proposal]:
        """The first proposal that uses each tensor."""
        return {name: one for one in reversed(self.proposals) for name in one.tensors}

    @cached_property
    def doubts(self) -> Mapping[str, Unclear]:
        """What is unclear of each parameter."""
        return {name: one for one in reversed(self.unclear) for name in one.parameters}

    @cached_property
    def tensor_doubts(self) -> Mapping[str, Unclear]:
        """What is unclear of each tensor."""
        return {name: one for one in reversed(self.unclear) for name in one.tensors}


def is_square(shape: Sequence[int]) -> bool:
    """Whether a shape is that of a matrix which looks the same transposed."""
    return len(shape) == 2 and shape[0] == shape[1] > 1


def named(names: Sequence[str], most: int = MAX_NAMED) -> str:
    """List a few names."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
