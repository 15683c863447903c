import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from safetensors.numpy import load_file, save
from sqlalchemy import inspect

from app.artifacts import service as artifacts
from app.artifacts.store import ArtifactStore
from app.artifacts.tables import BlobUse
from app.children.children import Children
from app.children.house import House
from app.database import Database
from app.errors import Invalid, NotFound
from app.registry import service as registry
from app.weights import service
from app.weights.indexing import CHUNK_BYTES, index_file
from app.weights.manifest import Manifest
from app.weights.tables import MAX_NON_FINITE, CheckpointFile, WeightVersion

Tensors = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


class Uploads:
    """A model, and a way to put files where an upload puts them."""

    def __init__(self, database: Database, store: ArtifactStore, house: House, folder: Path) -> None:
        self.database, self.store, self.house, self._folder = database, store, house, folder
        with database.transaction() as session:
            self.model_id = registry.create_model(session, "m", "", {}).id

    def put(self, raw: bytes) -> str:
        path = self._folder / hashlib.sha256(raw).hexdigest()
        path.write_bytes(raw)
        digest, size = self.store.put_file(path)
        with self.database.transaction() as session:
            artifacts.record(session, digest, size)
        return digest

    def file(self, tensors: Tensors) -> str:
        return self.put(save(dict(tensors)))

    def version(self, *files: str, base: int | None = None) -> WeightVersion:
        return self.order("m", *files, base=base)[0]

    def order(
        self, model: str, *files: str, base: int | None = None, label: str | None = None
    ) -> tuple[WeightVersion, bool]:
        ordered = service.order_weights(self.database, self.store, self.house, model, files, base=base, label=label)
        return ordered.keep(ordered.make())

    def manifest(self, version: WeightVersion) -> Manifest:
        with self.database.reading() as session:
            return Manifest.from_json(service.load_rows(session, version.id))


@pytest.fixture
def uploads(database: Database, store: ArtifactStore, children: Children, tmp_path: Path) -> Uploads:
    return Uploads(database, store, children.weights, tmp_path)


def _tensors(**values: float) -> Tensors:
    return {name: np.full((4, 3), value, np.float32) for name, value in values.items()}


def test_hashes_the_bytes_of_every_tensor(uploads: Uploads) -> None:
    tensors: Tensors = {
        "a": np.arange(7, dtype=np.float64),
        "flags": np.array([True, False]),
        "none": np.zeros((0, 3), np.int8),
    }
    version = uploads.version(uploads.file(tensors))
    assert (version.version, version.tensor_count, version.bytes) == (1, 3, 58)
    found = uploads.manifest(version).tensors
    assert {name: entry.blake3 for name, entry in found.items()} == {
        name: blake3(array.tobytes()).hexdigest() for name, array in tensors.items()
    }
    for name, entry in found.items():
        assert uploads.store.read(entry.blob, entry.offset, entry.nbytes) == tensors[name].tobytes()


def test_a_tensor_larger_than_a_chunk_is_hashed_whole(uploads: Uploads) -> None:
    tensors: Tensors = {"big": np.arange(CHUNK_BYTES // 8 + 5), "small": np.arange(3, dtype=np.int8)}
    found = uploads.manifest(uploads.version(uploads.file(tensors))).tensors
    assert found["big"].blake3 == blake3(tensors["big"].tobytes()).hexdigest()
    assert found["small"].blake3 == blake3(tensors["small"].tobytes()).hexdigest()


def test_the_real_minilm_is_read_whole(uploads: Uploads, minilm: Path) -> None:
    path = minilm / "model.safetensors"
    found = uploads.manifest(uploads.version(uploads.put(path.read_bytes()))).tensors
    reference = load_file(path)
    assert {name: entry.blake3 for name, entry in found.items()} == {
        name: blake3(array.tobytes()).hexdigest() for name, array in reference.items()
    }


def test_shards_make_one_version(uploads: Uploads) -> None:
    one, two = uploads.file(_tensors(a=1)), uploads.file(_tensors(b=2))
    whole = uploads.file(_tensors(a=1, b=2))
    version = uploads.version(one, two)
    assert uploads.manifest(version).blobs == tuple(sorted((one, two)))
    assert uploads.version(whole).id == version.id


def test_a_read_takes_the_first_tensors_with_nan_and_leaves_the_others_in_the_database(uploads: Uploads) -> None:
    names = sorted(f'[{number:03}] "é☃", [' + "x" * 400 for number in range(MAX_NON_FINITE + 1))
    made = uploads.version(uploads.file({name: np.array([np.nan, np.inf, 1], np.float32) for name in names}))
    with uploads.database.reading() as session:
        read = service.get_weights(session, uploads.model_id, made.version)
    for version in (made, read):
        assert "non_finite" in inspect(version).unloaded
        assert version.non_finite_count == len(names)
        assert version.first_non_finite == [[name, 1, 1] for name in names[:MAX_NON_FINITE]]


def test_finite_weights_have_no_tensors_to_tell_of(uploads: Uploads) -> None:
    version = uploads.version(uploads.file(_tensors(a=1)))
    assert (version.non_finite_count, version.first_non_finite) == (0, [])


def test_a_tensor_in_two_files_is_an_error_that_names_both(uploads: Uploads) -> None:
    one, two = uploads.file(_tensors(a=1, b=1)), uploads.file(_tensors(b=2))
    with pytest.raises(Invalid) as error:
        uploads.version(one, two)
    assert error.value.code == "duplicate_tensor"
    assert "b is already in /files/0 and again in /files/1" in error.value.detail
    assert error.value.errors[0].pointer == "/files/1"


def test_a_base_gives_the_tensors_that_did_not_change(uploads: Uploads) -> None:
    first = uploads.version(uploads.file(_tensors(a=1, b=1)))
    second = uploads.version(uploads.file(_tensors(b=2)), base=first.version)
    assert (second.version, second.base) == (2, 1)
    assert second.id == uploads.version(uploads.file(_tensors(a=1, b=2))).id
    before, after = uploads.manifest(first).tensors, uploads.manifest(second).tensors
    assert after["a"] == before["a"]
    assert after["b"].blake3 != before["b"].blake3


def test_the_same_content_is_the_same_version(uploads: Uploads) -> None:
    file = uploads.file(_tensors(a=1))
    first, created = uploads.order("m", file)
    again, created_again = uploads.order("m", file, label="other")
    assert (created, created_again) == (True, False)
    assert again.id == first.id
    assert uploads.version(uploads.file(_tensors(a=2))).version == 2


def test_every_file_of_a_version_is_kept(uploads: Uploads) -> None:
    first = uploads.version(uploads.file(_tensors(a=1, b=1)))
    second = uploads.version(uploads.file(_tensors(b=2)), base=1)
    with uploads.database.reading() as session:
        kept = {(use.owner, use.digest) for use in session.query(BlobUse)}
    assert kept == {
        (f"weights:{version.id}", blob) for version in (first, second) for blob in uploads.manifest(version).blobs
    }


def test_a_file_is_hashed_once(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    file = uploads.file(_tensors(a=1))
    index = index_file(uploads.database, uploads.store, uploads.house, file).load()
    monkeypatch.setattr(uploads.house, "child", None)
    assert index_file(uploads.database, uploads.store, uploads.house, file).load() == index


def test_hashing_a_file_twice_at_once_in_two_processes_does_no_harm(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = uploads.file(_tensors(a=1))
    other = House(uploads.house._server, uploads.house._scratch)
    slow = other.child

    def overtaken(*args: Any) -> Any:  # noqa: ANN401 - stands in for the method
        index_file(uploads.database, uploads.store, uploads.house, file)
        return slow(*args)

    monkeypatch.setattr(other, "child", overtaken)
    index = index_file(uploads.database, uploads.store, other, file).load()
    assert index_file(uploads.database, uploads.store, uploads.house, file).load() == index


def test_a_file_that_became_no_version_can_be_collected(uploads: Uploads) -> None:
    file = uploads.file(_tensors(a=1))
    index_file(uploads.database, uploads.store, uploads.house, file)
    assert artifacts.collect_orphans(uploads.database, uploads.store, older_than_s=-1) == 1
    with uploads.database.reading() as session:
        assert session.get(CheckpointFile, file) is None


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (save(dict(_tensors(a=1)))[:-5], "truncated_file"),
        (b"no checkpoint of any kind", "unknown_format"),
        (b"\xff" * 8 + b"{}", "header_too_large"),
        (save({}), "no_tensors"),
    ],
)
def test_a_bad_file_is_refused(uploads: Uploads, raw: bytes, code: str) -> None:
    with pytest.raises(Invalid) as error:
        uploads.version(uploads.put(raw))
    assert error.value.code == code


def test_a_truncated_file_says_how_much_is_missing_and_in_which_file(uploads: Uploads) -> None:
    good, cut = uploads.file(_tensors(a=1)), uploads.put(save(dict(_tensors(b=1)))[:-5])
    with pytest.raises(Invalid, match=f"{cut}: The file lacks 5 of") as error:
        uploads.version(good, cut)
    assert error.value.errors[0].pointer == "/files/1"


def test_a_blob_that_was_not_uploaded_is_named(uploads: Uploads) -> None:
    with pytest.raises(Invalid, match="PUT /v1/blobs/sha256:0000"):
        uploads.version("sha256:" + "0" * 64)


def test_an_unknown_model_or_base_is_not_found(uploads: Uploads) -> None:
    file = uploads.file(_tensors(a=1))
    with pytest.raises(NotFound, match="no model 'other'"):
        uploads.order("other", file)
    with pytest.raises(NotFound, match="no weight version 7"):
        uploads.version(file, base=7)
