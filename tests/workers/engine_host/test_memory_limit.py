from pathlib import Path

import numpy as np
import onnx
import pytest

from app.bindings.report import ParameterBinding
from app.definitions.parameter import InputSpec
from app.processes.confinement import Measure
from tests.workers.hosting import Hosting
from tests.workers.networks import bound, checkpoint, network_of
from workers.channel.host import EngineHost
from workers.channel.job_memory import COPIES, GIB
from workers.channel.messages import BackendError, Build, ParameterSource, TensorFile
from workers.channel.process import Reach
from workers.engine_host import memory_limit as memory_limit_module
from workers.engine_host.memory_limit import MemoryLimit, memory_limit

MIB = 1 << 20
HELD = Measure(holds=True, detail="")


def test_a_job_that_takes_more_memory_than_it_may_fails_and_the_host_goes_on(tmp_path: Path) -> None:
    host = EngineHost("cpu", 1 << 30, tmp_path / "scratch", Reach(writable=(tmp_path,), job_bytes=512 * MIB))
    limited = Hosting(host, tmp_path)
    nodes = [
        onnx.helper.make_node("Expand", ["x", "shape"], ["large"]),  # a shape that the inputs hold cannot be told
        onnx.helper.make_node("Mul", ["large", "w"], ["scaled"]),
        onnx.helper.make_node("ReduceSum", ["scaled"], ["y"], keepdims=0),
    ]
    inputs = (InputSpec("x", "F32", ("n",)), InputSpec("shape", "I64", (2,)))
    network = network_of(tmp_path / "definition.onnx", nodes, {"w": ("F32", (1,))}, inputs, {"y": "F32"})
    try:
        _, engine = limited.build(network, bound(network, checkpoint(tmp_path / "a.safetensors", network.weights(1))))
        few = {"x": np.ones(64, np.float32), "shape": np.array([4, 64])}
        many = few | {"shape": np.array([10_000_000, 64])}
        first = limited.run(engine, few), host.pid
        with pytest.raises(BackendError, match="raise ENGINESMITH_JOB_MEMORY_BYTES") as caught:
            limited.run(engine, many)
        assert caught.value.code == "too_much_memory"
        assert (limited.run(engine, few), host.pid) == first
    finally:
        host.close()


def source(nbytes: int) -> ParameterSource:
    tensor = TensorFile("/blobs/1", 0, nbytes, "U8", (nbytes,), "0" * 64)
    return ParameterSource(ParameterBinding("w", "U8", (nbytes,), ("w",), ()), (tensor,))


@pytest.mark.parametrize(
    ("machine", "job", "most"),
    [(16 * GIB, None, 4 * GIB + COPIES * GIB), (256 * GIB, None, 32 * GIB + COPIES * GIB), (16 * GIB, GIB, GIB)],
)
def test_a_job_may_take_a_share_of_the_machine_and_its_weights_some_times(machine: int, job: int, most: int) -> None:
    request = Build("onnxruntime", "", (source(GIB),), (), "")
    assert MemoryLimit(machine, job, HELD).bytes_of(request) == most


def test_the_rest_of_the_machine_is_left_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(memory_limit_module, "machine_bytes", lambda: 8 * GIB)
    monkeypatch.setattr(memory_limit_module, "_set", lambda soft, _hard: set_to.append(soft))
    limit = memory_limit({"kind": "cpu", "memory_total": 64 * GIB}, None)
    assert (limit.machine, set_to) == (8 * GIB, [7 * GIB])
    assert "RLIMIT_DATA" in limit.measure.detail


def test_on_a_gpu_the_worker_watches_and_one_value_may_take_all_that_the_gpu_has() -> None:
    limit = memory_limit({"kind": "cuda", "memory_total": 80 * GIB}, None)
    assert limit.measure.holds
    assert "the worker ends a host" in limit.measure.detail
    assert limit.bytes_with(GIB) == 80 * GIB
    error = BackendError("run_failed", "std::bad_alloc")
    assert limit.explained(error) is error


def test_other_errors_are_told_as_they_are() -> None:
    error = BackendError("run_failed", "the shapes do not fit")
    assert MemoryLimit(GIB, None, HELD).explained(error) is error
