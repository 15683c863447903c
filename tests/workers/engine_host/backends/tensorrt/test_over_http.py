"""A worker on a machine without a GPU that offers TensorRT-RTX for building, as clients see it."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from onnx import helper

from app.database import Database
from app.definitions.parameter import InputSpec
from app.fleet import service as fleet
from app.settings import Settings
from tests.workers.engine_host.backends.tensorrt.cpu_compilation import needs_rtx
from tests.workers.networks import Network, network_of, perceptron
from tests.workers.service import Service, service_with
from workers.engine_host.backends.tensorrt.library import NAME, trt
from workers.jobs.attempt import run_job
from workers.jobs.worker import Worker, open_worker

pytestmark = [needs_rtx, pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)]

PROFILE = {"x": {"min": [1, 8], "opt": [4, 8], "max": [16, 8]}}


@pytest.fixture
def worker(settings: Settings, database: Database) -> Iterator[Worker]:
    """A worker as `enginesmith worker --device cpu` makes it, known to the fleet."""
    with open_worker(settings, "cpu") as worker:
        fleet.report(database, worker.report())
        yield worker


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return perceptron(tmp_path / "network.onnx")


@pytest.fixture
def net(client: TestClient, worker: Worker, network: Network) -> Service:
    return service_with(client, worker, network, network.weights(seed=1))


def request_of(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    body = {"definition": 1, "weights": 1, "backend": NAME, "profiles": [PROFILE], "verify": {"against": "none"}}
    return body | changes


def refusal(net: Service, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = net.client.post(f"/v1/models/net{path}", json=body)
    assert answer.status_code == 422, answer.text
    problem: dict[str, Any] = answer.json()
    return problem


def test_the_fleet_shows_a_backend_that_builds_only(net: Service, worker: Worker) -> None:
    (shown,) = net.client.get("/v1/workers").json()["data"]
    offer = shown["backends"][NAME]
    can = offer["capabilities"]

    assert offer["version"] == trt.__version__
    assert offer["makes"][0] == f"{trt.__version__}/SM80"
    assert offer["loads"] == []
    assert [can[what] for what in ("build", "refit", "run")] == [True, False, False]
    assert "SM86" in can["options"]["compute_capability"]["enum"]
    assert "without a GPU" in can["lacks"]["refit=all"]
    assert worker.queues.count(f"enginesmith.{NAME}") == 1
    assert [queue for queue in worker.queues if queue.startswith(f"enginesmith.{NAME}.")] == [
        f"enginesmith.{NAME}.build-only"
    ]


def test_a_plan_is_built_for_another_machine_and_downloaded(net: Service) -> None:
    result = net.result(
        "/builds", request_of(options={"compute_capability": "SM86", "profiling_verbosity": "detailed"})
    )

    engine = net.client.get(f"/v1/models/net/engines/{result['engine']}").json()
    plan = net.client.get(f"/v1/models/net/engines/{result['engine']}/plan")
    digest = f"sha256:{hashlib.sha256(plan.content).hexdigest()}"
    assert (engine["backend"], engine["backend_version"]) == (NAME, trt.__version__)
    assert engine["platform"] == f"{trt.__version__}/SM86"
    assert engine["options"] == {"compute_capability": "SM86", "profiling_verbosity": "detailed"}
    assert (engine["plan_digest"], engine["plan_bytes"]) == (digest, len(plan.content))
    assert plan.headers["etag"] == f'"{digest}"'
    assert engine["verification"] == {"ok": None, "against": "none"}
    assert engine["refittable"] is False


def test_an_equal_build_is_the_same_engine_and_another_target_another(net: Service) -> None:
    first = net.result("/builds", request_of())
    again = net.post("/builds", request_of(options={"compute_capability": "SM80"}))  # the default
    other = net.result("/builds", request_of(options={"compute_capability": "SM89"}))
    assert (again["state"], again["result"]["engine"]) == ("succeeded", first["engine"])
    assert other["engine"] != first["engine"]


def test_an_option_it_lacks_is_refused_at_once_with_the_reason(net: Service) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"refit": "all"}, "an engine cannot be made refittable"),
        ({"strip_weights": True}, "an engine cannot be made refittable"),
        ({"precision": "fp16"}, "make a definition with precision fp16"),
        ({"hardware_compatibility": "ampere_plus"}, "ignores it"),
        ({"timing_cache": False}, "times nothing"),
        ({"compute_capability": "SM90"}, "'SM90' is not one of"),
    ]
    for options, reason in refused:
        problem = refusal(net, "/builds", request_of(options=options))
        assert problem["code"] == "invalid_options"
        (error,) = problem["errors"]
        assert error["pointer"] == f"/options/{next(iter(options))}"
        assert reason in error["detail"]


def test_a_build_that_nothing_could_verify_is_not_verified_unless_it_is_asked_for(net: Service) -> None:
    body = {name: value for name, value in request_of().items() if name != "verify"}
    problem = refusal(net, "/builds", body | {"verify": {"against": "finite"}})
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("cannot_verify", "/verify/against")
    assert '"verify": {"against": "none"}' in problem["detail"]
    engine = net.result("/builds", body)["engine"]
    found = net.client.get(f"/v1/models/net/engines/{engine}").json()
    assert found["verification"] == {"ok": None, "against": "none"}


def test_a_build_to_be_verified_that_was_posted_before_the_worker_came_is_refused_before_it_compiles(
    net: Service, worker: Worker, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.forget(database, worker.id)
    job_id = net.post("/builds", request_of(verify={"against": "reference"}))["id"]
    monkeypatch.setattr(worker.host, "call", lambda *_args, **_options: pytest.fail("the engine host was asked"))
    run_job(worker, job_id)
    job = net.job(job_id)
    assert (job["state"], job["error"]["code"]) == ("failed", "cannot_verify")
    assert '{"against": "none"}' in job["error"]["detail"]


def test_dynamic_inputs_without_a_profile_are_refused_with_one_that_works(net: Service) -> None:
    problem = refusal(net, "/builds", request_of(profiles=[]))
    assert problem["code"] == "profiles_required"
    assert [error["pointer"] for error in problem["errors"]] == ["/profiles"]
    example = problem["detail"].partition('"profiles": ')[2].removesuffix(".")
    assert net.result("/builds", request_of(profiles=json.loads(example)))["engine"] == 1


def test_dynamic_inputs_without_a_profile_fail_the_job_of_a_build_posted_before_the_worker_came(
    net: Service, worker: Worker, database: Database
) -> None:
    fleet.forget(database, worker.id)
    job = net.do("/builds", request_of(profiles=[]))
    assert (job["state"], job["error"]["code"]) == ("failed", "profiles_required")


def test_an_engine_made_without_refit_support_is_not_refitted(net: Service) -> None:
    engine = net.result("/builds", request_of())["engine"]
    problem = refusal(net, "/refits", {"engine": engine, "weights": 1})
    assert problem["code"] == "engine_not_refittable"


def test_what_tensorrt_says_stands_among_the_jobs_events(net: Service) -> None:
    job = net.do("/builds", request_of())
    events = net.client.get(f"/v1/jobs/{job['id']}/events", headers={"accept": "application/json"}).json()["data"]
    said = " ".join(str(event) for event in events)
    assert "Opset version" in said
    assert "compile" in said


def test_a_definition_that_tensorrt_refuses_is_refused_before_and_fails_its_job_in_its_words(
    client: TestClient, worker: Worker, tmp_path: Path
) -> None:
    nodes = [helper.make_node("Det", ["x"], ["d"], name="determinant"), helper.make_node("Mul", ["d", "w"], ["y"])]
    inputs = (InputSpec("x", "F32", (4, 8, 8)),)
    network = network_of(tmp_path / "net.onnx", nodes, {"w": ("F32", (64,))}, inputs, {"y": "F32"})
    net = service_with(client, worker, network, network.weights(1))

    problem = refusal(net, "/builds", request_of(profiles=[]))
    assert problem["code"] == "preflight_refused"
    assert "Det (determinant)" in problem["detail"]

    job = net.do("/builds", request_of(profiles=[], preflight="ignore"))
    assert job["state"] == "failed"
    assert job["error"]["code"] == "graph_refused"
    assert "Det 'determinant'" in job["error"]["detail"]
