"""Modules with the names that releases of TensorRT have, as far as the adapter looks at them.

Those of 10.13 are its type stubs' (tensorrt-stubs 10.13.0.35), those of 8.6 its Python documentation's, those of 9,
10.14 and 11 (11.2.1) the sources' of their Python bindings (python/src in github.com/NVIDIA/TensorRT).
"""

from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

FLAGS_8 = (
    *("FP16", "INT8", "DEBUG", "GPU_FALLBACK", "STRICT_TYPES", "REFIT", "DISABLE_TIMING_CACHE", "TF32"),
    *("SPARSE_WEIGHTS", "SAFETY_SCOPE", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS", "DIRECT_IO"),
    *("REJECT_EMPTY_ALGORITHMS", "ENABLE_TACTIC_HEURISTIC", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "FP8"),
)
FLAGS_9 = (
    *("FP16", "BF16", "INT8", "DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "TF32", "SPARSE_WEIGHTS"),
    *("SAFETY_SCOPE", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS", "DIRECT_IO"),
    *("REJECT_EMPTY_ALGORITHMS", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "FP8", "ERROR_ON_TIMING_CACHE_MISS"),
    *("DISABLE_COMPILATION_CACHE", "WEIGHTLESS"),
)
FLAGS_10 = (
    *("BF16", "DEBUG", "DIRECT_IO", "DISABLE_COMPILATION_CACHE", "DISABLE_TIMING_CACHE", "DISTRIBUTIVE_INDEPENDENCE"),
    *("EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS", "EXCLUDE_LEAN_RUNTIME", "FP16", "FP4", "FP8", "INT4"),
    *("GPU_FALLBACK", "INT8", "MONITOR_MEMORY", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"),
    *("REFIT", "REFIT_IDENTICAL", "REFIT_INDIVIDUAL", "REJECT_EMPTY_ALGORITHMS", "SAFETY_SCOPE", "SPARSE_WEIGHTS"),
    *("STRICT_NANS", "STRIP_PLAN", "TF32", "VERSION_COMPATIBLE", "WEIGHTLESS", "WEIGHT_STREAMING"),
)
FLAGS_11 = (
    *("DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "EDITABLE_TIMING_CACHE", "TF32", "SPARSE_WEIGHTS"),
    *("SAFETY_SCOPE", "DIRECT_IO", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "ERROR_ON_TIMING_CACHE_MISS"),
    *("DISABLE_COMPILATION_CACHE", "STRIP_PLAN", "REFIT_IDENTICAL", "WEIGHT_STREAMING", "REFIT_INDIVIDUAL"),
    *("STRICT_NANS", "MONITOR_MEMORY", "DISTRIBUTIVE_INDEPENDENCE"),
)
OWN_TACTICS = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
TACTICS = ("CUBLAS", "CUBLAS_LT", "CUDNN", *OWN_TACTICS)
PLUGINS = ("PREFER_AOT_PYTHON_PLUGINS", "PREFER_JIT_PYTHON_PLUGINS")
POOLS = ("WORKSPACE", "DLA_MANAGED_SRAM", "DLA_LOCAL_DRAM", "DLA_GLOBAL_DRAM", "TACTIC_DRAM")
ENGINE = ("num_layers", "refittable", "serialize")
ENGINE_9 = (*ENGINE, "create_serialization_config", "serialize_with_config")
STREAMING = ("streamable_weights_size", "weight_streaming_budget_v2")
REFIT = ("refit_cuda_engine", "set_named_weights")
REFIT_ASYNC = (*REFIT, "refit_cuda_engine_async", "get_weights_location", "unset_named_weights")
FAULT_8 = ("code", "desc", "file", "func", "line", "node")
FAULT_10 = (*FAULT_8, "node_name", "node_operator", "local_function_stack", "local_function_stack_size")


def release_8(version: str = "8.6.1") -> SimpleNamespace:
    return SimpleNamespace(
        __version__=version,
        BuilderFlag=_enum(*FLAGS_8),
        NetworkDefinitionCreationFlag=_enum("EXPLICIT_BATCH", "EXPLICIT_PRECISION"),
        HardwareCompatibilityLevel=_enum("NONE", "AMPERE_PLUS"),
        ProfilingVerbosity=_enum("LAYER_NAMES_ONLY", "DETAILED", "NONE"),
        MemoryPoolType=_enum(*POOLS),
        TacticSource=_enum(*TACTICS),
        DataType=_enum("FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8"),
        ICudaEngine=_class(*ENGINE, "device_memory_size"),
        Refitter=_class(*REFIT),
        OnnxParser=_class("parse", "parse_from_file"),
        ParserError=_class(*FAULT_8),
    )


def release_9(version: str = "9.3.0") -> SimpleNamespace:
    return _later(
        release_8(version),
        BuilderFlag=_enum(*FLAGS_9),
        NetworkDefinitionCreationFlag=_enum("EXPLICIT_BATCH", "STRONGLY_TYPED"),
        SerializationFlag=_enum("EXCLUDE_WEIGHTS", "EXCLUDE_LEAN_RUNTIME"),
        **_types("FLOAT", "HALF", "BF16", "INT8", "INT32", "INT64", "BOOL", "UINT8", "FP8"),
        IProgressMonitor=_class("phase_start"),
        ICudaEngine=_class(*ENGINE_9, "device_memory_size"),
        Refitter=_class(*REFIT_ASYNC),
    )


def release_10(version: str = "10.13.0.35") -> SimpleNamespace:
    return _later(
        release_9(version),
        BuilderFlag=_enum(*FLAGS_10),
        NetworkDefinitionCreationFlag=_enum("EXPLICIT_BATCH", "STRONGLY_TYPED", *PLUGINS),
        HardwareCompatibilityLevel=_enum("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
        MemoryPoolType=_enum(*POOLS, "TACTIC_SHARED_MEMORY"),
        **_types(
            *("FLOAT", "HALF", "BF16", "INT8", "INT32", "INT64", "BOOL", "UINT8", "FP8", "INT4", "FP4", "E8M0"),
        ),
        ICudaEngine=_class(*ENGINE_9, *STREAMING, "device_memory_size", "device_memory_size_v2"),
        Refitter=_class(*REFIT_ASYNC, "get_weights_prototype"),
        OnnxParser=_class("parse", "parse_from_file", "load_initializer"),
        ParserError=_class(*FAULT_10),
    )


def release_10_14(version: str = "10.14.1.48") -> SimpleNamespace:
    flags = _enum("EXCLUDE_WEIGHTS", "EXCLUDE_LEAN_RUNTIME", "INCLUDE_REFIT")
    return _later(release_10(version), SerializationFlag=flags)


def release_11(version: str = "11.2.1.2") -> SimpleNamespace:
    return _later(
        release_10_14(version),
        BuilderFlag=_enum(*FLAGS_11),
        NetworkDefinitionCreationFlag=_enum("STRONGLY_TYPED", *PLUGINS),
        TacticSource=_enum(*OWN_TACTICS),
        ICudaEngine=_class(*ENGINE_9, *STREAMING, "device_memory_size_v2"),
    )


RELEASES: dict[str, Callable[[], SimpleNamespace]] = {
    "8.6": release_8,
    "9.3": release_9,
    "10.13": release_10,
    "10.14": release_10_14,
    "11.2": release_11,
}


def _later(release: SimpleNamespace, **names: Any) -> SimpleNamespace:  # noqa: ANN401 - enums, classes and values
    return SimpleNamespace(**{**vars(release), **names})


def _types(*names: str) -> dict[str, Any]:
    types = _enum(*names)
    return {"DataType": types, "bfloat16": types.BF16, "int64": types.INT64}


def _enum(*names: str) -> Any:  # noqa: ANN401 - a class that mypy would have to know the members of
    make: Any = IntEnum
    return make("Enum", names, start=0)


def _class(*methods: str) -> Any:  # noqa: ANN401 - a class with just these
    return type("Class", (), dict.fromkeys(methods))
