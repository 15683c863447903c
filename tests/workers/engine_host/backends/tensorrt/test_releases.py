"""What stands in for TensorRT in other tests has its names: those of 10.13, whose type stubs are at hand."""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from sysconfig import get_path

import pytest

from tests.workers.engine_host.backends.tensorrt import stand_ins
from tests.workers.engine_host.backends.tensorrt.releases import release_10

STUBS = Path(get_path("purelib"), "tensorrt_bindings", "tensorrt.pyi")
LIBRARY = release_10()
ENUMS = [name for name, one in vars(LIBRARY).items() if hasattr(one, "__members__")]
CLASSES = [
    *((name, one) for name, one in vars(LIBRARY).items() if isinstance(one, type) and name not in ENUMS),
    ("Builder", stand_ins.Builder),
    ("IBuilderConfig", stand_ins.BuilderConfig),
    ("ICudaEngine", stand_ins.CudaEngine),
    ("INetworkDefinition", stand_ins.NetworkDefinition),
    ("ISerializationConfig", stand_ins.SerializationConfig),
    ("ITensor", stand_ins.Tensor),
    ("ITimingCache", stand_ins.TimingCache),
    ("OnnxParser", stand_ins.OnnxParser),
]

pytestmark = pytest.mark.skipif(not STUBS.exists(), reason="tensorrt-stubs are not installed: see the Makefile")


@pytest.mark.parametrize("name", ENUMS)
def test_an_enum_has_the_members_of_the_stubs(name: str) -> None:
    assert set(getattr(LIBRARY, name).__members__) == stubbed()[name] - {"name", "value", "itemsize"}


@pytest.mark.parametrize(("name", "stand_in"), CLASSES)
def test_a_class_has_members_of_the_stubs_only(name: str, stand_in: type) -> None:
    assert public(dir(stand_in)) <= stubbed()[name]


@cache
def stubbed() -> dict[str, set[str]]:
    """The public members of each class in the stubs."""
    module = ast.parse(STUBS.read_text())
    return {one.name: public(map(name_of, one.body)) for one in module.body if isinstance(one, ast.ClassDef)}


def name_of(member: ast.stmt) -> str:
    if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
        return member.target.id
    return member.name if isinstance(member, ast.FunctionDef) else "_"


def public(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}
