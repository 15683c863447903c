import hashlib
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.numpy import save

from app.weights.manifest import Manifest


@pytest.fixture
def model(client: TestClient) -> str:
    client.post("/v1/models", json={"name": "m"}).raise_for_status()
    return "/v1/models/m"


def _upload(client: TestClient, **values: float) -> str:
    raw = save({name: np.full((2, 2), value, np.float32) for name, value in values.items()})
    digest = "sha256:" + hashlib.sha256(raw).hexdigest()
    client.put(f"/v1/blobs/{digest}", content=raw).raise_for_status()
    return digest


def _version(client: TestClient, model: str, file: str, base: int | None = None) -> dict[str, Any]:
    answer = client.post(f"{model}/weights", json={"files": [file], "base": base})
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_a_version_is_made_once_and_found_again(client: TestClient, model: str) -> None:
    file = _upload(client, a=1, b=2)
    first = client.post(f"{model}/weights", json={"files": [file], "label": "epoch 1"})
    assert first.status_code == 201
    assert first.headers["location"] == f"{model}/weights/1"
    body = first.json()
    assert (body["version"], body["tensor_count"], body["bytes"], body["label"]) == (1, 2, 32, "epoch 1")
    again = client.post(f"{model}/weights", json={"files": [file]})
    assert (again.status_code, again.json()) == (200, body)
    assert client.get(f"{model}/weights/1").json() == body
    assert client.get(f"{model}/weights").json()["data"] == [body]


def test_versions_are_listed_newest_first(client: TestClient, model: str) -> None:
    for value in range(3):
        _version(client, model, _upload(client, a=value))
    page = client.get(f"{model}/weights", params={"limit": 2}).json()
    assert [one["version"] for one in page["data"]] == [3, 2]
    rest = client.get(f"{model}/weights", params={"limit": 2, "after": page["next_cursor"]}).json()
    assert [one["version"] for one in rest["data"]] == [1]
    assert not rest["has_more"]


def test_tensors_come_in_pages_by_name(client: TestClient, model: str) -> None:
    file = _upload(client, c=1, a=2, b=3)
    _version(client, model, file)
    page = client.get(f"{model}/weights/1/tensors", params={"limit": 2}).json()
    assert [tensor["name"] for tensor in page["data"]] == ["a", "b"]
    assert page["data"][0] | {"blake3": "", "offset": 0} == {
        "name": "a", "dtype": "F32", "shape": [2, 2], "blake3": "", "blob": file, "offset": 0, "nbytes": 16,
    }  # fmt: skip
    rest = client.get(f"{model}/weights/1/tensors", params={"after": page["next_cursor"]}).json()
    assert [tensor["name"] for tensor in rest["data"]] == ["c"]


def test_a_diff_has_totals_and_pages(client: TestClient, model: str) -> None:
    _version(client, model, _upload(client, a=1, b=1, gone=1))
    _version(client, model, _upload(client, a=1, b=2, new=1))
    diff = client.get(f"{model}/weights/2/diff", params={"from": 1, "limit": 2}).json()
    totals = {key: value for key, value in diff.items() if key not in {"data", "next_cursor"}}
    assert totals == {
        "from": 1, "to": 2, "added": 1, "removed": 1, "changed": 1, "unchanged": 1, "bytes_changed": 32,
        "has_more": True,
    }  # fmt: skip
    assert [(one["name"], one["change"]) for one in diff["data"]] == [("b", "changed"), ("gone", "removed")]
    assert diff["data"][1]["after"] is None
    rest = client.get(f"{model}/weights/2/diff", params={"from": 1, "after": diff["next_cursor"]}).json()
    assert [(one["name"], one["before"]) for one in rest["data"]] == [("new", None)]


def test_only_what_changed_is_uploaded_over_a_base(client: TestClient, model: str) -> None:
    _version(client, model, _upload(client, a=1, b=1))
    second = _version(client, model, _upload(client, b=2), base=1)
    assert (second["base"], second["tensor_count"]) == (1, 2)
    diff = client.get(f"{model}/weights/2/diff", params={"from": 1}).json()
    assert (diff["changed"], diff["unchanged"]) == (1, 1)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"files": []}, "/files"),
        ({"files": ["sha256:xyz"]}, "/files/0"),
        ({"files": ["sha256:" + "0" * 64]}, "/files/0"),
        ({"files": ["sha256:" + "0" * 64], "bsae": 1}, "/bsae"),
        ({"files": ["sha256:" + "0" * 64], "base": 0}, "/base"),
        ({"files": ["sha256:" + "0" * 64], "base": 10**30}, "/base"),
    ],
)
def test_a_wrong_request_points_at_the_field(
    client: TestClient, model: str, body: dict[str, Any], pointer: str
) -> None:
    answer = client.post(f"{model}/weights", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "either `files` or `onnx`"),
        ({"files": ["sha256:" + "0" * 64], "onnx": "sha256:" + "0" * 64}, "either `files` or `onnx`"),
        ({"onnx": "sha256:" + "0" * 64, "base": 1}, "`base` goes with `files`"),
        ({"files": ["sha256:" + "0" * 64], "definition": 1}, "go with `onnx`"),
        ({"files": ["sha256:" + "0" * 64], "external_data": {"a": "sha256:" + "0" * 64}}, "go with `onnx`"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(
    client: TestClient, model: str, body: dict[str, Any], words: str
) -> None:
    answer = client.post(f"{model}/weights", json=body)
    assert answer.status_code == 422
    assert words in answer.text


@pytest.mark.parametrize("path", ["", "/tensors", "/diff?from=1"])
def test_a_version_that_no_database_holds_is_refused(client: TestClient, model: str, path: str) -> None:
    answer = client.get(f"{model}/weights/{10**30}{path}")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/path/version")


def test_an_earlier_version_that_no_database_holds_is_refused(client: TestClient, model: str) -> None:
    answer = client.get(f"{model}/weights/1/diff", params={"from": 10**30})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/from")


def test_a_truncated_file_is_answered_with_what_is_missing(client: TestClient, model: str) -> None:
    raw = save({"a": np.zeros(100, np.float32)})[:-40]
    digest = "sha256:" + hashlib.sha256(raw).hexdigest()
    client.put(f"/v1/blobs/{digest}", content=raw).raise_for_status()
    problem = client.post(f"{model}/weights", json={"files": [digest]}).json()
    assert problem["code"] == "truncated_file"
    assert "lacks 40 of" in problem["detail"]


def test_what_does_not_exist_is_not_found(client: TestClient, model: str) -> None:
    assert client.get(f"{model}/weights/1").json()["code"] == "weights_not_found"
    assert client.get(f"{model}/weights/1/tensors").status_code == 404
    assert client.get("/v1/models/other/weights").json()["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["weights/1/tensors", "weights/2/diff?from=1"])
def test_manifests_are_read_with_no_session_open(
    app: FastAPI, client: TestClient, model: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _version(client, model, _upload(client, a=1))
    _version(client, model, _upload(client, a=2))
    open_sessions: list[int] = []
    read = Manifest.from_json

    def watched(rows: list[Any]) -> Manifest:
        open_sessions.append(app.state.database.engine.pool.checkedout())
        return read(rows)

    monkeypatch.setattr(Manifest, "from_json", watched)
    assert client.get(f"{model}/{path}").status_code == 200
    assert set(open_sessions) == {0}


@pytest.mark.parametrize("step", ["digest", "nbytes", "blobs", "to_json"])
def test_a_version_is_computed_with_no_session_open(
    app: FastAPI, client: TestClient, model: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _version(client, model, _upload(client, a=1))
    open_sessions: list[int] = []
    computed = getattr(Manifest, step)

    def watched(manifest: Manifest) -> Any:  # noqa: ANN401 - what the step returns
        open_sessions.append(app.state.database.engine.pool.checkedout())
        return computed(manifest) if callable(computed) else computed.__get__(manifest)

    monkeypatch.setattr(Manifest, step, watched if callable(computed) else property(watched))
    _version(client, model, _upload(client, b=2), base=1)
    assert set(open_sessions) == {0}
