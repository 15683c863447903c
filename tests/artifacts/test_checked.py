"""What is damaged in a store or in a cache is handed out by no reader, and what is whole is digested once."""

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from app.artifacts import checked
from app.artifacts.checked import SMALL, BlobDamaged
from app.artifacts.local import LocalStore
from app.artifacts.remote import RemoteStore
from app.artifacts.store import ArtifactStore, open_store
from app.errors import Unavailable
from app.settings import MIB, Settings
from tests.artifacts.conftest import digest_of

BYTES = np.random.default_rng(1).bytes(100_000)
LARGE = np.random.default_rng(2).bytes(SMALL + 3 * MIB + 17)
Damage = Callable[[Path], None]


def flip(path: Path, at: int = -1) -> None:
    """Flip a bit, and give the file the times that it had."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size // 2)


def blank(path: Path) -> None:
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:4096] + b"\0" * 4096 + content[8192:])


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(BYTES[::-1])
    other.replace(path)


def receive(received: bytearray, pieces: Iterator[bytes]) -> None:
    for piece in pieces:
        received += piece


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, told: list[str]) -> LocalStore:
    store = LocalStore.open(tmp_path / "artifacts", on_damage=told.append)
    store.put_chunks([BYTES])
    store.put_chunks([LARGE])
    return store


@pytest.fixture
def remote(tmp_path: Path, told: list[str]) -> RemoteStore:
    store = open_store(Settings(data_dir=tmp_path, store_url="memory:///"), told.append)
    assert isinstance(store, RemoteStore)
    (tmp_path / "file").write_bytes(BYTES)
    store.put_file(tmp_path / "file")
    return store


def digested(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is read to be digested from now on."""
    sizes: list[int] = []
    digest = checked.digest_of

    def note(found: checked.Stored, pace: checked.Pace = checked.no_pace) -> str:
        sizes.append(found.size)
        return digest(found, pace)

    monkeypatch.setattr(checked, "digest_of", note)
    return sizes


READERS: dict[str, Callable[[ArtifactStore, str], object]] = {
    "a path": lambda store, digest: store.local_path(digest),
    "a part": lambda store, digest: store.read(digest, 5, 10),
    "another part": lambda store, digest: list(store.iter_bytes(digest, 5, 10)),
    "all of it": lambda store, digest: list(store.iter_bytes(digest, 0, store.size(digest) or 0)),
}


@pytest.mark.parametrize("damage", [flip, cut, blank, replaced])
@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_no_reader_is_given_what_is_damaged(
    store: LocalStore, told: list[str], damage: Damage, read: Callable[[ArtifactStore, str], object]
) -> None:
    for content in (BYTES, LARGE):
        digest = digest_of(content)
        damage(store.local_path(digest))
        with pytest.raises(BlobDamaged, match=f"PUT /v1/blobs/{digest}"):
            read(store, digest)
        with pytest.raises(BlobDamaged):
            read(store, digest)
        assert told == [digest]
        store.put_chunks([content])
        read(store, digest)
        told.clear()


def test_a_new_process_checks_what_it_reads_first(store: LocalStore, told: list[str]) -> None:
    flip(store.local_path(digest_of(BYTES)))
    fresh = LocalStore(store.root, on_damage=told.append)
    with pytest.raises(BlobDamaged):
        fresh.local_path(digest_of(BYTES))
    assert told == [digest_of(BYTES)]


def test_what_is_whole_is_digested_once(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, fresh = digested(monkeypatch), LocalStore(store.root)
    for _ in range(3):
        store.local_path(digest_of(BYTES))  # which it wrote itself
        fresh.local_path(digest_of(BYTES))
        fresh.read(digest_of(BYTES), 1, 1)
    assert sizes == [len(BYTES)]
    os.utime(fresh.local_path(digest_of(BYTES)), (1e9, 1e9))
    fresh.local_path(digest_of(BYTES))
    assert len(sizes) == 2


def test_the_end_of_a_large_artifact_that_is_damaged_is_held_back(store: LocalStore, told: list[str]) -> None:
    digest = digest_of(LARGE)
    flip(store.local_path(digest), at=10)
    received = bytearray()
    with pytest.raises(BlobDamaged):
        receive(received, store.iter_bytes(digest, 0, len(LARGE)))
    assert len(LARGE) - MIB <= len(received) < len(LARGE)
    assert told == [digest]


def test_what_is_written_to_while_it_is_read_is_not_read_to_its_end(store: LocalStore) -> None:
    digest = digest_of(LARGE)
    pieces = store.iter_bytes(digest, 0, len(LARGE))
    next(pieces)
    path = store.unchecked_path(digest)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"x")
    with pytest.raises(Unavailable) as changed:
        list(pieces)
    assert changed.value.code == "blob_changed"


def test_an_empty_artifact_is_whole(store: LocalStore) -> None:
    digest, _ = store.put_chunks([])
    assert b"".join(LocalStore(store.root).iter_bytes(digest, 0, 0)) == b""
    assert LocalStore(store.root).recheck(digest) == 0


def test_a_check_on_request_trusts_no_memory(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = digested(monkeypatch)
    assert store.recheck(digest_of(BYTES)) == len(BYTES)
    assert sizes == [len(BYTES)]
    assert store.recheck(digest_of(b"missing")) is None
    flip(store.local_path(digest_of(BYTES)))
    assert store.recheck(digest_of(BYTES)) is None


def test_damage_that_a_scrubber_found_is_seen_by_those_who_have_read_the_bytes_before(store: LocalStore) -> None:
    digest = digest_of(BYTES)
    path = store.local_path(digest)
    reader = LocalStore(store.root)
    reader.local_path(digest)
    flip(path)
    reader._checked.know(digest, reader._open(digest))  # as a disk flips bits, without a trace
    assert reader.local_path(digest) == path
    assert store.recheck(digest, lambda _nbytes: None) is None
    with pytest.raises(BlobDamaged):
        reader.local_path(digest)


@pytest.mark.parametrize("damage", [flip, cut, blank, replaced])
def test_a_damaged_copy_is_fetched_again(remote: RemoteStore, told: list[str], damage: Damage) -> None:
    path = remote.local_path(digest_of(BYTES))
    damage(path)
    assert remote.local_path(digest_of(BYTES)).read_bytes() == BYTES
    assert told == []


def test_a_copy_keeps_what_it_is_known_by_however_often_it_is_asked_for(
    remote: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = digested(monkeypatch)
    known = remote.local_path(digest_of(BYTES)).stat()
    with remote.holding():
        held = remote.local_path(digest_of(BYTES)).stat()
    after = remote.local_path(digest_of(BYTES)).stat()
    assert {(one.st_ino, one.st_mtime_ns, one.st_ctime_ns) for one in (held, after)} == {
        (known.st_ino, known.st_mtime_ns, known.st_ctime_ns)
    }
    assert sizes == []


@pytest.mark.parametrize("read", list(READERS.values())[1:], ids=list(READERS)[1:])
def test_a_damaged_object_is_read_by_nobody_and_healed_from_the_cache(
    remote: RemoteStore, tmp_path: Path, told: list[str], read: Callable[[ArtifactStore, str], object]
) -> None:
    digest = digest_of(BYTES)
    (tmp_path / "other").write_bytes(BYTES[::-1])
    remote._put(tmp_path / "other", digest)
    with pytest.raises(BlobDamaged):
        read(remote, digest)
    assert told == [digest]
    assert remote.heal(digest)
    read(remote, digest)
    assert remote.recheck(digest) == len(BYTES)


def test_a_damaged_object_is_not_downloaded(remote: RemoteStore, tmp_path: Path, told: list[str]) -> None:
    digest = digest_of(BYTES)
    (tmp_path / "other").write_bytes(BYTES[::-1])
    remote._put(tmp_path / "other", digest)
    remote.discard_copy(digest)
    with pytest.raises(BlobDamaged):
        remote.local_path(digest)
    assert told == [digest]
    assert not remote.heal(digest)


def test_the_error_goes_from_one_process_to_another() -> None:
    error = BlobDamaged(digest_of(BYTES))
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (copy.digest, copy.detail, copy.code, str(copy)) == (error.digest, error.detail, error.code, str(error))


def test_only_what_has_digests_of_its_own_goes_around_the_check() -> None:
    root = Path(__file__).parents[2]
    sources = [path for folder in ("app", "workers") for path in (root / folder).rglob("*.py")]
    users = {str(path.relative_to(root)) for path in sources if ".unchecked_path(" in path.read_text()}
    assert users == {"app/artifacts/cache.py", "app/artifacts/remote.py", "workers/jobs/stored.py"}
