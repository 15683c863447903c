"""From a graph to a plan: TensorRT's parser, the builder's configuration, and the compilation itself."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.definitions.profiles import Profile
from workers.channel.messages import BackendError, Progress
from workers.engine_host.backends.tensorrt.capabilities import Capabilities
from workers.engine_host.backends.tensorrt.library import NAME, extents, trt
from workers.engine_host.backends.tensorrt.log import Log
from workers.engine_host.backends.tensorrt.timing_cache import Timings

MAX_FAULTS = 5  # the most faults or weights that an error names


class Compiler:
    """Compiles graphs for this process's GPU.

    If there is no GPU, it compiles for one of `Capabilities.targets`. `timings` keeps the kernel times that the builder
    measured.
    """

    def __init__(self, can: Capabilities, log: Log) -> None:
        self._can = can
        self._log = log
        self.timings = Timings(can, log)

    def compile(
        self,
        graph: Path,
        profiles: Sequence[Profile],
        options: Mapping[str, Any],
        *,
        half: bool,
        refittable: Sequence[str],
        timing_cache: Path | None,
    ) -> trt.IHostMemory:
        """Return the plan of the ONNX file `graph`, whose external data lie beside it.

        `half` says whether F16 occurs in the graph. `refittable` names the weights to keep refittable if the option
        `refit` is a list. Raises BackendError "graph_refused", "profiles_required", "bad_option", "not_refittable" or
        "build_failed", with TensorRT's own words if it gave any.
        """
        builder = trt.Builder(self._log)
        # The builder's threads may log, because a build releases the interpreter's lock.
        builder.max_threads = os.cpu_count() or 1
        network = builder.create_network(self._network_flags(options))
        self._parse(network, graph)
        if not self._is_strongly_typed(options):
            self._refuse_int8(network)
        config = builder.create_builder_config()
        self._configure(config, options, half=half)
        self._mark_refittable(network, options, refittable)
        self._add_profiles(builder, network, config, profiles)
        has_timings = options.get("timing_cache", False) and self.timings.use(config, timing_cache)
        if self._can.progress_monitor:
            config.progress_monitor = _monitor(self._log)
        plan = builder.build_serialized_network(network, config)
        if plan is None and has_timings and not self._log.blames_device:
            again = "compiling with the timing cache failed and is tried again with a new one"
            self.timings.begin_anew(config, f"{again}: {self._log.reason}")
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            remedy = "Try another optimization_level, a larger workspace_bytes or narrower profiles."
            raise self._log.failed("build_failed", f"{NAME} could not compile the definition", remedy)
        return plan

    def _network_flags(self, options: Mapping[str, Any]) -> int:
        flags = 0
        if self._can.explicit_batch:
            flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
        if self._is_strongly_typed(options):
            flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return flags

    def _is_strongly_typed(self, options: Mapping[str, Any]) -> bool:
        """Tell whether tensors keep the definition's own types; if not, types are only hints to the builder."""
        return self._can.strongly_typed and options["precision"] == "definition"

    def _parse(self, network: trt.INetworkDefinition, graph: Path) -> None:
        parser = trt.OnnxParser(network, self._log)
        if not parser.parse_from_file(str(graph)):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            faults = "; ".join(self._fault(error) for error in errors[:MAX_FAULTS]) or self._log.reason
            raise BackendError(
                "graph_refused",
                f"{NAME} {self._can.version} does not take the definition: {faults}. Narrow the profiles, best to one "
                "exact shape, so that more is computed before the build; make the definition again with a lower "
                '"opset"; export it with other operators; or use another backend.',
            )

    def _fault(self, error: trt.ParserError) -> str:
        """Say what the parser refuses and at which node: the parser's own words may be no more than "false"."""
        if not self._can.parser_names_operators:
            return f"{error.desc()} (node {error.node()})"
        return f"{error.node_operator()} {error.node_name()!r}: {error.desc()}"

    def _refuse_int8(self, network: trt.INetworkDefinition) -> None:
        """Raise BackendError if an input or output is I8.

        Called only if types are hints. TensorRT then reads I8 as quantized numbers with a scale.
        """
        ends = [network.get_input(index) for index in range(network.num_inputs)]
        ends += [network.get_output(index) for index in range(network.num_outputs)]
        found = [tensor.name for tensor in ends if tensor.dtype == trt.DataType.INT8]
        if found:
            raise BackendError(
                "graph_refused",
                f"{NAME} {self._can.version} takes I8 for scaled numbers, so {', '.join(found)} would need ranges. "
                "Give the definition I32 inputs and outputs and cast inside it.",
            )

    def _configure(self, config: trt.IBuilderConfig, options: Mapping[str, Any], *, half: bool) -> None:
        wanted = {
            "REFIT": options["refit"] == "all",
            "REFIT_INDIVIDUAL": isinstance(options["refit"], list),
            "STRIP_PLAN": options.get("strip_weights", False),
            "FP16": not self._is_strongly_typed(options) and (half or options["precision"] == "fp16"),
            "VERSION_COMPATIBLE": options.get("version_compatible", False),
            "EXCLUDE_LEAN_RUNTIME": options.get("version_compatible", False),
            "WEIGHT_STREAMING": "weight_streaming_budget" in options,
            # If the release times nothing, the option is absent. Then no cache is used, and this flag is not set.
            "DISABLE_TIMING_CACHE": not options.get("timing_cache", True),
        }
        for name, on in wanted.items():
            if on:
                config.set_flag(getattr(trt.BuilderFlag, name))
        if not options["tf32"]:
            config.clear_flag(trt.BuilderFlag.TF32)
        config.builder_optimization_level = int(options["optimization_level"])  # JSON Schema accepts 3.0 as an integer
        config.profiling_verbosity = getattr(trt.ProfilingVerbosity, options["profiling_verbosity"].upper())
        level = options["hardware_compatibility"].upper()
        if level != "NONE":
            config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
        if "workspace_bytes" in options:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options["workspace_bytes"]))
        if "tactic_sources" in options:
            sources = [getattr(trt.TacticSource, name.upper()) for name in options["tactic_sources"]]
            if not config.set_tactic_sources(sum(1 << int(source) for source in sources)):
                raise self._log.failed("bad_option", f"{NAME} refuses the tactic sources", "Leave out tactic_sources.")
        if self._can.targets:
            self._compile_for(options.get("compute_capability", "CURRENT"), config)

    def _compile_for(self, target: str, config: Any) -> None:  # noqa: ANN401 - a config that only TensorRT-RTX has
        """Compile for one compute capability.

        Without this setting a plan would be compiled for several capabilities, and for none before Ampere.
        """
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(trt.ComputeCapability.__members__[target], 0):  # type: ignore[attr-defined]  # RTX only
            raise self._log.failed("bad_option", f"{NAME} does not compile for {target}", "Choose another one.")

    def _mark_refittable(
        self, network: trt.INetworkDefinition, options: Mapping[str, Any], names: Sequence[str]
    ) -> None:
        if not isinstance(options["refit"], list):
            return
        refused = [name for name in names if not network.mark_weights_refittable(name)]
        if refused:
            raise BackendError(
                "not_refittable",
                f"{NAME} cannot keep {', '.join(refused[:MAX_FAULTS])} refittable. Leave them out of options.refit.",
            )

    def _add_profiles(
        self,
        builder: trt.Builder,
        network: trt.INetworkDefinition,
        config: trt.IBuilderConfig,
        profiles: Sequence[Profile],
    ) -> None:
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        dynamic = [tensor.name for tensor in inputs if -1 in extents(tensor.shape)]
        if dynamic and not profiles:
            raise BackendError(
                "profiles_required",
                f"The inputs {', '.join(dynamic)} have dynamic dimensions, and {NAME} compiles for ranges of shapes. "
                'Give at least one profile, such as {"input": {"min": [1, 1], "opt": [1, 64], "max": [4, 128]}}.',
            )
        for profile in profiles:
            native = builder.create_optimization_profile()
            for tensor in inputs:
                sizes = profile[tensor.name]
                native.set_shape(tensor.name, *(trt.Dims(list(size)) for size in (sizes.min, sizes.opt, sizes.max)))
            if config.add_optimization_profile(native) < 0:
                raise self._log.failed("build_failed", f"{NAME} refuses the profile {profile}")


def _monitor(log: Log) -> "trt.IProgressMonitor":  # a string, because TensorRT 8.6 has no IProgressMonitor
    class Monitor(trt.IProgressMonitor):
        """Reports how far the outermost phase is, as progress."""

        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._steps[phase_name] = num_steps
                log.tell(Progress("compile", 0, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._steps:
                log.tell(Progress("compile", step + 1, self._steps[phase_name]))
            return True

        def phase_finish(self, phase_name: str) -> None:
            steps = self._steps.pop(phase_name, None)
            if steps is not None:
                log.tell(Progress("compile", steps, steps))

    return Monitor()
