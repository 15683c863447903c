"""A graph that computes without an end: its job fails once, by a deadline of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from app.definitions.parameter import InputSpec
from app.engines.work import RunWork
from app.jobs.state import State
from app.jobs.tables import Job
from tests.workers.hosting import Hosting
from tests.workers.networks import bound, checkpoint, network_of
from workers.channel.messages import (
    Benchmark,
    Benchmarked,
    EngineFile,
    Outcome,
    Ran,
    Request,
    Run,
    Verified,
    Verify,
)
from workers.engine_host.tensors import write_tensors
from workers.jobs.attempt import run_job
from workers.jobs.steps import Steps
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def endless(worker: Worker, tmp_path: Path) -> EngineFile:
    """An engine whose one Loop goes on for as long as a value is what it always is."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["a", "a"], ["b"]),
            helper.make_node("ReduceMax", ["b"], ["m"], keepdims=0),
            helper.make_node("Equal", ["m", "m"], ["co"]),
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
        helper.make_node("Loop", ["", "yes", "scaled"], ["y"], body=body),
    ]
    inputs = (InputSpec("x", "F32", (1,)),)
    yes = {"yes": np.ones((), np.bool_)}
    network = network_of(tmp_path / "definition.onnx", nodes, {"w": ("F32", (1,))}, inputs, {"y": "F32"}, yes)
    hosting = Hosting(worker.host, tmp_path)
    return hosting.build(network, bound(network, checkpoint(tmp_path / "a.safetensors", network.weights(1))))[1]


@pytest.mark.parametrize("what", ["verification", "run", "benchmark"])
def test_what_computes_without_an_end_is_killed_and_not_tried_again(
    worker: Worker,
    post: Callable[[], str],
    endless: EngineFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    write_tensors(str(tmp_path / "in"), {"x": np.zeros(1, np.float32)})
    requests: dict[str, tuple[Request, type[Outcome]]] = {
        "verification": (Verify(endless), Verified),
        "run": (Run(endless, str(tmp_path / "in"), str(tmp_path / "out")), Ran),
        "benchmark": (Benchmark(endless, 10, 1, str(tmp_path / "report")), Benchmarked),
    }
    deadline = "verification" if what == "verification" else "run"

    def compute(_job: object, _worker: Worker, watch: Watch) -> Any:  # noqa: ANN401 - never returns
        return watch.ask(*requests[what])

    steps: Steps[RunWork, Any, Any] = Steps(RunWork, lambda *_: None, compute, lambda *_: {})
    monkeypatch.setattr("workers.jobs.attempt.steps_of", lambda _kind: steps)
    worker.settings = worker.settings.model_copy(update={f"{deadline}_deadline_s": 0.3, "job_deadline_s": 20.0})
    job_id = post()
    run_job(worker, job_id)
    with worker.database.reading() as session:
        job = session.get_one(Job, job_id)
        assert job.error is not None
        assert (job.state, job.attempt, job.error["code"]) == (State.FAILED, 1, f"{deadline}_timeout")
        assert f"ENGINESMITH_{deadline.upper()}_DEADLINE_S" in job.error["detail"]
    assert worker.host.pid is None
