"""Modules with the names that releases of TensorRT have.

Those of the releases on PyPI are the names of their own Python bindings, as far as the adapter uses the classes
(benchmarks/results/tensorrt-releases.json). PyPI has no bindings of 9: its names are those of 8.6 with what the sources
of its Python bindings add (python/src in github.com/NVIDIA/TensorRT).
"""

from collections.abc import Callable
from enum import IntEnum
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

from benchmarks.tensorrt_bindings.spans import within
from benchmarks.tensorrt_bindings.table import written

FLAGS_9 = (
    *("FP16", "BF16", "INT8", "DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "TF32", "SPARSE_WEIGHTS"),
    *("SAFETY_SCOPE", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS", "DIRECT_IO"),
    *("REJECT_EMPTY_ALGORITHMS", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "FP8", "ERROR_ON_TIMING_CACHE_MISS"),
    *("DISABLE_COMPILATION_CACHE", "WEIGHTLESS"),
)
TYPES_9 = ("FLOAT", "HALF", "BF16", "INT8", "INT32", "INT64", "BOOL", "UINT8", "FP8")
SERIALIZES_9 = ("create_serialization_config", "serialize_with_config")
REFITS_9 = ("refit_cuda_engine_async", "get_weights_location", "unset_named_weights")
ENUM_ATTRIBUTES = {"name", "value"}


def release(label: str, version: str | None = None) -> SimpleNamespace:
    """The names of a release of the table, by its label there; `version` gives it another version."""
    found = {name: _made(members) for name, members in _names(label).items()}
    return SimpleNamespace(**found, __version__=version or label.removeprefix("RTX "))


def release_8(version: str = "8.6.1") -> SimpleNamespace:
    return release("8.6.1", version)


def release_9(version: str = "9.3.0") -> SimpleNamespace:
    eight = release_8(version)
    types = _enum(*TYPES_9)
    return SimpleNamespace(
        **{
            **vars(eight),
            "BuilderFlag": _enum(*FLAGS_9),
            "NetworkDefinitionCreationFlag": _enum("EXPLICIT_BATCH", "STRONGLY_TYPED"),
            "SerializationFlag": _enum("EXCLUDE_WEIGHTS", "EXCLUDE_LEAN_RUNTIME"),
            "DataType": types,
            "bfloat16": types.BF16,
            "int64": types.INT64,
            "IProgressMonitor": _class("phase_start"),
            "ICudaEngine": _class(*vars(eight.ICudaEngine), *SERIALIZES_9),
            "Refitter": _class(*vars(eight.Refitter), *REFITS_9),
        }
    )


def release_10(version: str = "10.13.0.35") -> SimpleNamespace:
    return release("10.13.0.35", version)


def release_11(version: str = "11.2.1.2") -> SimpleNamespace:
    return release("11.2.1.2", version)


RELEASES: dict[str, Callable[[], SimpleNamespace]] = {
    "8.6": release_8,
    "9.3": release_9,
    "10.13": release_10,
    "10.14": partial(release, "10.14.1.48.post1"),
    "11.2": release_11,
}
EVERY = tuple(one["release"] for one in written()["releases"])
ENUMS = frozenset(name.rpartition(".")[0] for name in written()["members"] if name.endswith(".value"))


@cache
def _names(label: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return what each name of a release is, an enum, a class or a value, and its members."""
    members = [name for name, having in written()["members"].items() if label in within(having, EVERY)]
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name in (one for one in members if "." not in one):
        inner = tuple(one.rpartition(".")[2] for one in members if one.rpartition(".")[0] == name)
        found[name] = ("enum" if name in ENUMS else "class" if inner else "value", inner)
    return found


def _made(named: tuple[str, tuple[str, ...]]) -> Any:  # noqa: ANN401 - a class, or an object in place of a value
    kind, members = named
    if kind == "enum":
        return _enum(*(name for name in members if name not in ENUM_ATTRIBUTES))
    return _class(*members) if kind == "class" else object()


def _enum(*names: str) -> Any:  # noqa: ANN401 - a class that mypy would have to know the members of
    make: Any = IntEnum
    return make("Enum", names, start=0)


def _class(*methods: str) -> Any:  # noqa: ANN401 - a class with just these
    names = [name for name in methods if not name.startswith("__")]
    return type("Class", (), dict.fromkeys(names))
