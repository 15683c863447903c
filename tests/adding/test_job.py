"""A kind of job that is added goes the way of our own, from its route to its result."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.adding import toy_job
from tests.workers.networks import perceptron
from tests.workers.service import service_with
from workers.jobs import kinds
from workers.jobs.worker import Worker

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_a_kind_of_job_is_posted_done_and_told(
    app: FastAPI, client: TestClient, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kinds.KINDS, toy_job.WeighWork.kind, toy_job.STEPS)
    app.include_router(toy_job.router, prefix="/v1")
    network = perceptron(tmp_path / "network.onnx")
    net = service_with(client, worker, network, network.weights(seed=1))
    net.result("/builds", {"definition": 1, "weights": 1})
    plan = client.get("/v1/models/net/engines/1").json()["plan_bytes"]

    job = net.do("/weighings", {"engine": 1})
    assert (job["kind"], job["state"], job["result"]) == ("weigh", "succeeded", {"plan_bytes": plan})
    assert client.post("/v1/models/net/weighings", json={"engine": 2}).json()["code"] == "engine_not_found"


def test_a_worker_without_the_kind_says_so_and_goes_on(
    app: FastAPI, client: TestClient, worker: Worker, tmp_path: Path
) -> None:
    app.include_router(toy_job.router, prefix="/v1")
    network = perceptron(tmp_path / "network.onnx")
    net = service_with(client, worker, network, network.weights(seed=1))
    net.result("/builds", {"definition": 1, "weights": 1})

    job = net.do("/weighings", {"engine": 1})
    assert (job["state"], job["error"]["code"]) == ("failed", "unknown_work")
    assert "upgrade this worker" in job["error"]["detail"]
    assert net.result("/engines/1/verify", {})["ok"]
