"""The TensorRT backend: plans hold weights, and a refit replaces them in the engine on the device.

A layout of slots (`slots`) says how the definition's parameters become the engine's weights. Most slots are one
parameter's bytes where they lie in a checkpoint file. A few slots are computed from several parameters. The layout
follows from the definition and the option `refit_layout` alone, so it need not be kept with a plan.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnx import ModelProto

from app.definitions.profiles import Profile
from workers.channel.messages import (
    BackendError,
    Build,
    Built,
    EngineFile,
    LogLine,
    Materialised,
    MergeTimings,
    ParameterSource,
    Progress,
    Refit,
    Refitted,
    Report,
    Spent,
)
from workers.engine_host import onnx_graph
from workers.engine_host.accelerate.large_pages import small_pages
from workers.engine_host.backends.base import LoadedEngine, Room
from workers.engine_host.backends.options import completed, settled
from workers.engine_host.backends.stopwatch import Stopwatch
from workers.engine_host.backends.tensorrt import external_data as graph
from workers.engine_host.backends.tensorrt.capabilities import capabilities
from workers.engine_host.backends.tensorrt.compiler import Compiler
from workers.engine_host.backends.tensorrt.engine import TensorrtEngine
from workers.engine_host.backends.tensorrt.layout import Layout, lay_out
from workers.engine_host.backends.tensorrt.library import NAME, trt
from workers.engine_host.backends.tensorrt.log import process_log
from workers.engine_host.backends.tensorrt.normalised import NormalisedLayout, normalised_layout
from workers.engine_host.backends.tensorrt.offer import Gpu, offered
from workers.engine_host.backends.tensorrt.plan_file import mapped_plan, write_plan, writing_plan
from workers.engine_host.cuda.page_locked_values import process_values
from workers.engine_host.tensors import ParameterFiles


class TensorrtBackend:
    """Compiles, refits and runs on one GPU; on a machine without a GPU, TensorRT-RTX compiles for other machines."""

    refits_in_place = True

    def __init__(self, gpu: Gpu | None, scratch: Path, files: ParameterFiles, room: Room) -> None:
        """Open the backend on a GPU, or without one; raises BackendError "unsupported_gpu"."""
        self._can = capabilities()
        self._gpu = gpu.supported(self._can) if gpu is not None else None
        self._scratch = scratch
        self._files = files
        self._files.on_damage(process_values().forget_all)
        self._room = room
        self._log = process_log()
        self._compiler = Compiler(self._can, self._log)
        self._runtime = trt.Runtime(self._log) if gpu is not None else None
        self.offered = offered(self._can, gpu)

    def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine | None]:
        """Compile, write the plan, and load it if this device can.

        The facts name the parameters that the compiled engine has not kept as weights (`fixed_parameters`). Other
        values of these take another build.
        """
        self._log.attach(report, verbose=request.verbose)
        watch = Stopwatch(report)
        options = settled(request.options, self.offered.capabilities)
        definition = _definition(request.definition)
        layout = lay_out(definition, options["refit_layout"])
        with watch.phase("normalise"):
            normal = self._normalised(definition, layout, request.profiles, options, report)
        with watch.phase("transform"):
            values = self._files.locate(request.parameters, _stepping(report))
        with tempfile.TemporaryDirectory(prefix="graph-", dir=self._scratch) as folder:
            path = graph.write(normal.layout, values, Path(folder))
            with watch.phase("compile"), small_pages():
                plan = self._compiler.compile(
                    path,
                    request.profiles,
                    options,
                    half=layout.holds("F16"),
                    refittable=_marked(options["refit"], layout, normal.layout),
                    timing_cache=Path(request.timing_cache) if request.timing_cache else None,
                )
        del values
        with writing_plan(plan, Path(request.plan)) as written:
            engine = None
            if self._runtime is not None:
                engine = self._room(lambda: self._load_compiled(plan, layout, options, request, watch, report))
            with watch.phase("write"):
                digest, nbytes = written.result()
        built = Built(
            plan=request.plan,
            plan_digest=digest,
            nbytes=nbytes,
            platform=self._platform(options),
            facts=self._facts(layout, options, engine) | {"rewrites": [one.to_json() for one in normal.rewrites]},
            stages=watch.stages,
            backend_version=self._can.version,
            timing_cache=self._written_timings(request),
            bound_to=self._bound_to(options),
        )
        return built, engine

    def load(self, engine: EngineFile, report: Report) -> TensorrtEngine:
        """Deserialize a plan, and set the engine's weights that differ from the plan's."""
        self._log.attach(report)
        watch = Stopwatch(report)
        options = completed(engine.options, self.offered.capabilities)
        with watch.phase("load"):
            loaded = self._unfitted(engine, options)
        loaded.set_parameters(engine.parameters, self._files, watch, _stepping(report))
        return loaded

    def refit(self, request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        """Replace the weights that differ, in place; if no engine of the compiled plan is resident, load one first.

        The facts count the engine's weights that were set (`weights_set`). They are fewer than the changed parameters
        if the layout packs several parameters into one weight.
        """
        self._log.attach(report)
        watch = Stopwatch(report)
        options = completed(request.parent.options, self.offered.capabilities)
        if isinstance(resident, TensorrtEngine):
            engine, warm = resident, True
        else:
            with watch.phase("load"):
                engine, warm = self._unfitted(request.parent, options), False
        count = engine.set_parameters(request.parameters, self._files, watch, _stepping(report))
        refitted = Refitted(
            **_inherited(request.parent, options),
            changed=_changed(request.parent.parameters, request.parameters),
            warm=warm,
            facts=engine.facts | {"plan_holds_weights": not _stripped(options), "weights_set": count},
            stages=watch.stages,
            backend_version=self._can.version,
        )
        return refitted, engine

    @contextmanager
    def materialising(self, plan: str, engine: LoadedEngine, report: Report) -> Iterator[Future[Materialised]]:
        """Serialize an engine with the weights that it has now, in a form that can be refitted again, and write it."""
        if not isinstance(engine, TensorrtEngine):
            raise TypeError(f"not an engine of this backend: {type(engine).__name__}")
        self._log.attach(report)
        watch = Stopwatch(report)
        with watch.phase("serialize"):
            serialized = engine.serialize()
        del engine  # the block may have to give it up
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(_write, serialized, plan, watch.stages)
            del serialized  # the thread holds it for as long as it writes
            yield writing

    def merge_timings(self, request: MergeTimings, report: Report) -> None:
        """Merge the timing caches of several workers, each in a file of its own."""
        self._log.attach(report)
        builder = trt.Builder(self._log)
        self._compiler.timings.merge(builder.create_builder_config(), request.caches, Path(request.merged))

    def _normalised(
        self,
        definition: ModelProto,
        layout: Layout,
        profiles: Sequence[Profile],
        options: Mapping[str, Any],
        report: Report,
    ) -> NormalisedLayout:
        """Return the layout to compile, and tell how it differs from the definition's own."""
        normal = normalised_layout(
            definition, layout, profiles, refit_layout=options["refit_layout"], parser=self._can.parser
        )
        if normal.kept_because:
            report(LogLine("warning", f"the definition is compiled as it is: {normal.kept_because}"))
        if normal.mixed_up:
            raise BackendError("graph_refused", self._mixed_up(normal.mixed_up))
        for rewrite in normal.rewrites:
            report(LogLine("info", rewrite.text))
        return normal

    def _mixed_up(self, names: Sequence[str]) -> str:
        return (
            f"{NAME} {self._can.version} finds the outputs of an If's branches in any order, and this definition could "
            f"not be rewritten for it ({', '.join(names[:5])}): its engine might give one output for another. Export "
            "the model with one output to each If, or use a later release or another backend."
        )

    def _load_compiled(
        self,
        plan: trt.IHostMemory,
        layout: Layout,
        options: Mapping[str, Any],
        request: Build,
        watch: Stopwatch,
        report: Report,
    ) -> TensorrtEngine:
        """Load the compiled plan, and set the weights that were stripped from it."""
        with watch.phase("load"):
            engine = self._loaded(plan, layout, options, request.parameters)
        engine.set_parameters(request.parameters, self._files, watch, _stepping(report))
        return engine

    def _unfitted(self, engine: EngineFile, options: Mapping[str, Any]) -> TensorrtEngine:
        """Deserialize an engine's plan with the weights that the plan holds, which may not be the engine's."""
        with mapped_plan(Path(engine.plan)) as plan:
            return self._loaded(plan, _layout(engine.definition, options), options, engine.held)

    def _loaded(
        self,
        plan: Any,  # noqa: ANN401 - trt.IHostMemory or a mapped file, a buffer
        layout: Layout,
        options: Mapping[str, Any],
        held: Sequence[ParameterSource],
    ) -> TensorrtEngine:
        if self._runtime is None:
            raise BackendError("no_gpu", f"{NAME} compiles here but runs nothing: this worker has no GPU.")
        self._log.forget()  # errors of the compiler, or of an attempt that had no room
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            what = f"{NAME} {self._can.version} cannot load the plan"
            raise self._log.failed("load_failed", what, "Build the engine again here.")
        weight_bytes = memoryview(plan).nbytes
        if "weight_streaming_budget" in options:
            streamable = engine.streamable_weights_size
            engine.weight_streaming_budget_v2 = min(int(options["weight_streaming_budget"]), streamable)
            weight_bytes -= streamable - engine.weight_streaming_budget_v2
        return TensorrtEngine(
            engine,
            layout,
            {parameter.name: parameter.content for parameter in held},
            self._can,
            self._log,
            weight_bytes=weight_bytes,
            stripped=_stripped(options),
        )

    def _platform(self, options: Mapping[str, Any]) -> str:
        """Name the machines that can load a plan built with these options."""
        level = options["hardware_compatibility"]
        if self._gpu is None:
            return f"{self._can.version}/{options['compute_capability']}"
        return f"{self._can.version}/{self._gpu.name if level == 'none' else self._gpu.shared(level)}"

    def _bound_to(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Name the facts of a GPU that must be equal for it to load a plan built with these options.

        TensorRT refuses another compute capability, unless the plan is for all GPUs since Ampere. This service also
        keeps a plan to GPUs of one name if the plan is for this GPU alone.
        """
        level = options["hardware_compatibility"]
        if self._gpu is None or level == "none":
            return ("compute_capability",) if self._can.targets else ("compute_capability", "name")
        return ("compute_capability",) if level == "same_compute_capability" else ()

    def _facts(self, layout: Layout, options: Mapping[str, Any], engine: TensorrtEngine | None) -> dict[str, Any]:
        facts = {
            "library": NAME,
            "plan_holds_weights": not _stripped(options),
            "refit_layout": options["refit_layout"],
            "slots": len(layout.slots),
        }
        return facts | (engine.facts if engine is not None else {"refittable": options["refit"] != "none"})

    def _written_timings(self, request: Build) -> str | None:
        """Return the path of all that was timed so far; None if no later build could use it."""
        path = Path(f"{request.plan}.timings")
        return str(path) if self._compiler.timings.write(path) else None


def _definition(path: str) -> ModelProto:
    return onnx_graph.parse(Path(path).read_bytes())


def _layout(definition: str, options: Mapping[str, Any]) -> Layout:
    return lay_out(_definition(definition), options["refit_layout"])


def _marked(wanted: str | Sequence[str], layout: Layout, compiled: Layout) -> Sequence[str]:
    """Return the slots to keep refittable if the option `refit` is a list; some may be in a branch never taken."""
    if isinstance(wanted, str):
        return ()
    kept = {slot.name for slot in compiled.slots}
    return [name for name in layout.slots_of(wanted) if name in kept]


def _write(serialized: trt.IHostMemory, plan: str, stages: Mapping[str, Spent]) -> Materialised:
    return Materialised(plan, *write_plan(serialized, Path(plan)), stages)


def _inherited(parent: EngineFile, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return path, digest and bytes of a refitted engine's plan: the parent's if it holds no weights, else none yet."""
    if _stripped(options):
        return {"plan": parent.plan, "plan_digest": parent.root_plan, "nbytes": Path(parent.plan).stat().st_size}
    return {"plan": None, "plan_digest": None, "nbytes": 0}


def _changed(before: Sequence[ParameterSource], after: Sequence[ParameterSource]) -> int:
    """Count the parameters whose values differ."""
    contents = {one.name: one.content for one in before}
    return sum(contents.get(one.name) != one.content for one in after)


def _stripped(options: Mapping[str, Any]) -> bool:
    return bool(options.get("strip_weights"))


def _stepping(report: Report) -> Callable[[int, int], None]:
    """Return a function that reports each parameter that is computed, as progress."""
    return lambda done, total: report(Progress("transform", done, total))
