"""What the adapter uses of TensorRT's Python API, found by mypy's types of every expression in its source.

The types are those of the stubs of TensorRT 10.13 (see the Makefile). What has no type there, because it is looked up
by a string or belongs to other releases alone, is in `UNTYPED`.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mypy import build
from mypy.modulefinder import BuildSource
from mypy.nodes import CallExpr, Expression, MemberExpr, NameExpr
from mypy.options import Options
from mypy.types import CallableType, Instance, Type, UnionType, get_proper_type

from benchmarks.tensorrt_bindings.callbacks import CALLBACKS

ROOT: Final = Path(__file__).parents[2]
ADAPTER: Final = "workers/engine_host/backends/tensorrt"
STUBS: Final = "tensorrt_bindings.tensorrt."


@dataclass(frozen=True, slots=True, order=True)
class Use:
    """A member that the adapter uses, and how it calls it: how many arguments without a name, and which with one.

    `owner` is the class or enum, or empty if the module itself is the owner. `positional` is -1 if it is not called.
    """

    owner: str
    member: str
    positional: int = -1
    keywords: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name within the module, as "Refitter.set_named_weights"."""
        return f"{self.owner}.{self.member}" if self.owner else self.member


UNTYPED: Final = (
    # looked up by a string
    *(Use("BuilderFlag", name) for name in ("REFIT", "REFIT_INDIVIDUAL", "STRIP_PLAN", "FP16", "VERSION_COMPATIBLE")),
    *(Use("BuilderFlag", name) for name in ("EXCLUDE_LEAN_RUNTIME", "WEIGHT_STREAMING", "DISABLE_TIMING_CACHE")),
    *(Use("ProfilingVerbosity", name) for name in ("LAYER_NAMES_ONLY", "DETAILED", "NONE")),
    *(Use("", name) for name in ("float32", "float16", "bfloat16", "fp8", "int8", "uint8", "int32", "int64", "bool")),
    # of an object that the stubs give no type to
    *(Use("OnnxParser", "num_errors"), Use("OnnxParser", "get_error", 1)),
    # of TensorRT-RTX alone
    *(Use("IBuilderConfig", "num_compute_capabilities"), Use("IBuilderConfig", "set_compute_capability", 2)),
)


def adapter_uses(folder: str = ADAPTER) -> tuple[Use, ...]:
    """Return every use, sorted; raises RuntimeError if mypy has no types for the adapter."""
    files = sorted((ROOT / folder).glob("*.py"))
    types = _types(files)
    return tuple(sorted({*UNTYPED, *_members(types), *_calls(types), *_overrides(files)}))


def _types(files: list[Path]) -> dict[Expression, Type]:
    """Return the type of each expression; of all that the adapter imports, only the stubs are read."""
    options = Options()
    options.export_types = options.preserve_asts = options.check_untyped_defs = True
    options.explicit_package_bases = options.namespace_packages = True
    options.incremental, options.follow_imports, options.python_executable = False, "skip", sys.executable
    silent = {"follow_imports": "silent", "follow_untyped_imports": True}
    packages = ("tensorrt", "tensorrt.*", "tensorrt_bindings", "tensorrt_bindings.*")
    options.per_module_options = {name: dict[str, object](silent) for name in packages}
    options.mypy_path = [str(ROOT)]
    modules = [(str(file), ".".join(file.relative_to(ROOT).with_suffix("").parts)) for file in files]
    result = build.build([BuildSource(path, module) for path, module in modules], options)
    if result.errors:
        raise RuntimeError(f"mypy has no types for the adapter: {result.errors[0]}")
    return result.types


def _members(types: dict[Expression, Type]) -> Iterator[Use]:
    for one in types:
        if isinstance(one, MemberExpr):
            for owner in _owners(one, types):
                yield Use(owner, one.name)


def _calls(types: dict[Expression, Type]) -> Iterator[Use]:
    for one in types:
        if not isinstance(one, CallExpr) or not isinstance(one.callee, MemberExpr):
            continue
        names = [name for name in one.arg_names if name is not None]
        starred = any(kind.is_star() for kind in one.arg_kinds)
        for owner in _owners(one.callee, types):
            if not starred:
                yield Use(owner, one.callee.name, len(one.args) - len(names), tuple(names))


def _owners(expression: MemberExpr, types: dict[Expression, Type]) -> Iterator[str]:
    """Yield the names of the classes of TensorRT that an attribute is looked up in; "" is the module itself."""
    base = expression.expr
    if isinstance(base, NameExpr) and base.name == "trt":
        yield ""
    elif base in types:
        yield from (name.removeprefix(STUBS) for name in _classes(types[base]) if name.startswith(STUBS))


def _classes(of: Type) -> Iterator[str]:
    one: Any = get_proper_type(of)
    if isinstance(one, UnionType):
        for item in one.items:
            yield from _classes(item)
    elif isinstance(one, CallableType) and one.is_type_obj():  # an enum or a class itself
        yield one.type_object().fullname
    elif isinstance(one, Instance):
        yield one.type.fullname


def _overrides(files: list[Path]) -> Iterator[Use]:
    """Yield the methods of classes that TensorRT calls back: those that derive from one of its own."""
    for file in files:
        for one in ast.walk(ast.parse(file.read_text())):
            if not isinstance(one, ast.ClassDef):
                continue
            bases = [base.attr for base in one.bases if isinstance(base, ast.Attribute) and _is_trt(base.value)]
            methods = [each for each in one.body if isinstance(each, ast.FunctionDef)]
            for base in bases:
                yield from (Use(base, each.name) for each in methods if each.name in CALLBACKS[base])


def _is_trt(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "trt"
