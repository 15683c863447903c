"""What a backend is asked and what it answers.

Requests, outcomes and messages are frozen values: the worker pickles a request to its engine host and gets
messages and one outcome (or one `BackendError`) back. Files travel as paths, never as bytes. `Backend` and
`LoadedEngine` are the two protocols an adapter implements; they live in the engine host only.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, Protocol

from app.bindings.report import ParameterBinding
from app.definitions.parameter import InputSpec
from app.definitions.profiles import Profile

if TYPE_CHECKING:
    import numpy as np

Against = Literal["reference", "rebuild", "finite", "none"]


class BackendError(Exception):
    """The backend refused or failed; `code` is a stable word, `detail` names the fault and its remedy."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


@dataclass(frozen=True, slots=True)
class TensorFile:
    """One stored tensor: `nbytes` bytes at `offset` of the file at `path`; `blake3` is 64 hex digits of them."""

    path: str
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    blake3: str


@dataclass(frozen=True, slots=True)
class ParameterSource:
    """A parameter's binding together with its tensors, in the order the binding names them."""

    binding: ParameterBinding
    tensors: tuple[TensorFile, ...]

    @property
    def name(self) -> str:
        """The parameter, which is also the initializer's name in the definition."""
        return self.binding.parameter

    @property
    def content(self) -> Hashable:
        """Stored values, transforms, dtype and shape: equal contents mean equal parameter values."""
        stored = tuple((tensor.dtype, tensor.shape, tensor.blake3) for tensor in self.tensors)
        return self.binding.dtype, self.binding.shape, self.binding.transforms, stored


@dataclass(frozen=True, slots=True)
class EngineFile:
    """A stored engine: what the host needs to load it when it is not resident.

    `plan` is the path of the plan, `plan_digest` the digest of those bytes ("sha256:<64 hex>"), `definition`
    the path of the weightless ONNX file it was compiled from.
    """

    backend: str
    plan: str
    plan_digest: str
    definition: str
    parameters: tuple[ParameterSource, ...]
    inputs: tuple[InputSpec, ...]
    profiles: tuple[Profile, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _make_picklable(self)

    @property
    def key(self) -> str:
        """What a resident engine is found by: the content of its plan and of its parameters."""
        return engine_key(self.plan_digest, self.parameters)


def engine_key(plan_digest: str, parameters: tuple[ParameterSource, ...]) -> str:
    """Return the key of the engine that this plan makes with these parameters."""
    contents = sorted(((parameter.name, parameter.content) for parameter in parameters), key=itemgetter(0))
    return sha256(repr((plan_digest, contents)).encode()).hexdigest()


def _make_picklable(value: "EngineFile | Build") -> None:
    """Turn read-only mappings, which pickle refuses, into dicts."""
    object.__setattr__(value, "profiles", tuple(dict(profile) for profile in value.profiles))
    object.__setattr__(value, "options", dict(value.options))


@dataclass(frozen=True, slots=True)
class Build:
    """Compile the definition with these parameters and write the plan to the path `plan`."""

    backend: str
    definition: str
    parameters: tuple[ParameterSource, ...]
    inputs: tuple[InputSpec, ...]
    plan: str
    profiles: tuple[Profile, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _make_picklable(self)


@dataclass(frozen=True, slots=True)
class Refit:
    """Make a new engine of `parent`'s plan with other parameters; write a new plan, if there is one, to `plan`."""

    parent: EngineFile
    parameters: tuple[ParameterSource, ...]
    plan: str


@dataclass(frozen=True, slots=True)
class Run:
    """Run an engine on the safetensors file `inputs` and write its outputs to the safetensors file `outputs`."""

    engine: EngineFile
    inputs: str
    outputs: str


@dataclass(frozen=True, slots=True)
class Verify:
    """Compare an engine's outputs on fixed inputs with an independent computation of the same definition."""

    engine: EngineFile
    against: Against = "reference"


Request = Build | Refit | Run | Verify


@dataclass(frozen=True, slots=True)
class Built:
    """A compiled engine, now resident. `facts` says what the backend knows of it; `timings` are seconds by phase."""

    plan: str
    plan_digest: str
    nbytes: int
    facts: Mapping[str, Any]
    timings: Mapping[str, float]
    backend_version: str


@dataclass(frozen=True, slots=True)
class Refitted:
    """A refitted engine, now resident beside its parent.

    `plan` is the path of its plan: the parent's own path where the plan holds no weights, and then `plan_digest`
    is the parent's too. `changed` counts the parameters whose values differ from the parent's; `warm` says
    whether the parent was resident.
    """

    plan: str
    plan_digest: str
    nbytes: int
    changed: int
    warm: bool
    facts: Mapping[str, Any]
    timings: Mapping[str, float]
    backend_version: str


@dataclass(frozen=True, slots=True)
class Ran:
    """Outputs were written to the path `outputs`; `seconds` is the engine's own time, without loading or files."""

    outputs: str
    seconds: float
    timings: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """One output of an engine against the same output of what it is verified against, computed in float64.

    `relative_l2` is |a - b| / |b|; `cosine` is a.b / (|a||b|); a figure that does not exist is None (no comparison
    was made, or a value is not finite).
    """

    max_abs: float | None
    relative_l2: float | None
    cosine: float | None
    finite: bool


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification found. `inputs` digests the fixed inputs; `detail` says in words why it is not ok."""

    ok: bool
    against: Against
    outputs: Mapping[str, OutputDifference]
    tolerance: Mapping[str, Any]
    inputs: str
    detail: str
    timings: Mapping[str, float]


Outcome = Built | Refitted | Ran | Verified


@dataclass(frozen=True, slots=True)
class Progress:
    """Step `step` of `total` in `phase` has begun; total 0 means it is not known."""

    phase: str
    step: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line a backend wrote; `level` is "info", "warning" or "error"."""

    level: str
    text: str


Message = Progress | LogLine
Report = Callable[[Message], None]
Arrays = Mapping[str, "np.ndarray[Any, Any]"]


class LoadedEngine(Protocol):
    """An engine ready to run; never changed once it exists. `nbytes` is the memory it keeps, in bytes."""

    @property
    def nbytes(self) -> int:
        """Memory this engine keeps while it is resident, in bytes."""
        ...

    def run(self, inputs: Arrays) -> "dict[str, np.ndarray[Any, Any]]":
        """Run once; inputs and outputs by name, in the dtypes of the definition. Raises `BackendError`."""
        ...


class Backend(Protocol):
    """What compiles and runs definitions on one device. Every method may raise `BackendError`."""

    @property
    def version(self) -> str:
        """The version of the runtime itself, such as "1.32.0"."""
        ...

    def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine]:
        """Compile, write the plan, and return the engine loaded."""
        ...

    def load(self, engine: EngineFile, report: Report) -> LoadedEngine:
        """Load a plan with its parameters."""
        ...

    def refit(self, request: Refit, parent: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        """Make a new engine of the parent's plan; `parent` is None where it is not resident. It stays as it is."""
        ...
