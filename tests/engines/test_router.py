"""What clients get; the decisions behind it are in test_requests.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.artifacts.service import record
from app.artifacts.store import ArtifactStore
from app.bindings.report import BindingReport
from app.bindings.service import Pair
from app.engines.requests import request_build, request_refit
from app.engines.schemas import BuildRequest, RefitRequest
from app.engines.tables import Engine
from app.registry.service import create_model
from tests.engines.workbench import Workbench, digest_of, tensor

MODEL = "/v1/models/minilm"
PLAN = b"0123456789"


@pytest.fixture
def engine(bench: Workbench, store: ArtifactStore, tmp_path: Path) -> int:
    """A published engine whose plan is in the store."""
    number = bench.publish(bench.submit(request_build, BuildRequest(definition=1, weights=1)))
    plan = tmp_path / "plan"
    plan.write_bytes(PLAN)
    digest, size = store.put_file(plan)
    with bench.database.transaction() as session:
        record(session, digest, size)
        found = session.get_one(Engine, bench.engine(number).id)
        found.plan_digest, found.plan_bytes = digest, size
    return number


def problem(client: TestClient, path: str, body: dict[str, Any]) -> tuple[int, str, list[str]]:
    answer = client.post(f"{MODEL}/{path}", json=body)
    assert answer.headers["content-type"] == "application/problem+json"
    content = answer.json()
    assert content["detail"]
    return answer.status_code, content["code"], [fault["pointer"] for fault in content["errors"]]


def test_a_build_is_accepted_as_a_job(bench: Workbench, client: TestClient) -> None:
    bench.add_worker()
    answer = client.post(f"{MODEL}/builds", json={"definition": 1, "weights": 1})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert "retry-after" in answer.headers
    assert (job["kind"], job["state"], job["model"]) == ("build", "queued", "minilm")


def test_a_benchmark_is_accepted_as_a_job(bench: Workbench, client: TestClient, engine: int) -> None:
    bench.add_worker()
    answer = client.post(f"{MODEL}/benchmarks", json={"engine": engine})
    assert (answer.status_code, answer.json()["kind"]) == (202, "benchmark")
    assert [row["id"] for row in client.get("/v1/jobs?kind=benchmark").json()["data"]] == [answer.json()["id"]]


def test_an_equal_engine_answers_200_with_a_finished_job(client: TestClient, engine: int) -> None:
    for path, body in [("builds", {"definition": 1}), ("refits", {"engine": engine}), ("engines", {})]:
        answer = client.post(f"{MODEL}/{path}", json={"weights": 1, **body})
        assert answer.status_code == 200, path
        assert answer.json()["state"] == "succeeded"
        assert answer.json()["result"] == {"engine": engine, "reused": True, "method": "reuse"}


def test_the_same_idempotency_key_gives_the_same_job(bench: Workbench, client: TestClient) -> None:
    bench.add_worker()
    first, second = (
        client.post(f"{MODEL}/builds", json={"definition": 1, "weights": 1}, headers={"Idempotency-Key": "k"})
        for _ in range(2)
    )
    assert first.json()["id"] == second.json()["id"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("builds", {"definition": 1, "weights": 1}),
        ("refits", {"engine": 1, "weights": 1}),
        ("engines", {"weights": 1}),
    ],
)
def test_the_weights_are_bound_with_no_session_open(
    app: FastAPI, client: TestClient, engine: int, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, int]
) -> None:
    assert engine == 1
    open_sessions: list[int] = []
    pool = app.state.database.engine.pool
    bind = Pair.bind

    def watched(pair: Pair, rules: Sequence[Any]) -> BindingReport:
        open_sessions.append(pool.checkedout())
        return bind(pair, rules)

    monkeypatch.setattr(Pair, "bind", watched)
    assert client.post(f"{MODEL}/{path}", json=body).status_code == 200
    assert open_sessions == [0]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("builds", {"definition": 9, "weights": 1}, (404, "definition_not_found", [])),
        ("builds", {"definition": 1, "weights": 9}, (404, "weights_not_found", [])),
        ("builds", {"definition": 1, "weights": 2}, (422, "binding_failed", ["/weights"])),
        ("builds", {"definition": 1, "weights": 1, "backend": "tensort"}, (422, "backend_unknown", ["/backend"])),
        ("builds", {"definition": 1, "weights": 1, "options": {"o": 1}}, (422, "invalid_options", ["/options/o"])),
        ("builds", {"definition": 1, "weights": 1, "device": "gpu"}, (422, "device_unknown", ["/device"])),
        ("builds", {"definition": 1, "weights": 1, "device": ""}, (422, "invalid_request", ["/device"])),
        ("engines", {"weights": 1, "device": "gpu"}, (422, "device_unknown", ["/device"])),
        ("engines", {"weights": 1, "materialise": "never"}, (422, "invalid_request", ["/materialise"])),
        ("refits", {"engine": 1, "weights": 1, "materialise": None}, (422, "invalid_request", ["/materialise"])),
        ("builds", {"definition": 1, "weights": 1, "profiles": [{"z": {}}]}, (422, "invalid_profiles", None)),
        ("builds", {"definition": 1, "weights": 1, "rules": [{}]}, (422, "bad_rule", ["/rules/0"])),
        ("builds", {"definition": 1, "weights": 1, "option": {}}, (422, "invalid_request", ["/option"])),
        ("builds", {"definition": 10**30, "weights": 1}, (422, "invalid_request", ["/definition"])),
        ("builds", {"definition": 1, "weights": 10**30}, (422, "invalid_request", ["/weights"])),
        ("refits", {"engine": 10**30, "weights": 10**30}, (422, "invalid_request", ["/engine", "/weights"])),
        ("engines", {"weights": 10**30, "definition": 10**30}, (422, "invalid_request", ["/weights", "/definition"])),
        ("runs", {"engine": 10**30, "inputs": digest_of("x")}, (422, "invalid_request", ["/engine"])),
        (f"engines/{10**30}/verify", {}, (422, "invalid_request", ["/path/number"])),
        ("builds", {"definition": 1, "weights": 1, "verify": {"against": "luck"}}, (422, "invalid_request", None)),
        *[
            ("builds", {"definition": 1, "weights": 1, "verify": verify}, expected)
            for verify, expected in (
                ({"inputs": "x"}, (422, "invalid_request", ["/verify/inputs"])),
                ({"inputs": digest_of("x")}, (422, "blob_not_found", ["/verify/inputs"])),
                ({"expected": digest_of("x")}, (422, "invalid_verify", ["/verify/expected"])),
                (
                    {"against": "finite", "inputs": digest_of("x"), "expected": digest_of("x")},
                    (422, "invalid_verify", ["/verify/expected"]),
                ),
                ({"against": "none", "inputs": digest_of("x")}, (422, "invalid_verify", ["/verify/against"])),
                ({"tolerance": {"cosine": 1.5}}, (422, "invalid_request", ["/verify/tolerance/cosine"])),
                ({"tolerance": {"relative": 1.5}}, (422, "invalid_request", ["/verify/tolerance/relative"])),
                ({"if_impossible": "shrug"}, (422, "invalid_request", ["/verify/if_impossible"])),
            )
        ],
        (
            "refits",
            {"engine": 1, "weights": 1, "verify": {"inputs": digest_of("x")}, "reuse": False},
            (422, "blob_not_found", ["/verify/inputs"]),
        ),
        ("engines", {"weights": 1, "verify": {"inputs": digest_of("x")}}, (422, "blob_not_found", ["/verify/inputs"])),
        ("engines/1/verify", {"inputs": digest_of("x")}, (422, "blob_not_found", ["/inputs"])),
        ("engines/1/verify", {"expected": digest_of("x")}, (422, "invalid_verify", ["/expected"])),
        ("refits", {"engine": 9, "weights": 1}, (404, "engine_not_found", [])),
        ("refits", {"engine": 1, "weights": 9}, (404, "weights_not_found", [])),
        ("refits", {"engine": 1, "weights": 2}, (422, "binding_failed", ["/weights"])),
        ("engines", {"weights": 9}, (404, "weights_not_found", [])),
        ("engines", {"weights": 1, "definition": 9}, (404, "definition_not_found", [])),
        ("engines", {"weights": 2}, (422, "binding_failed", ["/weights"])),
        ("runs", {"engine": 9, "inputs": digest_of("x")}, (404, "engine_not_found", [])),
        ("runs", {"engine": 1, "inputs": digest_of("x")}, (422, "blob_not_found", ["/inputs"])),
        ("runs", {"engine": 1, "inputs": "x"}, (422, "invalid_request", ["/inputs"])),
        ("benchmarks", {"engine": 9}, (404, "engine_not_found", [])),
        ("benchmarks", {"engine": 1, "iterations": 10_001}, (422, "invalid_request", ["/iterations"])),
        ("benchmarks", {"engine": 1, "warmup": -1}, (422, "invalid_request", ["/warmup"])),
        ("benchmarks", {"engine": 1, "shapes": {"x": [2, "8"]}}, (422, "invalid_request", ["/shapes/x/1"])),
        ("benchmarks", {"engine": 1, "shapes": {"x": [2, 9]}}, (422, "invalid_shapes", ["/shapes/x/1"])),
        ("benchmarks", {"engine": 1, "against": "rebuild"}, (422, "invalid_request", ["/against"])),
        ("engines/9/verify", {"against": "finite"}, (404, "engine_not_found", [])),
        ("engines/1/verify", {"against": "none"}, (422, "invalid_request", ["/against"])),
    ],
)
def test_a_bad_request_is_refused_with_a_pointer(
    bench: Workbench, client: TestClient, engine: int, path: str, body: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert engine == 1
    bench.add_worker()
    bench.add_weights(tensor("w", (4, 8), "w"))
    status, code, pointers = problem(client, path, body)
    assert (status, code) == expected[:2]
    assert expected[2] is None or pointers == expected[2]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("builds", {"definition": 1, "weights": 1}),
        ("refits", {"engine": 1, "weights": 1}),
        ("engines", {"weights": 1}),
        ("runs", {"engine": 1, "inputs": digest_of("x")}),
        ("benchmarks", {"engine": 1}),
        ("engines/1/verify", {}),
    ],
)
def test_a_model_that_is_not_there_is_refused(client: TestClient, path: str, body: dict[str, Any]) -> None:
    answer = client.post(f"/v1/models/nothing/{path}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")


def test_a_number_that_no_database_holds_is_refused(client: TestClient, engine: int) -> None:
    for path in ("", "/lineage", "/manifest", "/plan"):
        assert client.get(f"{MODEL}/engines/{10**30}{path}").status_code == 422
    assert client.head(f"{MODEL}/engines/{10**30}/plan").status_code == 422
    assert client.get(f"{MODEL}/engines", params={"definition": 10**30}).status_code == 422
    assert client.get(f"{MODEL}/engines", params={"weights": 10**30}).status_code == 422
    assert client.get(f"{MODEL}/engines/{engine + 1}").json()["code"] == "engine_not_found"


def test_an_engine_can_be_read_and_listed(client: TestClient, engine: int) -> None:
    listed = client.get(f"{MODEL}/engines").json()
    assert [row["number"] for row in listed["data"]] == [engine]
    assert listed["has_more"] is False
    detail = client.get(f"{MODEL}/engines/{engine}").json()
    assert listed["data"][0].items() <= detail.items()
    assert detail["verification"] == {"against": "reference", "ok": True}
    assert detail["timings"] == {"total": 0.5}


def test_engines_are_paged(bench: Workbench, client: TestClient) -> None:
    for _ in range(3):
        bench.publish(bench.submit(request_build, BuildRequest(definition=1, weights=1, reuse=False)))
    first = client.get(f"{MODEL}/engines", params={"limit": 2}).json()
    second = client.get(f"{MODEL}/engines", params={"limit": 2, "after": first["next_cursor"]}).json()
    assert [row["number"] for row in first["data"] + second["data"]] == [3, 2, 1]
    assert (first["has_more"], second["has_more"]) == (True, False)


def test_lineage_tells_what_each_refit_changed(bench: Workbench, client: TestClient, engine: int) -> None:
    bench.add_epoch(2, label="epoch 2")
    child = bench.publish(bench.submit(request_refit, RefitRequest(engine=engine, weights=2)))
    lineage = client.get(f"{MODEL}/engines/{child}/lineage").json()
    assert [one["number"] for one in lineage["ancestors"]] == [engine]
    assert lineage["descendants"] == []
    own = lineage["engine"]
    assert (own["method"], own["parent"], own["weights"]) == ("refit", engine, 2)
    assert (own["label"], own["changed_tensors"]) == ("epoch 2", 1)
    assert lineage["ancestors"][0]["changed_tensors"] is None
    assert (lineage["ancestors_complete"], lineage["descendants_complete"]) == (True, True)


def test_the_manifest_is_one_document(client: TestClient, engine: int) -> None:
    document = client.get(f"{MODEL}/engines/{engine}/manifest").json()
    assert (document["engine"], document["method"], document["parents"]) == (engine, "build", [])
    assert document["weights"]["label"] == "epoch 1"
    made_by = {"name": "onnxruntime", "version": "1.32.0", "device": "cpu", "platform": "cpu"}
    assert document["backend"] == made_by | {"options": {}, "device_fingerprint": None}


def test_a_plan_is_downloaded_under_a_name_and_an_etag(client: TestClient, bench: Workbench, engine: int) -> None:
    digest = bench.engine(engine).plan_digest
    answer = client.get(f"{MODEL}/engines/{engine}/plan")
    assert answer.content == PLAN
    assert answer.headers["etag"] == f'"{digest}"'
    assert "minilm-1.onnx" in answer.headers["content-disposition"]


def test_a_plan_can_be_asked_for_in_part_or_if_changed(client: TestClient, bench: Workbench, engine: int) -> None:
    path = f"{MODEL}/engines/{engine}/plan"
    part = client.get(path, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, PLAN[2:5])
    assert part.headers["content-range"] == "bytes 2-4/10"
    unchanged = client.get(path, headers={"If-None-Match": f'"{bench.engine(engine).plan_digest}"'})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_the_head_of_a_plan_has_its_size(client: TestClient, engine: int) -> None:
    answer = client.head(f"{MODEL}/engines/{engine}/plan")
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "10", b"")


def test_the_plan_of_another_backend_is_called_a_plan(client: TestClient, bench: Workbench, engine: int) -> None:
    with bench.database.transaction() as session:
        session.get_one(Engine, bench.engine(engine).id).backend = "tensorrt"
    answer = client.head(f"{MODEL}/engines/{engine}/plan")
    assert "minilm-1.plan" in answer.headers["content-disposition"]


def test_an_engine_belongs_to_its_model_alone(client: TestClient, bench: Workbench, engine: int) -> None:
    with bench.database.transaction() as session:
        create_model(session, "other", "", {})
    for path in ("", "/lineage", "/manifest", "/plan"):
        answer = client.get(f"/v1/models/other/engines/{engine}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "engine_not_found")
