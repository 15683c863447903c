"""An engine host that the kernel holds to no limit, as on a GPU, is held to one by its worker."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from app.definitions.parameter import InputSpec
from tests.workers.hosting import Hosting
from tests.workers.networks import bound, checkpoint, network_of
from workers.channel.host import EngineHost
from workers.channel.job_memory import job_bytes
from workers.channel.messages import BackendError, EngineFile
from workers.channel.process import Reach

MIB, GIB = 1 << 20, 1 << 30
WITHOUT_LIMITS = """
import resource
def refuse(*_arguments):
    raise ValueError("as if the system refused")
resource.setrlimit = refuse
"""


@pytest.fixture
def unlimited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosting:
    """A host that can set no limit, whose jobs may take 256 MiB."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(WITHOUT_LIMITS)
    monkeypatch.setenv("PYTHONPATH", str(modules))
    host = EngineHost("cpu", 1 << 30, tmp_path / "scratch", Reach(writable=(tmp_path,), job_bytes=256 * MIB))
    return Hosting(host, tmp_path)


def engine_that_grows(hosting: Hosting) -> EngineFile:
    """Return one that makes a value of as many bytes as its inputs say, and then computes without an end."""
    body = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["large"], ["m"], keepdims=0),
            helper.make_node("Equal", ["m", "m"], ["co"]),
            helper.make_node("Identity", ["a"], ["b"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("ci", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("co", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["scaled"]),
        helper.make_node("Expand", ["scaled", "shape"], ["large"]),
        helper.make_node("Loop", ["", "yes", "scaled"], ["y"], body=body),
    ]
    inputs = (InputSpec("x", "F32", (1,)), InputSpec("shape", "I64", (1,)))
    network = network_of(
        hosting.folder / "definition.onnx",
        nodes,
        {"w": ("F32", (1,))},
        inputs,
        {"y": "F32"},
        {"yes": np.ones((), np.bool_)},
    )
    weights = bound(network, checkpoint(hosting.folder / "a.safetensors", network.weights(1)))
    return hosting.build(network, weights)[1]


def test_a_host_that_takes_more_memory_than_its_job_may_is_ended_and_the_next_one_serves(unlimited: Hosting) -> None:
    try:
        assert "the worker ends a host" in unlimited.host.describe().confinement["memory"]["detail"]
        engine, first = engine_that_grows(unlimited), unlimited.host.pid
        with pytest.raises(BackendError, match="raise ENGINESMITH_JOB_MEMORY_BYTES") as caught:
            unlimited.run(engine, {"x": np.ones(1, np.float32), "shape": np.array([128 * MIB])})
        assert caught.value.code == "too_much_memory"
        assert unlimited.host.pid is None
        engine_that_grows(unlimited)
        assert unlimited.host.pid != first
    finally:
        unlimited.host.close()


def test_a_compiler_for_gpus_may_take_more_than_one_for_a_cpu() -> None:
    measured = 19 * GIB  # of TensorRT 8.6 with weights of 2.5 GiB
    assert job_bytes(5 * GIB // 2, 64 * GIB, gpu=True) > measured
    assert job_bytes(GIB, 64 * GIB, gpu=True) == 2 * job_bytes(GIB, 64 * GIB, gpu=False)


def test_the_kernel_ends_a_host_before_its_worker(hosting: Hosting) -> None:
    hosting.host.describe()
    assert int(Path(f"/proc/{hosting.host.pid}/oom_score_adj").read_text()) >= 500
