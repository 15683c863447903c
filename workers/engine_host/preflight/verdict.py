"""What is asked of a backend before a build, and what it says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from onnx import ModelProto

from app.definitions.profiles import Profile

MAX_NAMED = 20  # the most nodes or parameters that one entry names


@dataclass(frozen=True, slots=True)
class Question:
    """A build that may be asked for: the shapes and the options of the backend, as in `Build`.

    `versions` are the versions of the backend that are asked about. Without any, it is about all that the backend
    can tell of. Without `details`, nothing is asked but whether the graph is refused: what takes long may be left out.
    """

    versions: tuple[str, ...]
    profiles: tuple[Profile, ...]
    options: Mapping[str, Any]
    details: bool = True


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason against some nodes of one operator: how many they are, and the names of the first of them."""

    operator: str
    reason: str
    count: int
    nodes: tuple[str, ...]

    @property
    def text(self) -> str:
        """Return the finding as words for an error."""
        more = f" and {self.count - len(self.nodes)} more" if self.count > len(self.nodes) else ""
        return f"{self.operator} ({', '.join(self.nodes)}{more}): {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """Return what an answer lists."""
        return {"operator": self.operator, "reason": self.reason, "count": self.count, "nodes": list(self.nodes)}


@dataclass(frozen=True, slots=True)
class Refittable:
    """How many parameters refits can change, and those that they cannot; `why` says the reason of the latter."""

    count: int
    fixed_count: int = 0
    fixed: tuple[str, ...] = ()
    why: str = ""

    @classmethod
    def of(cls, parameters: Sequence[str], fixed: Sequence[str], why: str) -> "Refittable":
        """Count all parameters of a definition, of which some are fixed."""
        return cls(len(parameters) - len(fixed), len(fixed), tuple(fixed[:MAX_NAMED]), why if fixed else "")

    def to_json(self) -> dict[str, Any]:
        """Return what an answer tells."""
        return {"count": self.count, "fixed_count": self.fixed_count, "fixed": list(self.fixed), "why": self.why}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one version of a backend makes of a graph.

    `refused` are the reasons for which it does not take the graph, and `doubtful` those for which it may not.
    `rewrites` are the changes that the backend makes to the graph before it compiles, as an engine's facts list them.
    `source` says where the knowledge comes from. `remedies` are sentences: what to do about what is refused.
    """

    version: str
    source: str
    operators: Mapping[str, int]
    refittable: Refittable
    refused: tuple[Finding, ...] = ()
    doubtful: tuple[Finding, ...] = ()
    rewrites: Sequence[Mapping[str, Any]] = ()
    notes: tuple[str, ...] = ()
    remedies: tuple[str, ...] = field(default=())

    @property
    def taken(self) -> bool | None:
        """Whether this version takes the graph; None if that cannot be told."""
        return False if self.refused else None if self.doubtful else True

    def to_json(self) -> dict[str, Any]:
        """Return what a child answers."""
        return {
            "version": self.version,
            "taken": self.taken,
            "source": self.source,
            "operators": dict(self.operators),
            "rewrites": [dict(one) for one in self.rewrites],
            "refused": [one.to_json() for one in self.refused],
            "doubtful": [one.to_json() for one in self.doubtful],
            "refittable": self.refittable.to_json(),
            "notes": list(self.notes),
            "remedies": list(self.remedies),
        }


class Preflight(Protocol):
    """What `BackendEntry.preflight` leads to.

    It is called in a child under limits, with neither a device nor a network, and may take seconds. It may import what
    it needs, which may be the library of the backend. A graph that a build would take must not be refused: what is not
    certain is doubtful.
    """

    def __call__(self, definition: ModelProto, question: Question) -> Sequence[Verdict]:
        """Return a verdict for each version that is asked about; the parameters of the definition have no values."""
        ...
