"""Builds looked at before they are queued, as clients see it. No device and no TensorRT are needed."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from onnx import helper

from app.children.house import House
from app.children.limits import ChildLimits
from app.database import Database
from app.definitions.parameter import InputSpec
from app.engines import preflight
from app.jobs import service as jobs
from app.jobs.queue import queue_of
from app.jobs.tables import Job
from app.settings import Settings
from tests.engines.workbench import Workbench
from tests.workers.networks import network_of
from tests.workers.service import with_weights
from workers.engine_host.backends.tensorrt.parser_tables import parser_tables

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

CHECK = "/v1/models/net/builds/check"
TABLES = [one.releases[0] for one in parser_tables() if one.library == "tensorrt"]


@pytest.fixture
def hardmax(client: TestClient, tmp_path: Path) -> dict[str, Any]:
    """The request for a build of y = Hardmax(x * w), which TensorRT 8.6 does not know and 10.0 does."""
    nodes = [helper.make_node("Mul", ["x", "w"], ["h"]), helper.make_node("Hardmax", ["h"], ["y"], name="hard")]
    network = network_of(
        tmp_path / "net.onnx", nodes, {"w": ("F32", (8,))}, (InputSpec("x", "F32", (4, 8)),), {"y": "F32"}
    )
    content = with_weights(network, network.weights(1))
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert client.put(f"/v1/blobs/{digest}", content=content).status_code == 201
    assert client.post("/v1/models", json={"name": "net"}).status_code == 201
    assert client.post("/v1/models/net/definitions", json={"onnx": digest}).status_code == 201
    return {"definition": 1, "backend": "tensorrt"}


@pytest.fixture
def bench(database: Database, settings: Settings) -> Workbench:
    return Workbench(database, settings)


def add_gpu(bench: Workbench, version: str, gpu: str = "H100", **capabilities: Any) -> None:  # noqa: ANN401 - JSON
    """Let a worker report that it has TensorRT."""
    can = {"preflight": "before jobs", "options": {"refit": {"default": "all"}}} | capabilities
    bench.add_worker("tensorrt", version, device=gpu, platforms=[f"{version}/{gpu}"], capabilities=can)


def check(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(CHECK, json=body)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def test_without_a_worker_each_known_version_has_a_verdict(client: TestClient, hardmax: dict[str, Any]) -> None:
    answer = check(client, hardmax)
    assert [one["version"] for one in answer["verdicts"]] == TABLES
    assert [(one["version"], one["taken"]) for one in answer["verdicts"] if not one["alive"]][:3] == [
        ("8.6", False),
        ("9", True),
        ("10.0", True),
    ]
    assert answer["ok"] is True
    (finding,) = answer["verdicts"][0]["refused"]
    assert (finding["operator"], finding["nodes"]) == ("Hardmax", ["hard"])
    assert answer["verdicts"][0]["refittable"]["count"] == 1
    assert "its options were not looked at" in answer["notes"][0]
    assert client.get("/v1/jobs").json()["data"] == []


def test_the_versions_of_the_workers_alive_are_asked_about(
    client: TestClient, hardmax: dict[str, Any], bench: Workbench
) -> None:
    add_gpu(bench, "8.6.1")
    answer = check(client, hardmax)
    assert [(one["version"], one["alive"], one["taken"]) for one in answer["verdicts"]] == [("8.6.1", True, False)]
    assert (answer["ok"], answer["notes"]) == (False, [])
    asked = check(client, hardmax | {"versions": ["10.0.1"]})
    assert [(one["version"], one["alive"], one["taken"]) for one in asked["verdicts"]] == [("10.0.1", False, True)]


def test_a_check_refuses_what_a_build_would_refuse(client: TestClient, hardmax: dict[str, Any]) -> None:
    for fault, code in (
        ({"definition": 9}, "definition_not_found"),
        ({"backend": "abacus"}, "backend_unknown"),
        ({"profiles": [{"z": {}}]}, "invalid_profiles"),
        ({"rules": [{}]}, "bad_rule"),
        ({"versions": ["../8"]}, "invalid_request"),
        ({"versions": ["banana"]}, "invalid_request"),
    ):
        assert client.post(CHECK, json=hardmax | fault).json()["code"] == code


def test_a_check_refuses_a_verification_that_a_build_would_refuse(
    client: TestClient, hardmax: dict[str, Any], bench: Workbench
) -> None:
    bench.add_worker("tensorrt", "10.0.1", platforms=["10.0.1/H100"], loads=())
    body = hardmax | {"verify": {"against": "reference"}}
    assert client.post("/v1/models/net/builds", json=body).json()["code"] == "cannot_verify"
    assert client.post(CHECK, json=body).json()["code"] == "cannot_verify"


def test_onnxruntime_is_asked_itself(client: TestClient, hardmax: dict[str, Any]) -> None:
    answer = check(client, hardmax | {"backend": "onnxruntime"})
    (verdict,) = answer["verdicts"]
    assert (verdict["taken"], answer["ok"]) == (True, True)
    assert "onnxruntime" in verdict["source"]


def test_a_backend_that_tells_nothing_is_answered_so(
    client: TestClient, hardmax: dict[str, Any], bench: Workbench
) -> None:
    bench.add_worker("slide_rule", "1.0", platforms=["wood"])
    answer = check(client, hardmax | {"backend": "slide_rule"})
    assert (answer["ok"], answer["verdicts"]) == (None, [])
    assert "tells nothing" in answer["problem"]


def test_a_build_that_every_worker_refuses_is_refused(
    client: TestClient, hardmax: dict[str, Any], bench: Workbench
) -> None:
    add_gpu(bench, "8.6.1")
    add_gpu(bench, "8.6.0", "H200")
    for path in ("builds", "engines"):
        body = hardmax | ({"weights": 1} if path == "engines" else {})
        answer = client.post(f"/v1/models/net/{path}", json=body)
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (422, "preflight_refused")
        assert "Hardmax (hard)" in problem["errors"][0]["detail"]
        assert 'another backend: "onnxruntime"' in problem["detail"]
        assert '"preflight": "ignore"' in problem["detail"]
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_sweep_is_refused_where_its_builds_are(client: TestClient, hardmax: dict[str, Any], bench: Workbench) -> None:
    add_gpu(bench, "8.6.1")
    sweep = hardmax | {"vary": {"refit": ["all", "none"]}}
    problem = client.post("/v1/models/net/sweeps", json=sweep).json()
    assert problem["code"] == "preflight_refused"
    assert problem["detail"].startswith("Variant 'refit=all': tensorrt 8.6.1 does not take the definition")
    assert client.get("/v1/jobs").json()["data"] == []
    assert client.post("/v1/models/net/sweeps", json=sweep | {"preflight": "ignore"}).status_code == 202


def test_who_knows_better_has_it_queued(client: TestClient, hardmax: dict[str, Any], bench: Workbench) -> None:
    add_gpu(bench, "8.6.1")
    for path in ("builds", "engines"):
        body = hardmax | {"weights": 1, "preflight": "ignore"}
        assert client.post(f"/v1/models/net/{path}", json=body).status_code == 202


def test_a_build_goes_to_the_workers_that_take_it(
    client: TestClient, hardmax: dict[str, Any], bench: Workbench
) -> None:
    add_gpu(bench, "8.6.1", "H100")
    add_gpu(bench, "10.0.1", "H200")
    job = client.post("/v1/models/net/builds", json=hardmax).json()
    assert stored(bench, job["id"]).queue == queue_of("tensorrt", "10.0.1/H200")


def test_what_was_compiled_before_is_not_refused(client: TestClient, hardmax: dict[str, Any], bench: Workbench) -> None:
    add_gpu(bench, "8.6.1")
    job = client.post("/v1/models/net/builds", json=hardmax | {"preflight": "ignore"}).json()
    bench.publish(stored(bench, job["id"]), version="8.6.1", platform="8.6.1/H100")
    again = client.post("/v1/models/net/builds", json=hardmax | {"reuse": False})
    assert again.status_code == 202


def stored(bench: Workbench, job: str) -> Job:
    with bench.database.reading() as session:
        return jobs.get_job(session, job)


def test_the_same_idempotency_key_gives_the_same_job_whatever_the_workers_are_now(
    client: TestClient, hardmax: dict[str, Any], bench: Workbench
) -> None:
    first = client.post("/v1/models/net/builds", json=hardmax, headers={"Idempotency-Key": "k"})
    add_gpu(bench, "8.6.1")
    second = client.post("/v1/models/net/builds", json=hardmax, headers={"Idempotency-Key": "k"})
    assert first.json()["id"] == second.json()["id"]
    assert client.post("/v1/models/net/builds", json=hardmax).status_code == 422


def test_a_worker_that_does_not_say_so_is_not_asked_before_jobs(
    client: TestClient, hardmax: dict[str, Any], bench: Workbench
) -> None:
    add_gpu(bench, "8.6.1", preflight=None)
    assert client.post("/v1/models/net/builds", json=hardmax).status_code == 202


def test_the_same_definition_is_looked_at_once(
    client: TestClient, hardmax: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = check(client, hardmax)
    monkeypatch.setattr(House, "child", lambda *_: pytest.fail("asked a child again"))
    assert check(client, hardmax) == first


def test_a_full_house_is_busy(app: FastAPI, client: TestClient, hardmax: dict[str, Any]) -> None:
    app.state.preflights._house = House(app.state.children.server, Path(), children=0, waiting=0)
    answer = client.post(CHECK, json=hardmax)
    assert (answer.status_code, answer.json()["code"]) == (503, "busy")


@pytest.mark.parametrize(("address_space", "wall_s"), [(1 << 20, 60.0), (1 << 32, 0.001)], ids=["fails", "stalls"])
def test_a_look_that_comes_to_nothing_refuses_nothing(
    client: TestClient,
    hardmax: dict[str, Any],
    bench: Workbench,
    monkeypatch: pytest.MonkeyPatch,
    address_space: int,
    wall_s: float,
) -> None:
    def none_of_it(_size: int) -> ChildLimits:
        return ChildLimits(address_space, file_size=1 << 20, cpu_s=60, wall_s=wall_s)

    monkeypatch.setattr(preflight, "_limits", none_of_it)
    add_gpu(bench, "8.6.1")
    assert check(client, hardmax)["ok"] is None
    assert client.post("/v1/models/net/builds", json=hardmax).status_code == 202


def test_the_estimate_is_of_builds_that_are_most_alike(
    client: TestClient, hardmax: dict[str, Any], bench: Workbench
) -> None:
    nothing = check(client, hardmax)["estimate"]
    assert (nothing["basis"], nothing["seconds"], nothing["weights_bytes"]) == ("none", None, 32)
    job = client.post("/v1/models/net/builds", json=hardmax).json()
    bench.publish(stored(bench, job["id"]), version="10.0.1", platform="10.0.1/H100", fixed_parameters=["w"])
    same = check(client, hardmax)["estimate"]
    assert (same["basis"], same["builds"], same["seconds"], same["plan_bytes"]) == ("same_recipe", 1, 0.5, 10)
    assert same["fixed_parameters"] == ["w"]
    assert same["memory_bytes"] == 32 + 10 + same["largest_value"]["bytes"]
    other = check(client, hardmax | {"options": {"refit": ["w"]}})["estimate"]
    assert (other["basis"], other["seconds"], other["fixed_parameters"]) == ("same_definition", 0.5, [])


def test_an_engine_of_the_same_recipe_in_another_model_is_an_estimate_too(
    client: TestClient, hardmax: dict[str, Any], bench: Workbench
) -> None:
    job = client.post("/v1/models/net/builds", json=hardmax).json()
    bench.publish(stored(bench, job["id"]), version="10.0.1", platform="10.0.1/H100", fixed_parameters=["w"])
    digest = client.get("/v1/models/net/definitions/1").json()["source"]["onnx"]
    assert client.post("/v1/models", json={"name": "copy"}).status_code == 201
    assert client.post("/v1/models/copy/definitions", json={"onnx": digest}).status_code == 201
    answer = client.post("/v1/models/copy/builds/check", json=hardmax)
    assert answer.status_code == 200, answer.text
    estimate = answer.json()["estimate"]
    assert (estimate["basis"], estimate["fixed_parameters"]) == ("same_recipe", ["w"])
