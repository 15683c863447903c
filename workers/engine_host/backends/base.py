"""What an adapter implements: `Backend` and `LoadedEngine`, and nothing else.

`workers.engine_host.conformance` has a check for each thing that is promised here.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from workers.channel.messages import Build, Built, EngineFile, Materialised, MergeTimings, Refit, Refitted, Report

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")


Arrays = Mapping[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True, slots=True)
class Offered:
    """What a backend can do on this device, as the fleet shows it.

    A platform names the machines a plan works on, such as "cpu" or "8.6.1/NVIDIA H100 80GB HBM3": `makes` are
    those this device can compile for, the default first, and `loads` those whose plans it can run.
    `capabilities` is JSON. "build", "refit", "run" and "plan_holds_weights" are booleans. "options" maps the name of
    each build option to a JSON Schema, with a default if it has one. "lacks" maps options and values that other
    versions have to the reason why this one has not.
    """

    version: str
    makes: tuple[str, ...]
    loads: tuple[str, ...]
    capabilities: Mapping[str, Any]


class LoadedEngine(Protocol):
    """An engine ready to run. `nbytes` is the memory it keeps, in bytes."""

    @property
    def nbytes(self) -> int:
        """Memory this engine keeps while it is resident, in bytes; runs may make it grow."""
        ...

    def run(self, inputs: Arrays) -> "dict[str, np.ndarray[Any, Any]]":
        """Run once; inputs and outputs by name, in the dtypes of the definition. Raises `BackendError`.

        The next run of the same engine may overwrite the outputs.
        """
        ...

    def measure(self, inputs: Arrays, *, iterations: int, warmup: int) -> Sequence[float]:
        """Return the seconds each of `iterations` runs took, after `warmup` others."""
        ...

    def layers(self, inputs: Arrays) -> tuple[tuple[str, float], ...]:
        """Return (name, seconds) of each layer of one run; empty where the runtime does not tell."""
        ...

    def inspect(self) -> Any:  # noqa: ANN401 - whatever JSON the runtime has
        """Return what the runtime says of the compiled layers, as JSON; None where it says nothing."""
        ...


class Room(Protocol):
    """Makes room on the device where there is none: a backend is opened with one, for steps within a request."""

    def __call__(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` does; where it runs out of device memory, idle engines go and it is made once more."""
        ...


class Backend(Protocol):
    """What compiles and runs definitions on one device.

    Every method may raise `BackendError`, and no other error that can be foreseen. A parameter without weights is
    "missing_weights", one whose weights have another shape or dtype is "wrong_weights", a lost file is "file_failed".
    """

    @property
    def offered(self) -> Offered:
        """What this backend can do here."""
        ...

    @property
    def refits_in_place(self) -> bool:
        """Whether a refit changes the resident engine itself, so that it is the new engine afterwards."""
        ...

    def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine | None]:
        """Compile, write the plan, and return the engine loaded; None where this device cannot load it.

        The plan is for the first platform of `offered.makes` unless an option asks for another one. A build that fails
        leaves no plan. An option, or a value, that is not declared is "bad_option". Where only the loading runs out of
        device memory, only that may be tried again: compiling takes minutes.
        """
        ...

    def load(self, engine: EngineFile, report: Report) -> LoadedEngine:
        """Load a plan with the engine's parameters."""
        ...

    def refit(self, request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        """Make a new engine of the parent's plan; where plans hold weights it has none of its own yet.

        `resident` is the parent or, where refits are in place, any engine of the same compiled plan. It is None where
        there is none. Where a refit in place raises, `resident` must not be used again.
        """
        ...

    def materialising(
        self, plan: str, engine: LoadedEngine, report: Report
    ) -> AbstractContextManager[Future[Materialised]]:
        """Serialize an engine this backend loaded, and write its plan to the path `plan` beside a block.

        BackendError if plans hold no weights: they are there from the start.
        `timings` are of what is done before the block begins. The engine is not kept any longer than that, nor its plan
        in memory once it is written. The future is done, and its callbacks have run, when the block has ended.
        """
        ...


@runtime_checkable
class MergesTimings(Protocol):
    """What a backend can do besides, whose timing caches another process can read back."""

    def merge_timings(self, request: MergeTimings, report: Report) -> None:
        """Carry out the request; BackendError where one of the caches cannot be read or does not go with the others."""
        ...
