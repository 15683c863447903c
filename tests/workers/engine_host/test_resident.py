import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from tests.workers.hosting import Hosting
from tests.workers.networks import Network, bound, checkpoint, perceptron
from tests.workers.processes import status_bytes
from workers.channel.host import EngineHost
from workers.channel.messages import Residency
from workers.channel.process import Reach
from workers.engine_host.backends.base import LoadedEngine
from workers.engine_host.backends.onnxruntime.backend import SESSION_BYTES
from workers.engine_host.resident import MAX_ENGINES, ResidentEngines
from workers.engine_host.run_inputs import fixed_inputs
from workers.engine_host.tensors import MappedFiles

MIB = 1 << 20


def put(resident: ResidentEngines, key: str, nbytes: int, root_plan: str = "plan") -> LoadedEngine:
    """Keep as much of an engine as is kept track of."""
    engine = cast("LoadedEngine", SimpleNamespace(nbytes=nbytes))
    resident.put(key, engine, root_plan)
    return engine


def test_the_engine_unused_for_longest_goes_first() -> None:
    resident = ResidentEngines(limit=30)
    for name in "abc":
        put(resident, name, 10)
    assert resident.get("a")

    put(resident, "d", 10)

    assert [name for name in "abcd" if resident.get(name)] == ["a", "c", "d"]
    assert resident.residency == Residency(3, 30)


def test_an_engine_larger_than_the_limit_stays_while_it_is_the_last_used() -> None:
    resident = ResidentEngines(limit=30)
    put(resident, "small", 10)
    put(resident, "large", 100)
    assert not resident.get("small")
    assert resident.get("large")

    put(resident, "small", 10)
    assert not resident.get("large")


def test_room_is_made_before_loading() -> None:
    resident = ResidentEngines(limit=30)
    for name in "abc":
        put(resident, name, 10)
    resident.make_room(15)
    assert [name for name in "abc" if resident.get(name)] == ["c"]

    resident.make_room(25)

    assert resident.residency == Residency(0, 0)


def test_the_same_key_replaces() -> None:
    resident = ResidentEngines(limit=30)
    put(resident, "a", 10)
    put(resident, "a", 20)
    assert resident.residency == Residency(1, 20)


def test_an_engine_is_taken_by_its_key_and_is_resident_no_more() -> None:
    resident = ResidentEngines(limit=30)
    wanted = put(resident, "a", 10)
    put(resident, "b", 10)
    assert resident.take("a", "plan") is wanted
    assert resident.get("a") is None
    assert resident.residency == Residency(1, 10)


def test_where_its_key_is_not_there_the_last_used_engine_of_the_same_plan_is_taken() -> None:
    resident = ResidentEngines(limit=100)
    put(resident, "a", 10)
    last = put(resident, "b", 10)
    put(resident, "c", 10, root_plan="another")
    assert resident.take("unknown", "plan") is last
    assert resident.take("unknown", "none such") is None


def test_clearing_says_whether_there_was_anything() -> None:
    resident = ResidentEngines(limit=30)
    put(resident, "a", 10)
    assert resident.clear()
    assert resident.residency == Residency(0, 0)
    assert not resident.clear()


def test_an_engine_that_was_taken_and_is_lost_counts_as_given_up_once() -> None:
    resident = ResidentEngines(limit=30)
    put(resident, "a", 10)
    resident.take("a", "plan")
    assert resident.clear()
    assert not resident.clear()

    put(resident, "a", 10)
    resident.put("b", cast("LoadedEngine", resident.take("a", "plan")), "plan")
    resident.take("b", "plan")
    resident.make_room(1)  # for the next request, which is not helped by what an earlier one lost
    assert not resident.clear()


def test_an_engine_is_dropped_where_it_is_there() -> None:
    resident = ResidentEngines(limit=30)
    put(resident, "a", 10)
    resident.drop("unknown")
    resident.drop("a")
    assert resident.residency == Residency(0, 0)


def test_a_host_gives_up_engines_beyond_its_limit_and_loads_them_again(tmp_path: Path) -> None:
    network = perceptron(tmp_path / "definition.onnx")
    host = EngineHost("cpu", 2 * SESSION_BYTES + MIB, tmp_path / "scratch", Reach(writable=(tmp_path,)))
    hosting = Hosting(host, tmp_path)
    try:
        sources = [
            bound(network, checkpoint(tmp_path / f"{seed}.safetensors", network.weights(seed))) for seed in range(4)
        ]
        _, engine = hosting.build(network, sources[0])
        inputs = fixed_inputs(network.inputs, ())
        first = hosting.run(engine, inputs)["y"].copy()
        for one in sources[1:]:
            hosting.refit(network, engine, one)
        assert host.describe().resident.engines == 2

        np.testing.assert_array_equal(hosting.run(engine, inputs)["y"], first)
        assert host.describe().resident.engines == 2
    finally:
        host.close()


def test_a_stored_value_is_viewed_not_copied(tmp_path: Path) -> None:
    tensor = checkpoint(tmp_path / "a.safetensors", {"w": np.arange(8, dtype=np.float32)})["w"]
    files = MappedFiles()

    view, again = files.view(tensor), files.view(tensor)

    assert not view.flags.writeable
    assert np.shares_memory(view, again)
    np.testing.assert_array_equal(view, np.arange(8))


BARE = """
import sys
import numpy as np, onnxruntime as ort
plan, checkpoint, *ranges = sys.argv[1:]
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
options.intra_op_num_threads = 1
names, values = [], []
for one in ranges:
    name, offset, count, width = one.split(":")
    shape = (int(count) // int(width), int(width)) if name.endswith("weight") else (int(count),)
    names.append(name)
    values.append(np.memmap(checkpoint, np.float32, "r", int(offset), shape))
options.add_external_initializers(names, [ort.OrtValue.ortvalue_from_numpy(value) for value in values])
session = ort.InferenceSession(plan, options, providers=["CPUExecutionProvider"])
print(open("/proc/self/status").read())
"""


@pytest.fixture
def large(tmp_path: Path) -> Network:
    """256 MiB of weights in four matrices."""
    return perceptron(tmp_path / "large.onnx", width=4096, depth=4)


def test_binding_takes_no_more_memory_than_a_bare_session(hosting: Hosting, large: Network, tmp_path: Path) -> None:
    weights = {
        name: np.full(shape, index / 1e4, np.float32)
        for index, (name, (_, shape)) in enumerate(large.parameters.items())
    }
    path = tmp_path / "large.safetensors"
    tensors = checkpoint(path, weights)
    del weights

    built, _ = hosting.build(large, bound(large, tensors))

    ours = status_bytes(Path(f"/proc/{hosting.host.pid}/status").read_text(), "VmHWM")
    ranges = [f"{name}:{one.offset}:{one.nbytes // 4}:4096" for name, one in tensors.items()]
    bare = subprocess.run(
        [sys.executable, "-c", BARE, built.plan, str(path), *ranges], capture_output=True, text=True, check=True
    )
    assert ours <= status_bytes(bare.stdout, "VmHWM")


def test_a_parent_that_does_not_fit_beside_its_child_goes_before_the_child_is_loaded(tmp_path: Path) -> None:
    network = perceptron(tmp_path / "definition.onnx", width=512)
    host = EngineHost("cpu", SESSION_BYTES + 3 * MIB, tmp_path / "scratch", Reach(writable=(tmp_path,)))
    hosting = Hosting(host, tmp_path)
    try:
        a, b = (
            bound(network, checkpoint(tmp_path / f"{seed}.safetensors", network.weights(seed))) for seed in range(2)
        )
        _, parent = hosting.build(network, a)

        refitted, child = hosting.refit(network, parent, b)

        assert not refitted.warm
        assert host.describe().resident.engines == 1
        assert hosting.verify(child).ok
    finally:
        host.close()


def test_engines_are_given_up_when_they_are_too_many() -> None:
    resident = ResidentEngines(limit=1000)
    for number in range(MAX_ENGINES + 3):
        put(resident, str(number), 1)
    assert resident.residency.engines == MAX_ENGINES
    assert not resident.get("2")
    assert resident.get("3")
