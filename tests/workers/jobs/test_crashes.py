"""A compiler that crashes on the same graph twice: what the job says, and what becomes of later builds."""

import signal
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, update

from app.engines.crashes import take_down
from app.engines.work import BuildWork
from app.fleet import service as fleet
from app.fleet.backend_offer import BackendOffer
from app.fleet.tables import ReportedWorker
from app.jobs.tables import Job
from tests.workers.crashing import CRASHES_AT, crash_hosts
from tests.workers.networks import Network, Weights
from tests.workers.service import Service, service_with
from workers.channel.host import EngineHostDied, EngineHostNotStarted
from workers.jobs.attempt import run_job
from workers.jobs.crashes import is_crash, layer_in
from workers.jobs.memory_deaths import EngineHostOutOfMemory
from workers.jobs.worker import Worker

VERSION = version("onnxruntime")
BUILD: dict[str, Any] = {"definition": 1, "weights": 1}


@pytest.fixture
def net(client: TestClient, worker: Worker, network: Network, weights: Weights) -> Service:
    """A service of which the worker has reported, with definition 1 and weights 1."""
    fleet.report(worker.database, worker.report())
    return service_with(client, worker, network, weights)


@pytest.fixture
def marked(net: Service) -> Service:
    """The same, and the worker's version of onnxruntime has crashed at the definition."""
    job_id = net.post("/builds", BUILD)["id"]
    with net.worker.database.transaction() as session:
        work = BuildWork.read(session.get_one(Job, job_id).request)
        take_down(session, work, VERSION, job_id=job_id, layer="/conv", detail="It was killed by SIGSEGV.")
    net.client.post(f"/v1/jobs/{job_id}/cancel")
    return net


def refusal(net: Service, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = net.client.post(f"/v1/models/net{path}", json=body)
    assert answer.status_code == 409, answer.text
    problem: dict[str, Any] = answer.json()
    return problem


def crashes_of(net: Service) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = net.client.get("/v1/models/net/definitions/1").json()["crashes"]
    return found


@pytest.mark.slow
def test_the_second_crash_fails_the_job_with_what_was_being_compiled_and_marks_it(
    net: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    crash_hosts(monkeypatch, tmp_path / "site")
    net.worker.host.close()
    job_id = net.post("/builds", BUILD)["id"]
    run_job(net.worker, job_id)
    assert net.job(job_id)["state"] == "queued"
    run_job(net.worker, job_id)
    assert not run_job(net.worker, job_id)

    job = net.job(job_id)
    error = job["error"]
    assert (job["state"], job["attempt"], error["code"]) == ("failed", 2, "engine_host_died_twice")
    assert error["figures"] == {"layer": CRASHES_AT}
    assert all(words in error["detail"] for words in (CRASHES_AT, "SIGSEGV"))
    assert f"Applying graph transformer {CRASHES_AT}" in error["log"][-1]
    events = net.client.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert not any("onnxruntime:" in line for one in events for line in one["data"].get("lines", ()))
    (crash,) = crashes_of(net)
    told = (crash["backend"], crash["backend_version"], crash["layer"], crash["job"])
    assert told == ("onnxruntime", VERSION, CRASHES_AT, job_id)
    problem = refusal(net, "/builds", BUILD)
    assert problem["code"] == "compiler_crashes"
    assert all(words in problem["detail"] for words in (job_id, CRASHES_AT, "retry_crashed"))


def test_what_a_compiler_crashed_at_is_refused_whatever_the_weights(marked: Service) -> None:
    marked.add_weights({"0.bias": np.zeros(8, np.float32)})
    for path, body in (("/builds", BUILD | {"weights": 2}), ("/engines", {"weights": 2})):
        assert refusal(marked, path, body)["code"] == "compiler_crashes"
    assert marked.post("/builds", BUILD | {"options": {"optimization": "none"}})["state"] == "queued"
    assert marked.client.get("/v1/models/net/definitions").json()["data"][0]["crashes"] == crashes_of(marked)


def test_the_check_of_a_build_tells_that_the_compiler_crashes_at_it(marked: Service) -> None:
    answer = marked.post("/builds/check", BUILD)
    assert (answer["ok"], [one["taken"] for one in answer["verdicts"]]) == (False, [True])
    assert answer["problem"] == refusal(marked, "/builds", BUILD)["detail"]
    assert marked.post("/builds/check", BUILD | {"retry_crashed": True})["ok"] is True
    assert marked.post("/builds/check", BUILD | {"versions": ["0.1"]})["problem"] is None


def test_a_build_that_was_queued_before_does_not_crash_its_worker_again(marked: Service) -> None:
    with marked.worker.database.transaction() as session:
        session.execute(delete(ReportedWorker))  # nobody knows yet which version will take the job
    job = marked.do("/builds", BUILD)
    assert (job["state"], job["error"]["code"]) == ("failed", "compiler_crashes")


def test_a_retry_that_is_asked_for_is_done_and_clears_the_mark(marked: Service) -> None:
    assert marked.result("/builds", BUILD | {"retry_crashed": True})["method"] == "build"
    assert crashes_of(marked) == []


def test_another_version_of_the_backend_is_not_refused_and_gets_the_job(marked: Service) -> None:
    newer = BackendOffer(version="99.0", makes=("cpu",), loads=("cpu",))
    report = replace(marked.worker.report(), id="host:2:newer", backends={"onnxruntime": newer})
    fleet.report(marked.worker.database, report)
    job = marked.do("/builds", BUILD)  # by a worker that is not the newer one
    assert (job["state"], job["attempt"], job["waiting"]["code"]) == ("queued", 0, "outage")
    assert "99.0" in job["waiting"]["detail"]
    marked.worker.offered = {"onnxruntime": newer}
    with marked.worker.database.transaction() as session:
        session.execute(update(Job).values(again_at=None))
    run_job(marked.worker, job["id"])
    assert marked.job(job["id"])["state"] == "succeeded"


def test_a_build_does_not_wait_for_a_version_whose_workers_are_of_another_platform(net: Service) -> None:
    body = BUILD | {"device": net.worker.report().device["name"]}
    job_id = net.post("/builds", body)["id"]
    elsewhere = BackendOffer(version="99.0", makes=("elsewhere",), loads=("elsewhere",))
    fleet.report(
        net.worker.database, replace(net.worker.report(), id="host:2:newer", backends={"onnxruntime": elsewhere})
    )
    with net.worker.database.transaction() as session:
        work = BuildWork.read(session.get_one(Job, job_id).request)
        take_down(session, work, VERSION, job_id=job_id, layer=None, detail="It was killed by SIGSEGV.")
    run_job(net.worker, job_id)
    assert net.job(job_id)["error"]["code"] == "compiler_crashes"


@pytest.mark.parametrize(
    ("died", "crash"),
    [
        (EngineHostDied("", status=-signal.SIGSEGV), True),
        (EngineHostDied("", status=-signal.SIGABRT), True),
        (EngineHostDied("", status=1), True),
        (EngineHostDied("", status=-9), False),  # SIGKILL, as the kernel sends it if memory runs out
        (EngineHostDied("", status=-signal.SIGTERM), False),
        (EngineHostDied("it sent nonsense", status=None), False),
        (EngineHostNotStarted("", status=-signal.SIGSEGV), False),
        (EngineHostOutOfMemory("", status=-signal.SIGABRT), False),
    ],
)
def test_only_a_host_that_ended_by_itself_has_crashed(died: EngineHostDied, *, crash: bool) -> None:
    assert is_crash(died) is crash


@pytest.mark.parametrize(
    ("lines", "layer"),
    [
        (["Parsing node: /conv/Conv [Conv]", "Searching for input: x"], "/conv/Conv [Conv]"),
        (
            [
                "=============== Computing costs for /conv/Conv + /relu/Relu",
                "--------------- Timing Runner: /conv/Conv + /relu/Relu (CaskConvolution[0x80000009])",
                "Tactic: 0x866e7a5f6401b67f Time: 1.84978",
            ],
            "/conv/Conv + /relu/Relu",
        ),
        (["--------------- Timing Runner: Conv_131 (CudnnConvolution)"], "Conv_131"),
        (
            [
                "--------------- Timing Runner: a (CaskConvolution[0x80000009])",
                "=============== Computing costs for {ForeignNode[onnx::Cast_19359...Slice_16473]}",
                "*************** Autotuning format combination: Half(1,1) -> Half(1,1) ***************",
            ],
            "{ForeignNode[onnx::Cast_19359...Slice_16473]}",
        ),
        (
            [
                "--------------- Timing Runner: {ForeignNode[1.bias...node_of_y]} (Myelin[0x80000023])",
                ">>>>>>>>>>>>>>> Chose Runner Type: Myelin Tactic: 0x0000000000000000",
                "=============== Computing reformatting costs for available format set",
                "After reformat layers: 1 layers",
                " (foreignNode) Using legacy CPU-only mode.",
            ],
            "{ForeignNode[1.bias...node_of_y]}",
        ),
        (["Parsing node: a [Add]", "Original: 12 layers", "After vertical fusions: 1 layers"], None),
        (["Parsing node: a [Add]", "[V] Engine generation completed in 3.2 seconds."], None),
        (["Segmentation fault"], None),
        ([], None),
    ],
)
def test_the_layer_is_read_from_the_end_of_the_log(lines: list[str], layer: str | None) -> None:
    assert layer_in(lines) == layer
