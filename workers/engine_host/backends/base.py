"""What an adapter implements: `Backend` and `LoadedEngine`, and nothing else.

`workers.engine_host.conformance` has a check for each promise that is made here.
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

    A platform names the machines that a plan works on, such as "cpu" or "8.6.1/NVIDIA H100 80GB HBM3". `makes` are the
    platforms that this device can compile for, the default first. `loads` are the platforms whose plans it can run.
    `capabilities` is JSON. "build", "refit", "run" and "plan_holds_weights" are booleans. "options" maps the name of
    each build option to a JSON Schema, with a default if it has one. "lacks" maps each option or value that only other
    versions have to the reason.
    """

    version: str
    makes: tuple[str, ...]
    loads: tuple[str, ...]
    capabilities: Mapping[str, Any]

    @property
    def negative_indices(self) -> bool:
        """Whether a negative index counts from the end, as ONNX says of Gather; False if nothing is told of it."""
        return bool(self.capabilities.get("negative_indices", False))


class LoadedEngine(Protocol):
    """An engine that is ready to run."""

    @property
    def nbytes(self) -> int:
        """The memory that this engine keeps while it is resident, in bytes; runs may make it grow."""
        ...

    def run(self, inputs: Arrays) -> "dict[str, np.ndarray[Any, Any]]":
        """Run once. Inputs and outputs are by name, in the dtypes of the definition. Raises `BackendError`.

        The next run of the same engine may overwrite the outputs.
        """
        ...

    def measure(self, inputs: Arrays, *, iterations: int, warmup: int) -> Sequence[float]:
        """Return the seconds that each of `iterations` runs took, after `warmup` others that do not count."""
        ...

    def layers(self, inputs: Arrays) -> tuple[tuple[str, float], ...]:
        """Return (name, seconds) of each layer of one run; empty if the runtime does not tell."""
        ...

    def inspect(self) -> Any:  # noqa: ANN401 - whatever JSON the runtime has
        """Return what the runtime says of the compiled layers, as JSON; None if it says nothing."""
        ...


@runtime_checkable
class ShowsInnerValues(Protocol):
    """What a loaded engine can do besides if its compiled form computes values that the definition computes as well."""

    def run_showing(self, inputs: Arrays, inner: Sequence[str]) -> "dict[str, np.ndarray[Any, Any]]":
        """Run once; return the outputs, and those of the values `inner` that the compiled form has."""
        ...

    def show_apart(self, inputs: Arrays, weights: Arrays, inner: Sequence[str]) -> "dict[str, np.ndarray[Any, Any]]":
        """Compute values of the compiled form with these weights, which take no part of the way the engine's took.

        So a value that differs here from the definition's is another value of the same name. Those that the compiled
        form does not have are left out.
        """
        ...


class Room(Protocol):
    """Makes room on the device if an attempt finds none; a backend uses it for single steps of a request."""

    def __call__(self, attempt: Callable[[], T]) -> T:
        """Return the result of `attempt`; if device memory runs out, drop the idle engines and try once more."""
        ...


class Backend(Protocol):
    """What compiles and runs definitions on one device.

    Every method may raise `BackendError`, and no other error that can be foreseen. The code is "missing_weights" if a
    parameter has no weights, "wrong_weights" if they have another shape or dtype than the parameter, and "file_failed"
    if a file is lost.
    """

    @property
    def offered(self) -> Offered:
        """What this backend can do on this device."""
        ...

    @property
    def refits_in_place(self) -> bool:
        """Whether a refit changes the resident engine itself, which is then the new engine."""
        ...

    def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine | None]:
        """Compile, write the plan, and return the engine loaded, or None if this device cannot load it.

        The plan is for the first platform of `offered.makes` unless an option asks for another one. A build that fails
        leaves no plan. An option or a value that is not declared is "bad_option". If the loading alone runs out of
        device memory, only the loading may be tried again, because compiling takes minutes.
        """
        ...

    def load(self, engine: EngineFile, report: Report) -> LoadedEngine:
        """Load a plan with the engine's parameters."""
        ...

    def refit(self, request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        """Make a new engine from the parent's plan; if plans hold weights, it has no plan of its own yet.

        `resident` is the parent, or any engine of the same compiled plan if refits are in place, or None if there is
        none. If a refit in place raises, `resident` must not be used again.
        """
        ...

    def materialising(
        self, plan: str, engine: LoadedEngine, report: Report
    ) -> AbstractContextManager[Future[Materialised]]:
        """Serialize an engine that this backend loaded, and write its plan to the path `plan` while a block runs.

        The serializing comes before the block. `stages` of the outcome cover this part only. The backend does not keep
        the engine after it, nor the plan in memory once it is written. When the block has ended, the future is done and
        its callbacks have run. Raises BackendError if plans hold no weights: such plans are there from the start.
        """
        ...


@runtime_checkable
class MergesTimings(Protocol):
    """What a backend can do besides if another process can read its timing caches."""

    def merge_timings(self, request: MergeTimings, report: Report) -> None:
        """Carry out the request; raises BackendError if one of the caches cannot be read or does not fit the others."""
        ...
