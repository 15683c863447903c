import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from obstore.store import MemoryStore
from safetensors.numpy import save

from app.artifacts import service as artifacts
from app.artifacts.cache import ArtifactCache
from app.artifacts.remote import RemoteStore
from app.artifacts.store import ArtifactStore
from app.children.children import Children
from app.children.house import House
from app.database import Database
from app.errors import Invalid, Unavailable
from app.weights import indexing
from app.weights.checkpoint import CheckpointError
from app.weights.indexing import Index, Source, combine, index_file, index_ranges
from app.weights.limits import index_limits

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
TENSORS: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([np.nan, np.inf, 1], np.float16),
}


@pytest.fixture
def house(children: Children) -> House:
    return children.weights


@pytest.fixture
def remote(tmp_path: Path) -> RemoteStore:
    cache = ArtifactCache(tmp_path / "cache", 10**9)
    cache.prepare()
    return RemoteStore(MemoryStore(), cache)


def put(database: Database, store: ArtifactStore, folder: Path, raw: bytes) -> str:
    path = folder / "file"
    path.write_bytes(raw)
    digest, size = store.put_file(path)
    artifacts.record_upload(database, store, digest, size)
    return digest


def rows(source: Source) -> dict[str, list[Any]]:
    return {row[0]: row[1:] for row in json.loads(source.load().tensors)}


def source(*names: str, start: int = 0) -> Source:
    """Return the index of a file with tensors of these names."""
    listed = [[name, "F32", [2], f"{start + n:064x}", "sha256:" + "0a" * 32, 8 * n, 8] for n, name in enumerate(names)]
    return Source.of(Index(json.dumps(listed), "[]"))


def test_an_index_says_where_each_tensor_is_and_what_is_in_it(
    database: Database, store: ArtifactStore, house: House, tmp_path: Path
) -> None:
    digest = put(database, store, tmp_path, save(TENSORS))
    found = index_file(database, store, house, digest)
    for name, (dtype, shape, hashed, blob, offset, nbytes) in rows(found).items():
        data = store.read(digest, offset, nbytes)
        assert (shape, hashed, blob) == (list(TENSORS[name].shape), blake3(data).hexdigest(), digest)
        assert data == TENSORS[name].tobytes()
        assert dtype == {"a": "F32", "b": "F16"}[name]
    assert json.loads(found.load().non_finite or "") == [["b", 1, 1]]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_file_in_a_remote_store_is_streamed_to_the_child(
    database: Database, remote: RemoteStore, house: House, tmp_path: Path
) -> None:
    raw = save({"big": np.arange(indexing.CHUNK_BYTES // 4 + 7, dtype=np.float32)})
    digest = put(database, remote, tmp_path, raw)
    remote.discard_copy(digest)
    there = rows(index_file(database, remote, house, digest))
    assert list((tmp_path / "cache").rglob("sha256/*/*")) == []  # no copy of it was made here
    assert there["big"][2] == blake3(raw[-4 * (indexing.CHUNK_BYTES // 4 + 7) :]).hexdigest()


def test_a_store_that_fails_while_the_child_reads_is_not_blamed_on_the_file(
    database: Database, remote: RemoteStore, house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put(database, remote, tmp_path, save(TENSORS))

    def fail(*_: object) -> Iterator[bytes]:
        raise Unavailable("The store is down.", code="store_unavailable")

    monkeypatch.setattr(remote, "iter_bytes", fail)
    with pytest.raises(Unavailable, match="down"):
        index_file(database, remote, house, digest)


@pytest.mark.parametrize("ending", ["kill_itself", "burn"])
def test_a_child_that_dies_is_blamed_on_the_file(
    database: Database,
    store: ArtifactStore,
    house: House,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
) -> None:
    digest = put(database, store, tmp_path, save(TENSORS))
    child = house.child

    def dying(_function: str, task: Any, limits: Any, *rest: Any) -> dict[str, Any]:  # noqa: ANN401 - a method's
        quick = replace(limits, cpu_s=1)
        return child(f"tests.children.deeds:{ending}", task | {"signal": 11}, quick, *rest)

    monkeypatch.setattr(house, "child", dying)
    with pytest.raises(CheckpointError) as raised:
        index_file(database, store, house, digest)
    assert raised.value.code == {"kill_itself": "parser_crashed", "burn": "parsing_timeout"}[ending]
    assert (ending == "burn") or "exit status -11" in raised.value.detail


def test_a_child_that_stalls_is_not_blamed_on_the_file(
    database: Database, store: ArtifactStore, house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put(database, store, tmp_path, save(TENSORS))
    monkeypatch.setattr(indexing, "index_limits", lambda size: replace(index_limits(size), wall_s=0.001))
    with pytest.raises(Unavailable) as raised:
        index_file(database, store, house, digest)
    assert (raised.value.code, raised.value.retry_after_s) == ("parsing_stalled", 10)


def test_ranges_of_files_are_indexed_where_they_lie(house: House, tmp_path: Path, database: Database) -> None:
    del database
    data = np.arange(10, dtype=np.float32)
    (tmp_path / "data").write_bytes(b"head" + data.tobytes())
    ranges = tmp_path / "ranges.json"
    ranges.write_text(json.dumps([["w", "F32", [2, 2], "x.data", 8], ["v", "F32", [3], "x.data", 4]]))
    found = rows(index_ranges(house, ranges, {"x.data": tmp_path / "data"}, {"x.data": "sha256:" + "0b" * 32}))
    assert found["w"] == ["F32", [2, 2], blake3(data[1:5].tobytes()).hexdigest(), "sha256:" + "0b" * 32, 8, 16]
    assert found["v"][2] == blake3(data[:3].tobytes()).hexdigest()


@pytest.mark.parametrize("below", [None, source("b", "z", start=50)])
def test_a_child_puts_the_same_together_as_this_process(
    house: House, below: Source | None, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    del database
    files = [source("c", "ü", "a"), source("b", start=20)]
    here = combine(house, files, below)
    monkeypatch.setattr(indexing, "SMALL_BYTES", 0)
    assert combine(house, files, below) == here
    assert here.tensor_count == (4 if below is None else 5)
    assert json.loads(here.manifest)[1][3] == f"{20:064x}"  # of b, which the file has and not what is below


@pytest.mark.parametrize("small", [10**6, 0])
def test_what_cannot_be_put_together_is_refused_wherever(
    house: House, database: Database, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    del database
    monkeypatch.setattr(indexing, "SMALL_BYTES", small)
    with pytest.raises(Invalid) as raised:
        combine(house, [source("a"), source("b"), source("a")])
    assert raised.value.code == "duplicate_tensor"
    assert raised.value.errors[0].pointer == "/files/2"
    with pytest.raises(Invalid, match="no tensors"):
        combine(house, [source()])


def test_too_many_files_are_refused_before_all_are_read(house: House, database: Database) -> None:
    del database
    many = source(*(f"t{n}" for n in range(60_000)))
    other = source(*(f"u{n}" for n in range(60_000)))

    def unread() -> Index:
        raise AssertionError

    with pytest.raises(Invalid) as raised:
        combine(house, [many, other, Source(1, unread)])
    assert raised.value.code == "too_many_tensors"
