"""The onnxruntime backend, on the CPU.

A plan is the definition optimised ahead of time, without any weight. While the graph is optimised, its parameters are
plain inputs. An optimizer finds no value that it could fold into the graph, so one plan serves every weight version.
Loading a plan points each parameter at its bytes in a checkpoint file. onnxruntime maps the file, packs the weights for
its kernels and lets go of the file. It optimises nothing at that point. A refit is such a load.

Measured with onnxruntime 1.32: a graph optimised in this way has the same fused operators as one optimised with its
weights. Only what is computed from weights alone is missing, such as a batch normalisation folded into a convolution.
`SessionOptions.add_external_initializers` would copy every weight once more. Pointing at files takes half the time for
MiniLM and, for 4 GiB of weights, half the memory at the peak (4.4 GB, not 8.5).
"""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import onnxruntime as ort
from onnx import ModelProto

from workers.channel.messages import (
    BackendError,
    Build,
    Built,
    EngineFile,
    LogLine,
    Materialised,
    ParameterSource,
    Progress,
    Refit,
    Refitted,
    Report,
)
from workers.engine_host import onnx_graph
from workers.engine_host.backends.base import Arrays, LoadedEngine, Offered, Room
from workers.engine_host.backends.onnxruntime.timing import node_seconds, run_seconds
from workers.engine_host.backends.options import settled
from workers.engine_host.backends.stopwatch import Stopwatch
from workers.engine_host.onnxruntime_session import (
    ORT_ERRORS,
    explained,
    open_session,
    output_names,
    run_session,
    session_options,
)
from workers.engine_host.tensors import Array, ParameterFiles, StoredValue

# "all" is left out: its memory layouts suit the machine that compiles, not the one that runs.
LEVELS: Mapping[str, Any] = {
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
SESSION_BYTES = 1 << 20  # about what a session keeps besides its weights
PLATFORM = "cpu"  # a plan is a graph, which any processor takes
CAPABILITIES: Mapping[str, Any] = {
    "build": True,
    "refit": True,
    "run": True,
    "plan_holds_weights": False,
    "profiles": "optional",
    "negative_indices": True,
    "options": {
        "optimization": {
            "description": "How far the graph is optimised, extended being furthest.",
            "enum": ["extended", "basic", "none"],
            "default": "extended",
        }
    },
    "lacks": {"refit": "an onnxruntime engine never holds weights, so every one can be refitted"},
}


def open_backend(_name: str, _device: str, scratch: Path, files: ParameterFiles, _room: Room) -> "OnnxruntimeBackend":
    """Return the backend; the CPU is the only device that it runs on."""
    return OnnxruntimeBackend(scratch, files)


@dataclass(frozen=True, slots=True)
class OnnxruntimeEngine:
    """A session with its weights. `plan` is the plan it was made from; `values` keep its scratch files alive.

    The session gives the values `inner` as outputs, besides those of the definition. It computes them in any case.
    """

    session: Any
    plan: bytes
    values: Mapping[str, StoredValue]
    nbytes: int
    inner: tuple[str, ...] = ()

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once. Inputs and outputs are by name, in the dtypes of the definition."""
        return run_session(self.session, inputs, without=self.inner)

    def run_showing(self, inputs: Arrays, inner: Sequence[str]) -> dict[str, Array]:
        """Run once and return these values as well; see `ShowsInnerValues`."""
        engine = self if set(inner) <= set(self.inner) else _load(self.plan, self.values, inner)
        return run_session(engine.session, inputs, without=set(engine.inner) - set(inner))

    def show_apart(self, inputs: Arrays, weights: Arrays, inner: Sequence[str]) -> dict[str, Array]:
        """Compute these values with weights of the caller's; see `ShowsInnerValues`."""
        model = onnx_graph.with_parameters_as_inputs(onnx_graph.parse(self.plan))
        names = onnx_graph.show(model, inner)
        session = open_session(onnx_graph.serialize(model), session_options())
        taken = {one.name for one in session.get_inputs()}
        found = run_session(session, {name: one for name, one in {**inputs, **weights}.items() if name in taken})
        return {name: found[name] for name in names}

    def measure(self, inputs: Arrays, *, iterations: int, warmup: int) -> list[float]:
        """Return the seconds that each of `iterations` runs took, after `warmup` others that do not count."""
        return run_seconds(self.session, inputs, iterations=iterations, warmup=warmup, without=self.inner)

    def layers(self, inputs: Arrays) -> tuple[tuple[str, float], ...]:
        """Return (name, seconds) of each node of the plan, in order of execution."""
        model, _ = onnx_graph.point_at(self.plan, self.values)
        return node_seconds(model, inputs)

    def inspect(self) -> list[dict[str, Any]]:
        """Return name, operator, inputs and outputs of each node of the plan."""
        return onnx_graph.nodes(onnx_graph.parse(self.plan).graph)


class OnnxruntimeBackend:
    """Compiles to optimised ONNX graphs and runs them on the CPU."""

    version: str = ort.__version__
    offered = Offered(ort.__version__, (PLATFORM,), (PLATFORM,), CAPABILITIES)
    refits_in_place = False

    def __init__(self, scratch: Path, files: ParameterFiles) -> None:
        self._scratch = scratch
        self._files = files

    def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine]:
        """Optimise at the best level that works, write the plan, and load it.

        The option `optimization` ("extended", "basic" or "none") names the level to begin with. The facts say which
        level worked.
        """
        watch = Stopwatch(report)
        levels = _levels(request.options)
        definition = onnx_graph.parse(Path(request.definition).read_bytes())
        values = self._locate(request.parameters, watch, report)
        for level in levels:
            try:
                with watch.phase("compile"):
                    plan = _plan(definition, level, self._scratch, verbose=request.verbose)
                with watch.phase("load", _nbytes(values)):
                    engine = _load(onnx_graph.serialize(plan), values, verbose=request.verbose)
                break
            except ORT_ERRORS as error:
                if level == levels[-1]:
                    raise explained(error, "build_failed") from error
                report(LogLine("warning", f"optimisation {level!r} failed, trying less: {error}"))
        with watch.phase("write", len(engine.plan)):
            Path(request.plan).write_bytes(engine.plan)
        built = Built(
            plan=request.plan,
            plan_digest=_digest(engine.plan),
            nbytes=len(engine.plan),
            platform=PLATFORM,
            facts=_facts(plan, definition, level),
            stages=watch.stages,
            backend_version=self.version,
        )
        return built, engine

    def load(self, engine: EngineFile, report: Report) -> OnnxruntimeEngine:
        """Load a plan with its parameters."""
        return self._load_with(Path(engine.plan).read_bytes(), engine.parameters, Stopwatch(report), report)

    def refit(self, request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        """Load the parent's plan with other parameters; its plan is the new engine's plan.

        A parameter is computed only if it has transforms and its content differs. The others are the bytes where they
        lie.
        """
        watch = Stopwatch(report)
        warm = isinstance(resident, OnnxruntimeEngine)
        if isinstance(resident, OnnxruntimeEngine):
            plan = resident.plan
        else:
            with watch.phase("load", Path(request.parent.plan).stat().st_size):
                plan = Path(request.parent.plan).read_bytes()
        engine = self._load_with(plan, request.parameters, watch, report, request.check.inner)
        before = {parameter.name: parameter.content for parameter in request.parent.parameters}
        changed = sum(before.get(parameter.name) != parameter.content for parameter in request.parameters)
        refitted = Refitted(
            plan=request.parent.plan,
            plan_digest=request.parent.root_plan,
            nbytes=len(plan),
            changed=changed,
            warm=warm,
            facts={"plan_holds_weights": False},
            stages=watch.stages,
            backend_version=self.version,
        )
        return refitted, engine

    def materialising(
        self, _plan: str, _engine: LoadedEngine, _report: Report
    ) -> AbstractContextManager[Future[Materialised]]:
        """Raise BackendError, because a plan without weights is there from the start."""
        raise BackendError("nothing_to_materialise", "An onnxruntime engine has its plan from the start; download it.")

    def _load_with(
        self,
        plan: bytes,
        parameters: tuple[ParameterSource, ...],
        watch: Stopwatch,
        report: Report,
        inner: Sequence[str] = (),
    ) -> OnnxruntimeEngine:
        values = self._locate(parameters, watch, report)
        try:
            with watch.phase("refit", _nbytes(values)):
                return _load(plan, values, inner)
        except ORT_ERRORS as error:
            raise explained(error, "load_failed") from error

    def _locate(
        self, parameters: tuple[ParameterSource, ...], watch: Stopwatch, report: Report
    ) -> dict[str, StoredValue]:
        with watch.phase("transform"):
            return self._files.locate(parameters, lambda done, total: report(Progress("transform", done, total)))


def _levels(options: Mapping[str, Any]) -> list[str]:
    """Return the level asked for and all lower ones, in descending order."""
    level = settled(options, CAPABILITIES)["optimization"]
    return list(LEVELS)[list(LEVELS).index(level) :]


def _plan(definition: ModelProto, level: str, scratch: Path, *, verbose: bool) -> ModelProto:
    """Return the definition optimised at `level`, as a plan; raises one of `ORT_ERRORS`.

    The parameters are inputs meanwhile. Stand-in values, such as zeros, would not do: an optimizer may remove `x + 0`.
    """
    if level == "none":
        return onnx_graph.with_inputs_as_parameters(onnx_graph.with_parameters_as_inputs(definition), definition)
    path = scratch / f"{uuid4().hex}.onnx"
    options = session_options(LEVELS[level], verbose=verbose)
    options.optimized_model_filepath = str(path)
    options.intra_op_num_threads = 1  # this session never runs
    try:
        bare = onnx_graph.with_parameters_as_inputs(definition)
        open_session(onnx_graph.serialize(bare), options)
        optimised = onnx_graph.parse(path.read_bytes())
    finally:
        path.unlink(missing_ok=True)
    for was, now in ((bare.graph.input, optimised.graph.input), (bare.graph.output, optimised.graph.output)):
        if onnx_graph.interface(was) != onnx_graph.interface(now):
            raise RuntimeError("the optimised graph has other inputs or outputs than the definition")
    return onnx_graph.with_inputs_as_parameters(optimised, definition)


def _load(
    plan: bytes, values: Mapping[str, StoredValue], inner: Sequence[str] = (), *, verbose: bool = False
) -> OnnxruntimeEngine:
    model, names = onnx_graph.point_at(plan, values, inner)
    session = open_session(model, session_options(verbose=verbose))
    used = {name: values[name] for name in names}
    nbytes = sum(one.nbytes for one in used.values()) + SESSION_BYTES
    shown = set(output_names(session)) & set(inner)
    return OnnxruntimeEngine(session, plan, used, nbytes, tuple(sorted(shown)))


def _nbytes(values: Mapping[str, StoredValue]) -> int:
    return sum(value.nbytes for value in values.values())


def _facts(plan: ModelProto, definition: ModelProto, level: str) -> dict[str, Any]:
    used = onnx_graph.parameters_of(plan)
    return {
        "optimization": level,
        "operators": onnx_graph.operators(plan.graph),
        "parameters": len(used),
        "unused_parameters": sorted(onnx_graph.parameters_of(definition).keys() - used.keys()),
        "plan_holds_weights": False,
    }


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
