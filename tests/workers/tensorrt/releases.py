"""Modules with the names that releases of TensorRT have, as far as the adapter looks at them.

Those of 10.13 are its type stubs' (tensorrt-stubs 10.13.0.35), those of 8.6 its Python documentation's.
"""

from types import SimpleNamespace

FLAGS_8 = (
    *("FP16", "INT8", "DEBUG", "GPU_FALLBACK", "STRICT_TYPES", "REFIT", "DISABLE_TIMING_CACHE", "TF32"),
    *("SPARSE_WEIGHTS", "SAFETY_SCOPE", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS", "DIRECT_IO"),
    *("REJECT_EMPTY_ALGORITHMS", "ENABLE_TACTIC_HEURISTIC", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "FP8"),
)
FLAGS_10 = (
    *("BF16", "DEBUG", "DIRECT_IO", "DISABLE_COMPILATION_CACHE", "DISABLE_TIMING_CACHE", "DISTRIBUTIVE_INDEPENDENCE"),
    *("EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS", "EXCLUDE_LEAN_RUNTIME", "FP16", "FP4", "FP8", "INT4"),
    *("GPU_FALLBACK", "INT8", "MONITOR_MEMORY", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"),
    *("REFIT", "REFIT_IDENTICAL", "REFIT_INDIVIDUAL", "REJECT_EMPTY_ALGORITHMS", "SAFETY_SCOPE", "SPARSE_WEIGHTS"),
    *("STRICT_NANS", "STRIP_PLAN", "TF32", "VERSION_COMPATIBLE", "WEIGHTLESS", "WEIGHT_STREAMING"),
)
TACTICS = ("CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")


def release_8(version: str = "8.6.1") -> SimpleNamespace:
    return SimpleNamespace(
        __version__=version,
        BuilderFlag=_enum(*FLAGS_8),
        NetworkDefinitionCreationFlag=_enum("EXPLICIT_BATCH", "EXPLICIT_PRECISION"),
        HardwareCompatibilityLevel=_enum("NONE", "AMPERE_PLUS"),
        TacticSource=_enum(*TACTICS),
        ICudaEngine=_class("serialize"),
        Refitter=_class("refit_cuda_engine", "set_named_weights"),
        OnnxParser=_class("parse", "parse_from_file"),
    )


def release_10(version: str = "10.13.0.35") -> SimpleNamespace:
    return SimpleNamespace(
        __version__=version,
        BuilderFlag=_enum(*FLAGS_10),
        NetworkDefinitionCreationFlag=_enum(
            "EXPLICIT_BATCH", "PREFER_AOT_PYTHON_PLUGINS", "PREFER_JIT_PYTHON_PLUGINS", "STRONGLY_TYPED"
        ),
        HardwareCompatibilityLevel=_enum("AMPERE_PLUS", "NONE", "SAME_COMPUTE_CAPABILITY"),
        SerializationFlag=_enum("EXCLUDE_LEAN_RUNTIME", "EXCLUDE_WEIGHTS"),
        TacticSource=_enum(*TACTICS),
        IProgressMonitor=_class("phase_start"),
        ICudaEngine=_class(
            "serialize", "create_serialization_config", "device_memory_size_v2", "weight_streaming_budget_v2"
        ),
        Refitter=_class(
            *("refit_cuda_engine", "refit_cuda_engine_async", "set_named_weights"),
            *("get_weights_location", "get_weights_prototype", "unset_named_weights"),
        ),
        OnnxParser=_class("parse", "parse_from_file", "load_initializer"),
        int64="DataType.INT64",
    )


def _enum(*names: str) -> SimpleNamespace:
    return SimpleNamespace(__members__={name: value for value, name in enumerate(names)})


def _class(*methods: str) -> type:
    return type("Class", (), dict.fromkeys(methods))
