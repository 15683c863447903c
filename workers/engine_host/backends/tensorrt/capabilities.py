"""What the installed TensorRT can do. Each difference between versions is found here, by looking for a member.

TensorRT 8.6 to 11 and TensorRT-RTX have one Python API that gained and lost members. FP16 is a builder flag up to 10
and gone in 11. Strongly typed networks and progress monitors came with 9, weight stripping with 10. The rest of the
adapter asks for a capability and never for a version. `FAULTS` is the exception, because a fault of a release shows in
no member.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.weights.dtypes import numpy_dtype
from workers.engine_host.backends.tensorrt.library import NAME, trt
from workers.engine_host.backends.tensorrt.parser_tables import parser_table
from workers.engine_host.normaliser.parser import Parser

EXTERNAL_TACTICS = ("CUBLAS", "CUBLAS_LT", "CUDNN")  # they need libraries of a gigabyte, which TensorRT 10 does without
ASYNC_REFIT = ("refit_cuda_engine_async", "get_weights_location", "unset_named_weights")  # all came with one release
READ_BACK = ("get_named_weights", "get_weights_location")
HARDWARE_LEVELS = ("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")  # those of all releases, besides NONE
FAULTS: Mapping[str, Mapping[str, str]] = {
    "8.": {"timing_cache": "TensorRT 8 cannot read a serialized timing cache back; one is shared in memory instead"},
    "11.3.0": {
        "refit": "TensorRT 11.3.0 may drop a bias from an engine compiled with refit support: keep verification on"
    },
}

NEWEST_OPSET = 20  # of a release that no table is about

MEANINGS: Mapping[str, str] = {  # of the build options
    "refit": "Parameters that refits can change: all, none, or where lists are taken names and patterns (RE2).",
    "precision": "definition: compute in the definition's own types. fp16: let the compiler take F16 for anything.",
    "tf32": "Let products of F32 be computed in TF32, which has 10 bits of mantissa. TensorRT's own default is true.",
    "optimization_level": "How long to look for fast kernels: 0 not at all, 5 longest.",
    "workspace_bytes": "Device memory a kernel may take while it runs; without it as much as the device has.",
    "refit_layout": "packed: put small parameters into few weights, for a release that takes long for each weight.",
    "profiling_verbosity": "What a benchmark's report can say of the layers; detailed: their formats and tactics, too.",
    "hardware_compatibility": "Other GPUs that can load the plan, which may be slower for it.",
    "timing_cache": "Use what earlier builds on this kind of device measured, and keep what this one does.",
    "tactic_sources": "Where kernels may come from; cublas, cublas_lt and cudnn need these libraries installed.",
    "version_compatible": (
        "Later releases can load a downloaded plan, with this release's lean runtime library, which it does not "
        "contain. Workers here load it with their own release only."
    ),
    "strip_weights": "Leave out of the plan what a refit can put back; it is taken from the weights at each load.",
    "weight_streaming_budget": "Bytes of weights to keep on the device; the others come from the host at each run.",
    "compute_capability": "The GPUs to compile for.",
}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one release of TensorRT has, by the names of its own API.

    `parser` is what graphs are normalised for. `targets` are the compute capabilities that
    it compiles for without such a GPU; only TensorRT-RTX has any. TensorRT-RTX also takes levels of compatibility with
    other GPUs and versions, and timing caches, but ignores them. So here it has none of these.
    """

    version: str
    parser: Parser
    explicit_batch: bool
    strongly_typed: bool
    fp16_flag: bool
    strip_plan: bool
    refit_individual: bool
    serialization_config: bool
    include_refit: bool
    progress_monitor: bool
    int64: bool
    weight_streaming: bool
    version_compatible: bool
    async_refit: bool
    reads_weights: bool
    parser_names_operators: bool
    memory_size_v2: bool
    bfloat16: bool
    hardware_levels: tuple[str, ...]
    tactics: tuple[str, ...]
    targets: tuple[str, ...]
    faults: Mapping[str, str]

    def engine_dtype(self, dtype: str) -> "np.dtype[Any]":
        """Return the dtype in which an engine keeps a weight; `dtype` is the graph's, a safetensors name."""
        narrowed = {"F64": "F32"} if self.int64 else {"F64": "F32", "I64": "I32"}
        return numpy_dtype(narrowed.get(dtype, dtype))

    @property
    def refit_threads(self) -> int:
        """How many threads a refit may have: one if the Python binding keeps the interpreter's lock meanwhile.

        Our logger is written in Python. If one of the refitter's own threads logged a line, it would wait for that lock
        for ever. `refit_cuda_engine` releases the lock in releases that also have `refit_cuda_engine_async`. In
        TensorRT 8 it does not (source: its python/src/infer/pyCore.cpp). One thread costs TensorRT 8 little: 811 MB
        take 0.14 to 0.19 s with one thread and 0.15 to 0.16 s with 32.
        """
        return (os.cpu_count() or 1) if self.async_refit else 1

    def runs_on(self, compute_capability: str) -> bool:
        """Whether it has kernels for a GPU. Only TensorRT-RTX lists its GPUs; for any other release this is True."""
        return not self.targets or target_name(compute_capability) in self.targets

    @property
    def times_kernels(self) -> bool:
        """Whether it chooses kernels by timing them on the GPU while it compiles."""
        return not self.targets

    @property
    def readable_timing_cache(self) -> bool:
        """Whether a serialized timing cache can be read back."""
        return self.times_kernels and "timing_cache" not in self.faults


def capabilities(library: Any = trt) -> Capabilities:  # noqa: ANN401 - a module, TensorRT's or one with its names
    """Return what a TensorRT module can do, by default the module in use."""
    flags = _members(library, "BuilderFlag")
    levels = _members(library, "HardwareCompatibilityLevel")
    targets = tuple(name for name in _members(library, "ComputeCapability") if name.startswith("SM"))
    return Capabilities(
        version=library.__version__,
        parser=_parser("tensorrt_rtx" if targets else "tensorrt", library.__version__),
        explicit_batch="EXPLICIT_BATCH" in _members(library, "NetworkDefinitionCreationFlag"),
        strongly_typed="STRONGLY_TYPED" in _members(library, "NetworkDefinitionCreationFlag"),
        fp16_flag="FP16" in flags,
        strip_plan="STRIP_PLAN" in flags,
        refit_individual="REFIT_INDIVIDUAL" in flags,
        serialization_config=hasattr(library.ICudaEngine, "create_serialization_config"),
        include_refit="INCLUDE_REFIT" in _members(library, "SerializationFlag"),
        progress_monitor=hasattr(library, "IProgressMonitor"),
        int64=hasattr(library, "int64"),
        weight_streaming="WEIGHT_STREAMING" in flags and hasattr(library.ICudaEngine, "weight_streaming_budget_v2"),
        version_compatible=not targets and "VERSION_COMPATIBLE" in flags,
        async_refit=all(hasattr(library.Refitter, name) for name in ASYNC_REFIT),
        reads_weights=all(hasattr(library.Refitter, name) for name in READ_BACK),
        parser_names_operators=hasattr(library.ParserError, "node_operator"),
        memory_size_v2=hasattr(library.ICudaEngine, "device_memory_size_v2"),
        bfloat16=hasattr(library, "bfloat16"),
        hardware_levels=() if targets else tuple(level for level in HARDWARE_LEVELS if level in levels),
        tactics=_members(library, "TacticSource"),
        targets=targets,
        faults=_faults(library.__version__),
    )


def options_schema(can: Capabilities, *, refit: bool) -> dict[str, Any]:
    """Return the JSON Schema of each build option, with its default; `refit` says whether this device refits."""
    named = [{"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}}]
    schemas: dict[str, Any] = {
        "refit": {
            "default": "all" if refit else "none",
            "anyOf": [{"enum": ["all", "none"] if refit else ["none"]}, *(named * (refit and can.refit_individual))],
        },
        "precision": {"enum": ["definition", "fp16"] if can.fp16_flag else ["definition"], "default": "definition"},
        "tf32": {"type": "boolean", "default": False},
        "optimization_level": {"type": "integer", "minimum": 0, "maximum": 5, "default": 3},
        "workspace_bytes": {"type": "integer", "minimum": 1 << 20},
        "refit_layout": {"enum": ["plain", "packed"], "default": "plain"},
        "profiling_verbosity": {"enum": ["layer_names_only", "detailed", "none"], "default": "layer_names_only"},
        "hardware_compatibility": {
            "enum": ["none", *(name.lower() for name in can.hardware_levels)],
            "default": "none",
        },
    }
    if can.times_kernels:
        schemas["timing_cache"] = {"type": "boolean", "default": True}
    if can.tactics:
        schemas["tactic_sources"] = {
            "type": "array",
            "uniqueItems": True,
            "items": {"enum": [name.lower() for name in can.tactics]},
            "default": [name.lower() for name in default_tactics(can)],
        }
    if can.version_compatible:
        schemas["version_compatible"] = {"type": "boolean", "default": False}
    if can.strip_plan and refit:
        schemas["strip_weights"] = {"type": "boolean", "default": False}
    if can.weight_streaming:
        schemas["weight_streaming_budget"] = {"type": "integer", "minimum": 0}
    if can.targets and not refit:
        schemas["compute_capability"] = {"enum": list(can.targets), "default": default_target(can)}
    return {name: {"description": MEANINGS[name]} | schema for name, schema in schemas.items()}


def conflicts(can: Capabilities, *, refit: bool) -> list[dict[str, Any]]:
    """Return which options exclude each other, as {"when", "reason"}.

    "when" is a JSON Schema of all options, defaults included. Options that match it are refused for the "reason".
    """
    found = []
    if can.strip_plan and refit:
        reason = 'strip_weights leaves out what a refit puts back, and refit "none" lets it put back nothing: use "all"'
        found.append((_equal(strip_weights=True, refit="none"), reason))
    if can.weight_streaming and can.fp16_flag:
        reason = 'weight_streaming_budget needs the definition\'s own types: leave out precision "fp16"'
        found.append((_equal(precision="fp16") | {"required": ["precision", "weight_streaming_budget"]}, reason))
    return [{"when": when, "reason": reason} for when, reason in found]


def _equal(**options: object) -> dict[str, Any]:
    return {"required": list(options), "properties": {name: {"const": value} for name, value in options.items()}}


def lacking(can: Capabilities, *, refit: bool) -> dict[str, str]:
    """Return the reason for each option, or value of one ("refit=all"), that is refused and other versions have."""
    lacks = _absent(can)
    if not refit:
        no_device = f"{NAME} compiles here without a GPU, and without one an engine cannot be made refittable"
        lacks |= {"refit": no_device, "refit=all": no_device, "strip_weights": no_device}
    elif not can.refit_individual:
        lacks["refit"] = f'{NAME} {can.version} refits all weights or none; later releases take lists. Use "all"'
    if not can.targets:
        lacks["compute_capability"] = f"{NAME} {can.version} compiles for the GPU it runs on; TensorRT-RTX for others"
    elif refit:
        lacks["compute_capability"] = "a worker with a GPU compiles for that GPU; one without compiles for others"
    return lacks


def _absent(can: Capabilities) -> dict[str, str]:
    """Return the reason for each option or value that the release itself does not have."""
    this = f"{NAME} {can.version}"
    lacks = {}
    if not can.fp16_flag:
        lacks["precision=fp16"] = (
            f"{this} computes in the definition's own types; make a definition with precision fp16"
        )
    if not can.strip_plan:
        lacks["strip_weights"] = f"{this} has no weight stripping; it came with 10.0"
    if not can.weight_streaming:
        lacks["weight_streaming_budget"] = f"{this} has no weight streaming budget; it came with 10.1"
    if not can.version_compatible:
        lacks["version_compatible"] = f"{this} loads only what it compiled itself"
    if not can.times_kernels:
        lacks["timing_cache"] = f"{this} times nothing while it compiles"
    if not can.tactics:
        lacks["tactic_sources"] = f"{this} chooses its tactics itself"
    why = "ignores it; engines are compiled for a compute_capability" if can.targets else "does not have it"
    missing = [level for level in HARDWARE_LEVELS if level not in can.hardware_levels]
    return lacks | {f"hardware_compatibility={level.lower()}": f"{this} {why}" for level in missing}


def notes(can: Capabilities) -> dict[str, str]:
    """Return what else to know of this release before a build: its faults, and the dtypes that it does not take."""
    this = f"{NAME} {can.version}"
    found = dict(can.faults)
    if not can.bfloat16:
        found["BF16"] = f"{this} has no BF16: a definition with BF16 parameters is refused by its build"
    if not can.strongly_typed:
        found["I8"] = f"{this} takes I8 inputs and outputs in quantized networks only"
    return found


def target_name(compute_capability: str) -> str:
    """Return TensorRT-RTX's name for a compute capability: "8.9" is SM89."""
    return f"SM{compute_capability.replace('.', '')}"


def default_tactics(can: Capabilities) -> tuple[str, ...]:
    """Return the tactic sources that need no library beside TensorRT's own."""
    return tuple(name for name in can.tactics if name not in EXTERNAL_TACTICS)


def default_target(can: Capabilities) -> str:
    """Return the name of the compute capability that is compiled for if none is asked for and there is no GPU."""
    return "SM80" if "SM80" in can.targets else can.targets[0]


def _members(library: Any, enum: str) -> tuple[str, ...]:  # noqa: ANN401 - a module
    return tuple(getattr(getattr(library, enum, None), "__members__", {}))


def _parser(library: str, version: str) -> Parser:
    table = parser_table(library, version)
    return Parser(NEWEST_OPSET) if table is None else table.parser


def _faults(version: str) -> dict[str, str]:
    return {what: why for start, faults in FAULTS.items() if version.startswith(start) for what, why in faults.items()}
