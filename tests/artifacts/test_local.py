import asyncio
import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app.artifacts.checked import BlobDamaged
from app.artifacts.incoming import Incoming, locked
from app.artifacts.local import LocalStore
from app.errors import Unavailable
from app.settings import MIB
from tests.artifacts.conftest import digest_of, files_in, stream

BYTES = os.urandom(3 * MIB)
DAY_S = 24 * 3600.0


def put(store: LocalStore, data: bytes) -> str:
    digest = digest_of(data)
    asyncio.run(store.put_stream(stream(data), expected=digest, limit=len(data)))
    return digest


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process grows beyond 2 MiB: the closest to a full disk that needs no privileges."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize(
    "upload",
    [put, lambda store, data: store.put_chunks([data])],
    ids=["stream", "chunks"],
)
def test_a_full_disk_is_named_and_nothing_is_left(
    local_store: LocalStore, upload: Callable[[LocalStore, bytes], object]
) -> None:
    with pytest.raises(Unavailable, match="full") as full:
        upload(local_store, BYTES)
    assert full.value.code == "store_full"
    assert files_in(local_store) == []


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EROFS, "store_read_only"),
        (errno.EACCES, "store_read_only"),
        (errno.EIO, "store_unavailable"),
        (errno.ESTALE, "store_unavailable"),
    ],
)
@pytest.mark.parametrize(
    ("call", "upload"),
    [("open", lambda store, _path: put(store, BYTES)), ("link", lambda store, path: store.put_file(path))],
    ids=["stream", "file"],
)
def test_a_disk_that_takes_no_writes_is_named(
    local_store: LocalStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    upload: Callable[[LocalStore, Path], object],
    number: int,
    code: str,
) -> None:
    path = tmp_path / "plan"
    path.write_bytes(BYTES)

    def refuse(*_given: object, **_named: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)  # root may write anywhere
    with pytest.raises(Unavailable) as refused:
        upload(local_store, path)
    monkeypatch.undo()
    assert refused.value.code == code
    assert os.strerror(number) in refused.value.detail
    assert path.read_bytes() == BYTES
    assert files_in(local_store) == []


def test_copies_a_file_from_another_filesystem(local_store: LocalStore) -> None:
    memory = Path("/dev/shm")  # noqa: S108 - a filesystem that is not the one of tmp_path
    if not memory.is_dir() or memory.stat().st_dev == local_store.root.stat().st_dev:
        pytest.skip("this machine has no second filesystem to copy from")
    path = memory / f"enginesmith-{os.getpid()}"
    path.write_bytes(BYTES)
    assert local_store.put_file(path) == (digest_of(BYTES), len(BYTES))
    assert not path.exists()
    assert local_store.local_path(digest_of(BYTES)).read_bytes() == BYTES


@pytest.mark.parametrize("there", [None, b"damaged"])
def test_copies_a_file_from_another_mount_of_the_same_filesystem(
    local_store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bytes | None
) -> None:
    if there is not None:
        published = local_store.local_path(put(local_store, BYTES))
        published.chmod(0o644)
        published.write_bytes(there)
    path = tmp_path / "volume" / "plan"
    path.parent.mkdir()
    path.write_bytes(BYTES)

    def refusing(call: Callable[[Path, Path], object], *, is_link: bool) -> Callable[[Path, Path], object]:
        def moved(first: Path, second: Path) -> object:
            source, target = (second, first) if is_link else (first, second)
            if source.is_relative_to(path.parent) and not target.is_relative_to(path.parent):
                error = errno.EEXIST if is_link and target.exists() else errno.EXDEV
                raise OSError(error, os.strerror(error))
            return call(first, second)

        return moved

    monkeypatch.setattr(Path, "hardlink_to", refusing(Path.hardlink_to, is_link=True))
    monkeypatch.setattr(Path, "replace", refusing(Path.replace, is_link=False))
    assert local_store.put_file(path, digest=digest_of(BYTES)) == (digest_of(BYTES), len(BYTES))
    assert local_store.local_path(digest_of(BYTES)).read_bytes() == BYTES
    assert list(path.parent.iterdir()) == []
    assert len(files_in(local_store)) == 1


def test_moves_a_file_without_copying_it(local_store: LocalStore, tmp_path: Path) -> None:
    path = tmp_path / "plan"
    path.write_bytes(BYTES)
    inode = path.stat().st_ino
    digest, _ = local_store.put_file(path)
    assert local_store.local_path(digest).stat().st_ino == inode


def test_an_artifact_put_as_a_file_stays(local_store: LocalStore) -> None:
    path = local_store.local_path(put(local_store, BYTES))
    local_store.put_file(path)
    assert path.read_bytes() == BYTES


@pytest.mark.slow
def test_what_a_killed_writer_left_is_cleared_and_a_live_writer_is_not_disturbed(local_store: LocalStore) -> None:
    incoming = local_store.root / "incoming"
    code = f"""
import os, signal
from pathlib import Path
from app.artifacts.incoming import Incoming
writer = Incoming(Path({str(incoming)!r}))
writer.write([bytes(1 << 20)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    alive = Incoming(incoming)
    assert len(files_in(local_store)) == 2
    for path in incoming.iterdir():
        age(path, DAY_S)
    LocalStore.open(local_store.root)
    assert files_in(local_store) == [str(alive.path.relative_to(local_store.root))]
    alive.discard()


def test_a_fresh_temporary_file_is_not_cleared(local_store: LocalStore) -> None:
    path = local_store.root / "incoming" / "just-created-not-yet-locked"
    path.touch()
    LocalStore.open(local_store.root)
    assert path.exists()


def test_an_artifact_cut_short_from_outside_is_not_served_as_if_it_were_whole(local_store: LocalStore) -> None:
    digest = put(local_store, BYTES)
    path = local_store.local_path(digest)
    path.chmod(0o644)
    os.truncate(path, 10)
    with pytest.raises(BlobDamaged, match=f"PUT /v1/blobs/{digest}"):
        list(local_store.iter_bytes(digest, 0, len(BYTES)))


@pytest.mark.parametrize(
    "damaged", [BYTES[:10], BYTES[:-1] + b"?", BYTES + b"?"], ids=["cut short", "changed", "longer"]
)
def test_the_same_bytes_mend_an_artifact_damaged_from_outside(local_store: LocalStore, damaged: bytes) -> None:
    digest = put(local_store, BYTES)
    path = local_store.local_path(digest)
    path.chmod(0o644)
    path.write_bytes(damaged)
    with path.open("rb") as reader:
        put(local_store, BYTES)
        assert path.read_bytes() == BYTES
        assert local_store.read(digest, 0, len(BYTES)) == BYTES
        assert len(files_in(local_store)) == 1
        assert reader.read() == damaged


def test_a_file_that_is_the_artifact_by_another_name_may_be_put_again(local_store: LocalStore) -> None:
    digest = put(local_store, BYTES)
    path = local_store.local_path(digest)
    other = local_store.root / "incoming" / "other"
    other.hardlink_to(path)
    age(path, DAY_S)
    local_store.put_file(other)
    local_store.put_file(path)
    assert not local_store.delete_stale(digest, older_than_s=60)
    assert files_in(local_store) == [str(path.relative_to(local_store.root))]


def test_freeing_what_was_there_holds_up_nobody(local_store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    inode = local_store.local_path(put(local_store, BYTES)).stat().st_ino
    left: list[Callable[[], None]] = []

    class Later:
        def __init__(self, *, target: Callable[[], None], **_name: str) -> None:
            left.append(target)

        def start(self) -> None:
            """Start nothing: the test does what is left to the thread."""

    monkeypatch.setattr("app.artifacts.local.Thread", Later)
    put(local_store, BYTES)
    assert inode in open_inodes()
    left.pop()()
    assert inode not in open_inodes()


def test_bytes_that_are_removed_while_they_are_put_again_are_put(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = local_store.local_path(put(local_store, BYTES))

    def hardlink_to(self: Path, target: Path) -> None:
        try:
            os.link(target, self)
        except FileExistsError:
            path.unlink()  # as a cache does that makes room
            raise

    monkeypatch.setattr(Path, "hardlink_to", hardlink_to)
    put(local_store, BYTES)
    assert path.read_bytes() == BYTES


def open_inodes() -> set[int]:
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(descriptor.stat().st_ino)
    return found


def test_an_open_reader_survives_deletion(local_store: LocalStore) -> None:
    digest = put(local_store, BYTES)
    reader = local_store.iter_bytes(digest, 0, len(BYTES))
    local_store.delete(digest)
    assert b"".join(reader) == BYTES


def test_putting_known_bytes_renews_their_age(local_store: LocalStore) -> None:
    digest = put(local_store, BYTES)
    age(local_store.local_path(digest), DAY_S)
    put(local_store, BYTES)
    assert not local_store.delete_stale(digest, older_than_s=60)


def test_deletion_by_age_waits_for_a_put_that_is_publishing(local_store: LocalStore) -> None:
    digest = put(local_store, BYTES)
    path = local_store.local_path(digest)
    age(path, DAY_S)
    deleted: list[bool] = []
    thread = threading.Thread(target=lambda: deleted.append(local_store.delete_stale(digest, older_than_s=60)))
    with locked(path.parent, fcntl.LOCK_SH):  # what a put holds from looking until it has renewed the age
        thread.start()
        thread.join(timeout=0.2)
        assert deleted == []
        os.utime(path)
    thread.join()
    assert deleted == [False]
    assert path.read_bytes() == BYTES


def test_an_upload_holds_few_bytes_at_a_time(local_store: LocalStore) -> None:
    """The stream may run ahead of the disk by the batch being gathered and the one being written."""
    written: list[int] = []
    ahead: list[int] = []

    class Slow(Incoming):
        def write(self, chunks: Iterable[bytes]) -> None:
            super().write(chunks)
            written.append(self.size)

    async def counted() -> AsyncIterator[bytes]:
        sent = 0
        async for chunk in stream(bytes(32 * MIB)):
            sent += len(chunk)
            ahead.append(sent - (written[-1] if written else 0))
            yield chunk

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.artifacts.local.Incoming", Slow)
        asyncio.run(local_store.put_stream(counted(), expected=digest_of(bytes(32 * MIB)), limit=32 * MIB))
    assert max(ahead) < 10 * MIB


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("a file where the directory should be")
    with pytest.raises(Unavailable, match=str(tmp_path / "artifacts")) as unusable:
        LocalStore.open(tmp_path / "artifacts")
    assert unusable.value.code == "store_unavailable"


def test_says_when_its_directory_has_gone(local_store: LocalStore) -> None:
    (local_store.root / "incoming").rmdir()
    with pytest.raises(Unavailable, match="Nothing can be stored"):
        local_store.check()


@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_was_written_long_ago_is_fresh_once_it_is_put(
    local_store: LocalStore, tmp_path: Path, *, known: bool
) -> None:
    path = tmp_path / "plan"
    path.write_bytes(BYTES)
    age(path, DAY_S)
    digest, _ = local_store.put_file(path, digest=digest_of(BYTES) if known else None)
    assert not local_store.delete_stale(digest, older_than_s=60)
