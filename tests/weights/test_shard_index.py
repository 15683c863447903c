import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save

from app.weights import shard_index
from app.weights.checkpoint import CheckpointError
from app.weights.shard_index import read_shard_index
from tests.golden.checkpoints.values import read

FIRST = save({"a": np.zeros(4, np.float32), "b": np.ones(2, np.float16)})
SECOND = save({"c": np.arange(3, dtype=np.int64)})
SHARDS = {"a": "model-1-of-2.safetensors", "b": "model-1-of-2.safetensors", "c": "model-2-of-2.safetensors"}
BYTES = 16 + 4 + 24


def index(shards: Any = SHARDS, **metadata: object) -> bytes:  # noqa: ANN401 - a test gives what is none
    return json.dumps({"metadata": {"total_size": BYTES} | metadata, "weight_map": shards}, indent=2).encode()


@pytest.fixture
def database_url(sqlite_template: Path, tmp_path: Path) -> str:
    """SQLite alone: what is tested here does not depend on the database."""
    shutil.copy(sqlite_template, tmp_path / "enginesmith.db")
    return f"sqlite:///{tmp_path / 'enginesmith.db'}"


@pytest.fixture
def model(client: TestClient) -> str:
    client.post("/v1/models", json={"name": "m"}).raise_for_status()
    return "/v1/models/m"


def upload(client: TestClient, raw: bytes) -> str:
    digest = "sha256:" + hashlib.sha256(raw).hexdigest()
    client.put(f"/v1/blobs/{digest}", content=raw).raise_for_status()
    return digest


def register(client: TestClient, model: str, *files: bytes) -> dict[str, Any]:
    answer = client.post(f"{model}/weights", json={"files": [upload(client, raw) for raw in files]})
    content: dict[str, Any] = answer.json()
    return content


def refused(client: TestClient, model: str, *files: bytes) -> dict[str, Any]:
    problem = register(client, model, *files)
    assert problem["code"] == "wrong_shards", problem
    return problem


def test_an_index_goes_with_its_shards_and_holds_no_tensors(client: TestClient, model: str) -> None:
    for _ in range(2):  # read, and then remembered
        version = register(client, model, FIRST, index(), SECOND)
        assert (version["version"], version["tensor_count"], version["bytes"]) == (1, 3, BYTES)
    assert register(client, model, FIRST, SECOND)["version"] == 1  # the same content without it
    listed = client.get(f"{model}/weights/1/tensors").json()["data"]
    assert [one["name"] for one in listed] == ["a", "b", "c"]


def test_a_shard_that_is_missing_is_named(client: TestClient, model: str) -> None:
    problem = refused(client, model, index(), FIRST)
    assert "'model-2-of-2.safetensors' is missing (tensors in it: 1); upload it and add it" in problem["detail"]
    assert problem["errors"][0]["pointer"] == "/files/0"
    assert client.get(f"{model}/weights").json()["data"] == []


def test_an_index_alone_names_every_shard(client: TestClient, model: str) -> None:
    detail = refused(client, model, index())["detail"]
    assert all(shard in detail for shard in SHARDS.values())


def test_a_tensor_that_its_shard_lacks_is_named_and_so_is_one_too_many(client: TestClient, model: str) -> None:
    other = save({"a": np.zeros(4, np.float32), "x": np.ones(2, np.float16)})
    problem = refused(client, model, other, SECOND, index())
    assert "'b' is in no file, though 'model-1-of-2.safetensors' should have it" in problem["detail"]
    assert f"'x' in {upload(client, other)} is not in the index; leave that file out" in problem["detail"]
    assert {error["pointer"] for error in problem["errors"]} == {"/files/2"}
    assert "leave the index out of `files`" in problem["detail"]


def test_many_faults_are_counted(client: TestClient, model: str) -> None:
    problem = refused(client, model, FIRST, SECOND, index(SHARDS | {f"z{n}": SHARDS["a"] for n in range(300)}))
    assert "(and 295 more)" in problem["detail"]
    assert len(problem["errors"]) == 100


@pytest.mark.parametrize("total", [2 * BYTES, 24, 0, BYTES + 0.125, None, "many"])
def test_what_an_index_says_of_sizes_does_not_matter(client: TestClient, model: str, total: object) -> None:
    assert register(client, model, FIRST, SECOND, index(total_size=total))["version"] == 1


@pytest.mark.parametrize("metadata", [{}, {"metadata": None}, {"metadata": []}])
def test_an_index_needs_no_metadata(client: TestClient, model: str, metadata: dict[str, object]) -> None:
    given = json.dumps({"weight_map": SHARDS} | metadata).encode()
    assert register(client, model, FIRST, SECOND, given)["version"] == 1


def test_tied_tensors_of_one_shard_are_held_to_their_names(client: TestClient, model: str) -> None:
    shards = dict.fromkeys(("table", "head", "flat"), "pytorch_model.bin")
    version = register(client, model, read("tied.pt"), index(shards))
    assert (version["tensor_count"], version["bytes"]) == (3, 72)


def test_an_index_that_was_changed_is_checked_where_many_tensors_need_a_child(
    client: TestClient, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.weights.indexing.SMALL_BYTES", 0)
    assert register(client, model, FIRST, SECOND, index())["version"] == 1
    assert "model-1-of-2.safetensors" in refused(client, model, SECOND, index())["detail"]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (index([]), "bad_header"),
        (index({"a": 1}), "bad_header"),
        (index()[:-5], "bad_header"),
        (b'{"metadata": {"total_size": NaN}, "weight_map": {}}', "bad_header"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "bad_header"),
        (b'{"weight_map":' + b"[" * 100_000, "bad_header"),
        (b'{"weight_map": {"a": "' + b"," * 2_000_001 + b'"}}', "header_too_large"),
    ],
)
def test_an_index_that_is_none_is_refused(raw: bytes, code: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read_shard_index(lambda offset, length: raw[offset : offset + length], len(raw))
    assert error.value.code == code


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b'{"model_type": "bert"}', b'["weight_map"]', b'{"x": "weight_map"}', FIRST]
)
def test_other_files_are_no_index(raw: bytes) -> None:
    assert read_shard_index(lambda offset, length: raw[offset : offset + length], len(raw)) is None


def test_an_index_of_too_many_tensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_index, "MAX_TENSORS", 2)
    raw = b"\xef\xbb\xbf\n" + index()
    with pytest.raises(CheckpointError, match="3 tensors"):
        read_shard_index(lambda offset, length: raw[offset : offset + length], len(raw))
