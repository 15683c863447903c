"""Sweeps, as clients see them, with onnxruntime."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save
from sqlalchemy import delete

from app.engines.stages import STAGES
from app.fleet import service as fleet
from app.fleet.tables import ReportedWorker
from tests.workers.networks import Network, Weights
from tests.workers.service import Service, service_with
from workers.channel.messages import BackendError
from workers.consuming import do_ready_job
from workers.jobs import kinds
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker

LEVELS = ["extended", "basic", "none"]
SWEEP: dict[str, Any] = {"definition": 1, "weights": 1, "vary": {"optimization": LEVELS}, "iterations": 6, "repeats": 3}


@pytest.fixture
def net(client: TestClient, worker: Worker, network: Network, weights: Weights) -> Service:
    """A service of which the worker has reported all that it offers, with definition 1 and weights 1."""
    worker.offered = worker.host.describe().backends
    fleet.report(worker.database, worker.report())
    return service_with(client, worker, network, weights)


def done(net: Service, body: Mapping[str, Any]) -> dict[str, Any]:
    """Post a sweep, have the worker do all there is to do, and return the sweep."""
    number = net.post("/sweeps", body)["number"]
    while do_ready_job(net.worker):
        pass
    return sweep(net, number)


def sweep(net: Service, number: int) -> dict[str, Any]:
    answer: dict[str, Any] = net.client.get(f"/v1/models/net/sweeps/{number}").json()
    return answer


def refused(net: Service, **changes: Any) -> tuple[int, str, list[str], str]:  # noqa: ANN401 - fields of the body
    answer = net.client.post("/v1/models/net/sweeps", json=SWEEP | changes)
    problem = answer.json()
    return answer.status_code, problem["code"], [one["pointer"] for one in problem["errors"]], problem["detail"]


def test_a_sweep_builds_each_variant_measures_them_in_turns_and_names_the_best(net: Service) -> None:
    posted = net.post("/sweeps", SWEEP)
    assert (posted["number"], posted["state"], posted["best"]) == (1, "queued", None)
    assert [one["label"] for one in posted["variants"]] == [f"optimization={level}" for level in LEVELS]
    assert net.job(posted["job"])["waiting"]["code"] == "jobs_under_way"
    assert net.job(posted["job"])["kind"] == "compare"

    while do_ready_job(net.worker):
        pass
    found = sweep(net, 1)
    assert found["state"] == "succeeded"
    assert [one["engine"] for one in found["variants"]] == [1, 2, 3]
    assert [one["options"] for one in found["variants"]] == [{}, {"optimization": "basic"}, {"optimization": "none"}]
    assert sorted(one["rank"] for one in found["variants"]) == [1, 2, 3]
    for one in found["variants"]:
        latency = one["latency"]
        assert 0 < latency["median"] <= latency["p95"]
        assert latency["spread"] >= 0
        assert one["error"] < 1e-4
    best = found["variants"][found["best"]["position"]]
    assert best["rank"] == 1
    assert found["best"] == {name: best[name] for name in ("position", "label", "engine")}
    assert net.client.get("/v1/models/net/sweeps").json()["data"] == [found]

    report = json.loads(net.client.get(f"/v1/blobs/{found['report']}").content)
    assert [[len(turn) for turn in one["turns"]] for one in report["engines"]] == [[2, 2, 2]] * 3
    assert report["shapes"]["x"] == found["measurement"]["shapes"]["x"]


def test_the_job_that_compares_tells_its_seconds_and_stages_as_others_do(
    net: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watch, "seconds", property(lambda _: 7.0))
    found = done(net, SWEEP)
    result = net.job(found["job"])["result"]
    assert result["seconds"] == 7.0
    assert result["stages"].keys() == {*STAGES, "measure"}
    measured = net.result("/benchmarks", {"engine": 1, "iterations": 2, "warmup": 0})
    assert (measured["seconds"], result["stages"].keys() <= measured["stages"].keys()) == (7.0, True)


def test_no_engine_within_the_tolerance_means_no_best(net: Service) -> None:
    found = done(net, SWEEP | {"tolerance": 0.0, "vary": {"optimization": ["basic", "none"]}})
    errors = [one["error"] for one in found["variants"]]
    expected = [one for one in found["variants"] if one["error"] == 0]
    assert all(error is not None for error in errors)
    assert (found["best"] is None) == (not expected)
    unverified = done(net, SWEEP | {"tolerance": 1.0, "verify": {"against": "none"}, "reuse": False})
    assert unverified["best"] is None
    assert [one["error"] for one in unverified["variants"]] == [None] * 3


def test_variants_differ_in_profiles_and_are_measured_on_given_inputs(net: Service) -> None:
    wide = [{"x": {"min": [1, 8], "opt": [4, 8], "max": [16, 8]}}]
    body = {name: value for name, value in SWEEP.items() if name != "vary"}
    variants = [{"label": "any shape"}, {"profiles": wide, "options": {"optimization": "none"}}]
    inputs = net.upload(save({"x": np.ones((3, 8), np.float32)}))
    found = done(net, body | {"variants": variants, "inputs": inputs})
    assert [one["label"] for one in found["variants"]] == ["any shape", "optimization=none, profiles=1"]
    assert [one["profiles"] for one in found["variants"]] == [[], wide]
    assert net.job(found["job"])["result"]["shapes"] == {"x": [3, 8]}


def test_a_variant_whose_build_fails_is_left_out_and_an_equal_engine_is_reused(
    net: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    net.result("/builds", {"definition": 1, "weights": 1})
    build = kinds.KINDS["build"]

    def compute(job: Any, worker: Worker, watch: Any) -> Any:  # noqa: ANN401 - as the kind has them
        if job.spec.options == {"optimization": "none"}:
            raise BackendError("graph_refused", "No kernel for Foo.")
        return build.compute(job, worker, watch)

    monkeypatch.setitem(kinds.KINDS, "build", replace(build, compute=compute))
    found = done(net, SWEEP)
    assert [one["state"] for one in found["variants"]] == ["succeeded", "succeeded", "failed"]
    assert [one["engine"] for one in found["variants"]] == [1, 2, None]
    assert "No kernel for Foo" in found["variants"][2]["left_out"]
    assert [one["rank"] is None for one in found["variants"]] == [False, False, True]


def test_if_no_build_succeeds_there_is_nothing_to_compare(net: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(*_: object) -> None:
        raise BackendError("graph_refused", "No kernel for Foo.")

    build = kinds.KINDS["build"]
    monkeypatch.setitem(kinds.KINDS, "build", replace(build, compute=compute))
    found = done(net, SWEEP)
    assert (found["state"], found["best"]) == ("failed", None)
    assert net.job(found["job"])["error"]["code"] == "nothing_to_compare"


def test_to_cancel_a_sweep_cancels_its_jobs(net: Service) -> None:
    posted = net.post("/sweeps", SWEEP)
    assert do_ready_job(net.worker)
    found = net.post("/sweeps/1/cancel", {})
    assert [one["state"] for one in found["variants"]] == ["succeeded", "canceled", "canceled"]
    assert (found["state"], net.job(posted["job"])["state"]) == ("canceled", "canceled")
    assert not do_ready_job(net.worker)


def test_an_idempotency_key_gives_the_same_sweep(net: Service) -> None:
    first, second = (
        net.client.post("/v1/models/net/sweeps", json=SWEEP, headers={"Idempotency-Key": "k"}) for _ in range(2)
    )
    assert first.headers["Location"] == second.headers["Location"] == "/v1/models/net/sweeps/1"
    assert first.json()["variants"] == second.json()["variants"]
    assert len(net.client.get("/v1/models/net/sweeps").json()["data"]) == 1


def test_without_a_worker_a_sweep_waits_like_any_build(net: Service) -> None:
    with net.worker.database.transaction() as session:
        session.execute(delete(ReportedWorker))
    assert done(net, SWEEP)["state"] == "succeeded"


def test_what_cannot_be_compared_is_refused_and_the_variant_named(net: Service) -> None:
    status, code, pointers, detail = refused(net, vary={"optimization": ["none", "most"]})
    assert (status, code, pointers) == (422, "invalid_options", ["/vary/optimization/1"])
    assert "optimization=most" in detail
    assert refused(net, vary={"optimization": ["none", "none"]})[:3] == (422, "equal_variants", ["/vary"])
    assert refused(net, vary={"optimization": ["none"] * 7, "seed": [*range(7)]})[1] == "too_many_variants"
    assert refused(net, vary={"profiles": ["x"]})[1:3] == ("invalid_profiles", ["/vary/profiles/0"])
    assert refused(net, variants=[{}])[1] == "invalid_request"
    one_by_one = {"vary": None, "variants": [{}, {"options": {"optimization": "most"}}]}
    assert refused(net, **one_by_one)[2] == ["/variants/1/options/optimization"]
    namesakes = [{"label": "a"}, {"label": "a", "options": {"optimization": "none"}}]
    assert "label" in refused(net, vary=None, variants=namesakes)[3]
    wrong = [{"x": {"min": [1, 9], "opt": [4, 8], "max": [16, 8]}}]
    assert refused(net, vary={"profiles": [[], wrong]})[2] == ["/vary/profiles/1/0/x/min/1"]
    assert refused(net, vary={})[1] == "invalid_request"
    assert refused(net, vary=None)[3].startswith("The request does not fit the schema: /: give either `vary`")
    assert refused(net, shapes={"x": [2, 9]})[1] == "invalid_shapes"
    assert refused(net, inputs="sha256:" + "0" * 64)[2] == ["/inputs"]
    assert net.client.get("/v1/models/net/sweeps/9").json()["code"] == "sweep_not_found"
