"""What stands in for TensorRT in other tests has names that TensorRT's own bindings have."""

from collections.abc import Iterable
from types import SimpleNamespace

import pytest

from tests.workers.engine_host.backends.tensorrt import stand_ins
from tests.workers.engine_host.backends.tensorrt.releases import EVERY, RELEASES, release, release_8, release_10

CLASSES = {
    "Builder": stand_ins.Builder,
    "IBuilderConfig": stand_ins.BuilderConfig,
    "ICudaEngine": stand_ins.CudaEngine,
    "INetworkDefinition": stand_ins.NetworkDefinition,
    "ISerializationConfig": stand_ins.SerializationConfig,
    "ITensor": stand_ins.Tensor,
    "ITimingCache": stand_ins.TimingCache,
    "OnnxParser": stand_ins.OnnxParser,
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_stand_in_has_members_of_the_bindings_only(name: str) -> None:
    assert public(dir(CLASSES[name])) <= public(dir(getattr(release_10(), name)))


def test_a_release_has_the_enums_classes_and_values_of_its_bindings() -> None:
    eight, ten = release_8(), release_10()
    assert "FP16" in eight.BuilderFlag.__members__
    assert set(eight.TensorIOMode.__members__) == {"NONE", "INPUT", "OUTPUT"}
    assert not hasattr(eight, "IProgressMonitor")
    assert not hasattr(eight.Refitter, "get_named_weights")
    assert hasattr(ten.Refitter, "get_named_weights")
    assert hasattr(ten, "float32")
    assert release("RTX 1.7.1.116").__version__ == "1.7.1.116"


def test_the_names_of_9_lie_between_those_of_its_neighbours() -> None:
    assert members(RELEASES["9.3"]()) - members(release_8()) <= members(release("10.0.1"))
    assert members(release_8()) & members(release("10.0.1")) <= members(RELEASES["9.3"]())


def test_every_release_of_the_table_can_be_stood_in_for() -> None:
    assert all(hasattr(release(label), "BuilderFlag") for label in EVERY)


def members(library: SimpleNamespace) -> set[str]:
    """The enum members and class members of a release, without enums whose values only changed their type."""
    found = set()
    for name, one in vars(library).items():
        if isinstance(one, type):
            found |= {f"{name}.{member}" for member in getattr(one, "__members__", None) or public(dir(one))}
    return found


def public(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}
