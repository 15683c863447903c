"""Builds, refits, runs and verifications from the call to the answer, with nothing stood in for."""

import os
import signal
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save
from sqlalchemy import select

from app.artifacts.store import ArtifactStore
from app.artifacts.tables import BlobUse
from app.engines.stages import STAGES
from app.fleet import service as fleet
from tests.workers.networks import Network, Weights
from tests.workers.service import Service, computed, service_with
from workers.channel.host import EngineHost
from workers.channel.process import EngineHostProcess
from workers.jobs.attempt import run_job
from workers.jobs.worker import Worker

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture
def net(client: TestClient, worker: Worker, network: Network, weights: Weights) -> Service:
    """A service with a model "net": definition 1 and weights 1, from one ONNX file."""
    return service_with(client, worker, network, weights)


@pytest.fixture
def x() -> Array:
    return np.random.default_rng(7).standard_normal((3, 8)).astype(np.float32)


def test_a_build_publishes_an_engine_that_computes_the_definition(net: Service, weights: Weights, x: Array) -> None:
    result = net.result("/builds", {"definition": 1, "weights": 1})
    assert (result["engine"], result["method"], result["reused"]) == (1, "build", False)
    assert result["seconds"] > 0
    assert result["stages"].keys() > {*STAGES}
    assert result["stages"]["compile"]["seconds"] > 0
    np.testing.assert_allclose(net.run(1, x), computed(weights, x), rtol=1e-5, atol=1e-6)
    detail = net.client.get("/v1/models/net/engines/1").json()
    assert detail["verification"]["ok"] is True
    assert detail["verification"]["outputs"]["y"]["cosine"] == pytest.approx(1)


def test_a_refit_publishes_a_new_engine_with_the_new_weights_and_leaves_the_old(
    net: Service, weights: Weights, x: Array
) -> None:
    net.result("/builds", {"definition": 1, "weights": 1})
    changed = {"1.weight": np.asarray(weights["1.weight"]) * 2}
    result = net.result("/refits", {"engine": 1, "weights": net.add_weights(changed)})
    assert (result["engine"], result["method"], result["changed"], result["warm"]) == (2, "refit", 1, True)
    assert tuple(result["stages"]) == STAGES
    nbytes = {name: one["bytes"] for name, one in result["stages"].items() if one["bytes"]}
    assert nbytes["check"] == changed["1.weight"].nbytes  # the others were checked when the parent was built
    assert nbytes["refit"] == sum(np.asarray(one).nbytes for one in weights.values())
    assert all(result["stages"][name]["seconds"] > 0 for name in ("queue", "bind", "transform", "refit", "verify"))
    assert net.client.get("/v1/models/net/engines/2").json()["timings"] == {
        "total": result["seconds"],
        **{name: one["seconds"] for name, one in result["stages"].items()},
    }
    np.testing.assert_allclose(net.run(2, x), computed({**weights, **changed}, x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net.run(1, x), computed(weights, x), rtol=1e-5, atol=1e-6)
    assert net.engines()[0]["parent"] == 1


def test_a_refit_of_a_refit_works_after_the_host_has_forgotten_both(net: Service, weights: Weights, x: Array) -> None:
    net.result("/builds", {"definition": 1, "weights": 1})
    second = {"0.bias": np.asarray(weights["0.bias"]) + 1}
    third = {"1.bias": np.asarray(weights["1.bias"]) - 1}
    net.result("/refits", {"engine": 1, "weights": net.add_weights(second)})
    net.worker.host.close()
    result = net.result("/refits", {"engine": 2, "weights": net.add_weights(third, base=2)})
    assert (result["engine"], result["warm"]) == (3, False)
    np.testing.assert_allclose(net.run(3, x), computed({**weights, **second, **third}, x), rtol=1e-5, atol=1e-6)


def test_an_equal_engine_made_since_the_job_was_posted_is_reused(net: Service) -> None:
    first, second = (net.post("/builds", {"definition": 1, "weights": 1})["id"] for _ in range(2))
    run_job(net.worker, first)
    run_job(net.worker, second)
    assert net.job(second)["result"] == {"engine": 1, "reused": True, "method": "reuse"}
    assert len(net.engines()) == 1


def test_an_equal_engine_is_built_again_where_reuse_is_off(net: Service) -> None:
    body = {"definition": 1, "weights": 1, "reuse": False}
    assert [net.result("/builds", body)["engine"] for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("against", ["none", "finite", "rebuild"])
def test_an_engine_is_verified_as_asked(net: Service, against: str) -> None:
    net.result("/builds", {"definition": 1, "weights": 1, "verify": {"against": against}})
    verification = net.client.get("/v1/models/net/engines/1").json()["verification"]
    assert verification["against"] == against


def test_an_engine_that_fails_its_verification_is_not_published(net: Service, weights: Weights) -> None:
    nan = {"1.bias": np.full_like(weights["1.bias"], np.nan)}
    job = net.do(
        "/builds",
        {"definition": 1, "weights": net.add_weights(nan), "allow_non_finite": True, "verify": {"against": "finite"}},
    )
    assert (job["state"], job["error"]["code"], job["attempt"]) == ("failed", "verification_failed", 1)
    assert job["error"]["figures"]["outputs"]["y"]["finite"] is False
    assert net.engines() == []


def test_a_published_engine_can_be_verified_again(net: Service) -> None:
    net.result("/builds", {"definition": 1, "weights": 1, "verify": {"against": "none"}})
    result = net.result("/engines/1/verify", {"against": "reference"})
    assert result["ok"] is True
    assert result["outputs"]["y"]["max_abs"] < 1e-3


def test_a_benchmark_answers_its_figures_and_a_report_with_every_sample(net: Service) -> None:
    net.result("/builds", {"definition": 1, "weights": 1})
    result = net.result("/benchmarks", {"engine": 1, "iterations": 20, "warmup": 2, "shapes": {"x": [5, 8]}})
    assert 0 < result["latency"]["median"] <= result["latency"]["p99"]
    assert result["latency"]["throughput"] == pytest.approx(1 / result["latency"]["mean"])
    assert (result["not_refittable"], result["ratio"]) == (None, None)
    assert result["shapes"] == {"x": [5, 8]}
    assert result["seconds"] > 0
    document = net.client.get(f"/v1/blobs/{result['report']}").json()
    assert len(document["engine"]["samples"]) == 20
    assert document["engine"]["layers"] == result["layers"] != []
    assert result["layers_omitted"] == 0


def test_the_report_of_a_benchmark_is_kept_for_as_long_as_its_job(net: Service) -> None:
    net.result("/builds", {"definition": 1, "weights": 1})
    job = net.do("/benchmarks", {"engine": 1, "iterations": 1, "layers": False})
    with net.worker.database.reading() as session:
        kept_for = session.scalars(select(BlobUse.owner).where(BlobUse.digest == job["result"]["report"])).all()
    assert kept_for == [f"job:{job['id']}"]
    assert job["result"]["layers"] == []


def test_a_plan_that_was_tampered_with_is_never_loaded_and_a_build_mends_it(net: Service, store: ArtifactStore) -> None:
    net.result("/builds", {"definition": 1, "weights": 1})
    plan = store.local_path(net.engines()[0]["plan_digest"])
    content = plan.read_bytes()
    plan.chmod(0o600)
    plan.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    net.worker.host.close()
    run = {"engine": 1, "inputs": net.upload(save({"x": np.zeros((1, 8), np.float32)}))}
    job = net.do("/runs", run)
    assert (job["state"], job["error"]["code"]) == ("failed", "plan_damaged")
    net.result("/builds", {"definition": 1, "weights": 1, "reuse": False})  # gives the same plan, to the byte
    assert net.do("/runs", run)["state"] == "succeeded"


def test_an_engine_tells_of_the_device_it_was_compiled_for_and_its_refits_inherit_that(net: Service) -> None:
    net.worker.device_fingerprint = net.worker.host.describe().device["fingerprint"]
    net.result("/builds", {"definition": 1, "weights": 1})
    net.add_weights({"0.bias": np.zeros(8, np.float32)})
    net.result("/refits", {"engine": 1, "weights": 2})
    fleet.report(net.worker.database, net.worker.report())
    built, refitted = (
        net.client.get(f"/v1/models/net/engines/{number}").json()["device_fingerprint"] for number in (1, 2)
    )
    (worker,) = net.client.get("/v1/workers").json()["data"]
    assert built == worker["device"]["fingerprint"] | {"to_load": []}  # onnxruntime's plans are graphs
    assert refitted == built
    manifest = net.client.get("/v1/models/net/engines/2/manifest").json()
    assert manifest["backend"]["device_fingerprint"] == built


def test_inputs_that_do_not_fit_fail_the_run_with_the_reason(net: Service) -> None:
    net.result("/builds", {"definition": 1, "weights": 1})
    job = net.do("/runs", {"engine": 1, "inputs": net.upload(save({"x": np.zeros((1, 9), np.float32)}))})
    assert job["state"] == "failed"
    assert "x" in job["error"]["detail"]


@pytest.mark.slow
def test_a_job_whose_engine_host_is_killed_is_tried_again(net: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_once = [signal.SIGKILL]
    within_memory = EngineHost._within_memory

    def killed(host: EngineHost, process: EngineHostProcess, *args: Any) -> Any:  # noqa: ANN401 - stands in for the method
        """Kill the host when it has been found alive, and before it is asked."""
        if kill_once:
            os.kill(process.pid, kill_once.pop())
        return within_memory(host, process, *args)

    monkeypatch.setattr(EngineHost, "_within_memory", killed)
    job_id = net.post("/builds", {"definition": 1, "weights": 1})["id"]
    run_job(net.worker, job_id)
    assert net.job(job_id)["state"] == "queued"
    run_job(net.worker, job_id)
    job = net.job(job_id)
    assert (job["state"], job["attempt"], job["result"]["engine"]) == ("succeeded", 2, 1)
