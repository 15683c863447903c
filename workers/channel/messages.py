"""What the worker asks of the engine host, and what the engine host answers.

Requests, outcomes and messages are frozen values. The worker sends a request as a pickle. It gets any number of
messages back, and then one outcome or one `BackendError`. Files travel as paths, never as bytes.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from app.bindings.report import ParameterBinding
from app.definitions.parameter import InputSpec
from app.definitions.profiles import Profile
from app.engines.against import Against, IfImpossible

DEVICE_FAILED = "device_failed"  # the code of an error after which a device's engine host is replaced


DEVICE_OUT_OF_MEMORY = "device_out_of_memory"


class BackendError(Exception):
    """The backend refused or failed; `code` is a stable word, `detail` names the fault and its remedy."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class DamagedFile(BackendError):
    """The bytes of the file at `path` are not those that its digest was computed of."""

    def __init__(self, code: str, detail: str, path: str) -> None:
        super().__init__(code, detail)
        self.args = code, detail, path  # what it is pickled by
        self.path = path


@dataclass(frozen=True, slots=True)
class TensorFile:
    """One stored tensor: `nbytes` bytes at `offset` of the file at `path`; `blake3` is their digest, 64 hex digits."""

    path: str
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    blake3: str


@dataclass(frozen=True)
class ParameterSource:
    """A parameter's binding together with its tensors, in the order the binding names them."""

    binding: ParameterBinding
    tensors: tuple[TensorFile, ...]

    @property
    def name(self) -> str:
        """The parameter, which is also the initializer's name in the definition."""
        return self.binding.parameter

    @cached_property
    def content(self) -> Hashable:
        """Stored values, transforms, dtype and shape: equal contents mean equal parameter values."""
        stored = tuple([(tensor.dtype, tensor.shape, tensor.blake3) for tensor in self.tensors])
        return self.binding.dtype, self.binding.shape, self.binding.transforms, stored


@dataclass(frozen=True)
class EngineFile:
    """A stored engine: what the host needs to load it if it is not resident.

    `plan` is the path of a plan. `definition` is the path of the weightless ONNX file that the plan was compiled from.
    `root_plan` is the digest ("sha256:<64 hex>") of the plan that was compiled. Every engine refitted from it, over any
    number of generations, has the same one. `plan_parameters` are the values that the plan at `plan` was made with, or
    None if they are the engine's own. An engine that has no plan of its own yet is loaded from the plan of another
    engine, and then refitted with the values that differ.
    """

    backend: str
    plan: str
    root_plan: str
    definition: str
    parameters: tuple[ParameterSource, ...]
    inputs: tuple[InputSpec, ...]
    plan_parameters: tuple[ParameterSource, ...] | None = None
    profiles: tuple[Profile, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _make_picklable(self)

    @property
    def held(self) -> tuple[ParameterSource, ...]:
        """The values that the plan at `plan` was made with."""
        return self.parameters if self.plan_parameters is None else self.plan_parameters

    @cached_property
    def key(self) -> Hashable:
        """The key of the engine while it is resident: its root plan and its parameters' content, in any order."""
        return self.root_plan, frozenset([(parameter.name, parameter.content) for parameter in self.parameters])


def _make_picklable(value: "EngineFile | Build") -> None:
    """Turn read-only mappings, which pickle refuses, into dicts."""
    object.__setattr__(value, "profiles", tuple(dict(profile) for profile in value.profiles))
    object.__setattr__(value, "options", dict(value.options))


@dataclass(frozen=True, slots=True)
class Check:
    """How an engine is verified.

    `inputs` is the path of a safetensors file with the inputs, None if they are to be made up: as `made_up` says, which
    is what another verification of the same definition told, or else as can be guessed. `expected` is the path of one
    with the outputs to expect, which then stand for what `against` says. `tolerance` has those bounds that are not the
    usual ones. `if_impossible` says what becomes of an engine whose definition cannot be run on the inputs.
    `coverage_s` are the seconds to measure for which parameters the verification sees, 0 for not at all. `inner` names
    values inside the graph that are compared as well if the engine shows them: what outputs do not show, these do.
    """

    against: Against = "reference"
    inputs: str | None = None
    expected: str | None = None
    tolerance: Mapping[str, float] = field(default_factory=dict)
    if_impossible: IfImpossible = "fail"
    coverage_s: float = 0.0
    made_up: Mapping[str, Any] | None = None
    inner: tuple[str, ...] = ()


UNVERIFIED = Check("none")


@dataclass(frozen=True, slots=True)
class Build:
    """Compile the definition with these parameters, write the plan to the path `plan` and verify the engine.

    `timing_cache` is the path of what earlier builds on such a device timed, or None if there is nothing. `verbose`
    has the compiler say what it is at, so that the log tells where it crashed.
    """

    backend: str
    definition: str
    parameters: tuple[ParameterSource, ...]
    inputs: tuple[InputSpec, ...]
    plan: str
    profiles: tuple[Profile, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    timing_cache: str | None = None
    check: Check = UNVERIFIED
    verbose: bool = False

    def __post_init__(self) -> None:
        _make_picklable(self)

    def engine(self, built: "Built") -> EngineFile:
        """Return what loads the engine that this request built."""
        return EngineFile(
            backend=self.backend,
            plan=built.plan,
            root_plan=built.plan_digest,
            definition=self.definition,
            parameters=self.parameters,
            inputs=self.inputs,
            profiles=self.profiles,
            options=self.options,
        )


@dataclass(frozen=True, slots=True)
class Refit:
    """Make a new engine of `parent`'s plan with other parameters, and verify it.

    If the backend's plans hold weights, the new plan is written to the path `plan`. If `plan` is None, the engine
    exists on the device only, until a `Materialise`.
    """

    parent: EngineFile
    parameters: tuple[ParameterSource, ...]
    plan: str | None
    check: Check = UNVERIFIED

    def engine(self, refitted: "Refitted") -> EngineFile:
        """Return what loads the new engine: its own plan, or else its parent's with the values to refit it with."""
        if refitted.plan is not None:
            return replace(self.parent, plan=refitted.plan, parameters=self.parameters, plan_parameters=None)
        return replace(self.parent, parameters=self.parameters, plan_parameters=self.parent.held)


@dataclass(frozen=True, slots=True)
class Materialise:
    """Write the plan of an engine that has none of its own yet to the path `plan`."""

    engine: EngineFile
    plan: str


@dataclass(frozen=True, slots=True)
class Run:
    """Run an engine on the safetensors file `inputs` and write its outputs to the safetensors file `outputs`."""

    engine: EngineFile
    inputs: str
    outputs: str


@dataclass(frozen=True, slots=True)
class Verify:
    """Compare an engine's outputs with an independent computation of the same definition."""

    engine: EngineFile
    check: Check = Check()


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Measure an engine on fixed inputs.

    `shapes` gives each input's shape; an input that it leaves out has the `opt` shape of the first profile.
    `iterations` runs are timed one by one, after `warmup` untimed ones. `against_not_refittable` compiles the same
    definition and weights again without refit support, and measures both engines in turns. `layers` adds a time per
    layer.
    """

    engine: EngineFile
    iterations: int
    warmup: int
    report: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    against_not_refittable: bool = False
    layers: bool = True


@dataclass(frozen=True, slots=True)
class Compare:
    """Measure several engines on the same inputs, in turns.

    `inputs` is the path of a safetensors file with the inputs; if it is None, fixed inputs of `shapes` are made up.
    Each engine has `repeats` turns, in which `iterations` runs in all are timed one by one. `warmup` untimed runs
    precede each turn.
    """

    engines: tuple[EngineFile, ...]
    iterations: int
    warmup: int
    repeats: int
    report: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: str | None = None


@dataclass(frozen=True, slots=True)
class MergeTimings:
    """Merge the timing caches at the paths `caches` into one at the path `merged`."""

    backend: str
    caches: tuple[str, ...]
    merged: str


Request = Build | Refit | Materialise | Run | Verify | Benchmark | Compare | MergeTimings


@dataclass(frozen=True, slots=True)
class Spent:
    """What a stage took: the time in seconds, and the bytes it read, made or wrote; 0 if it has none to tell of."""

    seconds: float
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Built:
    """A compiled engine, now resident.

    `platform` names what a worker must offer to load it (see `Offered`). `facts` is what the backend tells of the
    engine. `stages` says what each stage took. `timing_cache` is the path of all that has been timed by now, for
    later builds; it is None if the backend cannot read it back. `verification` is None if none was asked for.
    `bound_to` names the facts of this device's fingerprint that a device which loads the plan must share.
    """

    plan: str
    plan_digest: str
    nbytes: int
    platform: str
    facts: Mapping[str, Any]
    stages: Mapping[str, Spent]
    backend_version: str
    timing_cache: str | None = None
    verification: "Verified | None" = None
    bound_to: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refitted:
    """A refitted engine, now resident: beside its parent, or in its parent's place if refits are in place.

    `plan` is the path of its plan, None if it is not materialised. If plans hold no weights, `plan` and `plan_digest`
    are the parent's. `changed` counts the parameters whose values differ from the parent's. `warm` says whether an
    engine of the same compiled plan was resident. `verification` is None if none was asked for.
    """

    plan: str | None
    plan_digest: str | None
    nbytes: int
    changed: int
    warm: bool
    facts: Mapping[str, Any]
    stages: Mapping[str, Spent]
    backend_version: str
    verification: "Verified | None" = None


@dataclass(frozen=True, slots=True)
class Materialised:
    """The plan was written to the path `plan`; `stages` says what each stage took."""

    plan: str
    plan_digest: str
    nbytes: int
    stages: Mapping[str, Spent]


@dataclass(frozen=True, slots=True)
class Ran:
    """Outputs were written to the path `outputs`; `seconds` is the engine's own time, without loading or files."""

    outputs: str
    seconds: float
    stages: Mapping[str, Spent]


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """One output of an engine against the same output of what it is verified against, computed in float64.

    `relative_l2` is |a - b| / |b|; `cosine` is a.b / (|a||b|); a figure that does not exist is None (no comparison
    was made, or no value is finite). `finite` says whether the engine's values all are. `unequal` counts the places
    where only one of the two is finite, or where they are not and differ. `logarithm` is how far the logarithms of
    probabilities lie apart: the root mean square over that of the expected ones, or over 1 if that is less.
    """

    max_abs: float | None
    relative_l2: float | None
    cosine: float | None
    finite: bool
    unequal: int = 0
    logarithm: float | None = None


@dataclass(frozen=True, slots=True)
class Sight:
    """Which parameters a verification sees: it would fail if one of them were another.

    `parameters` of the `of` there are do so if their values change by 1% of their root mean square. `tried` were looked
    at in `seconds`. `by_inner` of them show in no output but in one of the values `inner`, which are compared as well.
    `unseen` names those that it does not see, and of these `unseen_swapped` even with the values of another parameter
    of their shape. `without_effect` are those that no output depends on, seen or not, as far as even a change of 100
    times their root mean square tells. `reasons` says why one is unseen or has no effect. `in_part` names tables of
    which only the rows that the inputs look up are seen. `saturated` are outputs whose values hardly vary.
    """

    parameters: int
    of: int
    tried: int
    unseen: tuple[str, ...]
    unseen_swapped: tuple[str, ...]
    in_part: tuple[str, ...]
    saturated: tuple[str, ...]
    seconds: float
    by_inner: int = 0
    inner: tuple[str, ...] = ()
    without_effect: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification found; `ok` is None if it was impossible, as `detail` says.

    `against` is "expected" if outputs were given. `inputs` digests the inputs, and `made_up` says how they were made,
    unless they were given. `detail` says in words why it is not ok. `sees` is None if it was not measured. `inner` has
    the values inside the graph that were compared as well.
    """

    ok: bool | None
    against: Against | Literal["expected"]
    outputs: Mapping[str, OutputDifference]
    tolerance: Mapping[str, Any]
    inputs: str
    detail: str
    stages: Mapping[str, Spent]
    made_up: Mapping[str, Any] | None = None
    sees: Sight | None = None
    inner: Mapping[str, OutputDifference] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Latency:
    """The seconds that a run takes from inputs on the device to outputs on the device.

    `throughput` is in runs a second.
    """

    median: float
    p99: float
    mean: float
    throughput: float


@dataclass(frozen=True, slots=True)
class Benchmarked:
    """What a benchmark found.

    `engine` is the latency of the engine. `not_refittable` is the latency of the engine compiled without refit support;
    it is None if that was not asked for. `layers` are (name, seconds) from the runtime's profiler, in order of
    execution. `report` is the path of a JSON file with all of this, and with what the backend's inspector says of each
    layer.
    """

    engine: Latency
    not_refittable: Latency | None
    layers: tuple[tuple[str, float], ...]
    shapes: Mapping[str, tuple[int, ...]]
    report: str
    stages: Mapping[str, Spent]


@dataclass(frozen=True, slots=True)
class Compared:
    """What a comparison found of each engine, in the order of the request.

    `latencies` has None for an engine that could not be measured, and `faults` has the reason at its place, else None.
    `report` is the path of a JSON file with every sample.
    """

    latencies: tuple["TurnLatency | None", ...]
    faults: tuple[str | None, ...]
    shapes: Mapping[str, tuple[int, ...]]
    report: str
    stages: Mapping[str, Spent]


@dataclass(frozen=True, slots=True)
class TurnLatency:
    """The seconds that a run takes; `spread` lies between the lowest and the highest median of a turn."""

    median: float
    p95: float
    mean: float
    spread: float


@dataclass(frozen=True, slots=True)
class TimingsMerged:
    """A timing cache was written to the path `merged`."""

    merged: str


Outcome = Built | Refitted | Materialised | Ran | Verified | Benchmarked | Compared | TimingsMerged


@dataclass(frozen=True, slots=True)
class Progress:
    """Step `step` of `total` in `phase` has begun; if `total` is 0, the number of steps is not known."""

    phase: str
    step: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line a backend wrote; `level` is "verbose", "info", "warning" or "error".

    Only a build that asks for them has verbose lines. Its worker keeps the last ones and shows the others to nobody.
    """

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class PlanWritten:
    """A whole plan lies at the path `plan`; its engine is not verified yet."""

    plan: str
    plan_digest: str


@dataclass(frozen=True, slots=True)
class Computing:
    """From now on a graph is computed for a verification or a run, which the worker has a deadline for.

    If `what` is None, that has ended.
    """

    what: Literal["verification", "run"] | None


Message = Progress | LogLine | PlanWritten | Computing


Report = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class Residency:
    """How many engines are resident, and the memory they keep, in bytes."""

    engines: int = 0
    nbytes: int = 0
