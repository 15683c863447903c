"""What every store does, whatever it is made of."""

import asyncio
import hashlib
import os
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any
from uuid import uuid4

import obstore
import pytest

from app.artifacts.batches import WRITERS
from app.artifacts.local import LocalStore
from app.artifacts.remote import PART, RemoteStore
from app.artifacts.store import ArtifactStore, open_store
from app.errors import Invalid, NotFound, TooLarge, Unavailable
from app.http.turns import current_address
from app.settings import MIB, Settings
from tests.artifacts.conftest import digest_of, files_in, stream

LIMIT = 64 * MIB
BYTES = os.urandom(3 * MIB + 17)


@pytest.fixture(params=["local", "file", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "s3":
        request.getfixturevalue("s3_environment")
    url = {
        "local": "",
        "file": f"file://{tmp_path}/elsewhere%20with%20space",
        "memory": "memory:///",
        "s3": f"s3://bucket/{uuid4().hex}",
    }[request.param]
    return open_store(Settings(data_dir=tmp_path, store_url=url))


@pytest.fixture
def remains(store: ArtifactStore, request: pytest.FixtureRequest) -> Callable[[], list[str]]:
    """Everything that lies in the store, finished or not."""

    def in_objects() -> list[str]:
        assert isinstance(store, RemoteStore)
        return [row["path"] for page in obstore.list(store._objects) for row in page]

    def in_s3() -> list[str]:
        endpoint = request.getfixturevalue("s3_endpoint")
        with urllib.request.urlopen(f"{endpoint}/bucket?uploads") as answer:  # noqa: S310 - our own server
            return in_objects() + ["an unfinished upload"] * answer.read().count(b"<Upload>")

    if isinstance(store, LocalStore):
        return lambda: files_in(store)
    return in_s3 if "s3" in request.node.callspec.id else in_objects


def put(store: ArtifactStore, data: bytes, *, expected: str | None = None, limit: int = LIMIT) -> str:
    digest = expected or digest_of(data)
    assert asyncio.run(store.put_stream(stream(data), expected=digest, limit=limit)) == len(data)
    return digest


@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 17, 2 * PART + 1])
def test_returns_the_bytes_it_was_given(store: ArtifactStore, size: int) -> None:
    data = os.urandom(size)
    digest = put(store, data)
    assert store.size(digest) == size
    assert store.read(digest, 0, size) == data
    assert b"".join(store.iter_bytes(digest, 0, size)) == data
    assert store.local_path(digest).read_bytes() == data


def test_reads_parts_and_stops_at_the_end(store: ArtifactStore) -> None:
    digest = put(store, BYTES)
    assert store.read(digest, 5, 10) == BYTES[5:15]
    assert store.read(digest, len(BYTES) - 3, 10) == BYTES[-3:]
    assert store.read(digest, len(BYTES), 10) == b""
    assert b"".join(store.iter_bytes(digest, 7, 2 * MIB)) == BYTES[7 : 2 * MIB]


def test_yields_no_more_than_a_chunk_at_a_time(store: ArtifactStore) -> None:
    digest = put(store, BYTES)
    assert max(len(part) for part in store.iter_bytes(digest, 0, len(BYTES), chunk=100_000)) <= 100_000


def test_keeps_nothing_of_other_bytes(store: ArtifactStore, remains: Callable[[], list[str]]) -> None:
    expected = digest_of(b"something else")
    with pytest.raises(Invalid) as refused:
        put(store, BYTES, expected=expected)
    assert refused.value.code == "digest_mismatch"
    assert digest_of(BYTES) in refused.value.detail
    assert remains() == []


@pytest.mark.parametrize("size", [3 * MIB, PART + MIB])
def test_keeps_nothing_of_more_than_the_limit(
    store: ArtifactStore, remains: Callable[[], list[str]], size: int
) -> None:
    data = os.urandom(size)
    with pytest.raises(TooLarge):
        put(store, data, limit=size - 1)
    assert remains() == []


def test_takes_exactly_the_limit(store: ArtifactStore) -> None:
    assert store.size(put(store, BYTES, limit=len(BYTES))) == len(BYTES)


@pytest.mark.parametrize("size", [MIB, 2 * PART + MIB])
def test_keeps_nothing_of_a_stream_that_breaks_off(
    store: ArtifactStore, remains: Callable[[], list[str]], size: int
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        async for chunk in stream(os.urandom(size)):
            yield chunk
        raise ConnectionResetError("the client is gone")

    with pytest.raises(ConnectionResetError):
        asyncio.run(store.put_stream(broken(), expected=digest_of(BYTES), limit=LIMIT))
    assert remains() == []


def test_keeps_nothing_of_a_cancelled_upload(store: ArtifactStore, remains: Callable[[], list[str]]) -> None:
    async def cancel_when_under_way() -> None:
        under_way = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(2 * PART // MIB + 1):
                yield bytes(MIB)
            under_way.set()
            await asyncio.Event().wait()

        upload = asyncio.create_task(store.put_stream(endless(), expected=digest_of(BYTES), limit=LIMIT))
        await under_way.wait()
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload

    asyncio.run(cancel_when_under_way())
    assert remains() == []


def test_takes_the_same_bytes_from_many_at_once(store: ArtifactStore, remains: Callable[[], list[str]]) -> None:
    digest = digest_of(BYTES)

    async def upload_all() -> list[int]:
        return await asyncio.gather(*(store.put_stream(stream(BYTES), expected=digest, limit=LIMIT) for _ in range(6)))

    assert asyncio.run(upload_all()) == [len(BYTES)] * 6
    assert store.read(digest, 0, len(BYTES)) == BYTES
    assert len(remains()) == 1


def test_takes_a_file_over(store: ArtifactStore, tmp_path: Path, remains: Callable[[], list[str]]) -> None:
    for _ in range(2):
        path = tmp_path / "plan"
        path.write_bytes(BYTES)
        assert store.put_file(path) == (digest_of(BYTES), len(BYTES))
        assert not path.exists()
    assert store.local_path(digest_of(BYTES)).read_bytes() == BYTES
    assert len(remains()) == 1


@pytest.mark.usefixtures("s3_environment")
@pytest.mark.parametrize("url", ["memory:///", "s3://bucket/uncached"])
def test_a_file_that_reached_the_object_store_is_put_whether_the_cache_has_room_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise Unavailable("no room", code="store_full")

    store = open_store(Settings(data_dir=tmp_path, store_url=url))
    path = tmp_path / "plan"
    path.write_bytes(BYTES)
    monkeypatch.setattr(LocalStore, "put_file", full)
    assert store.put_file(path) == (digest_of(BYTES), len(BYTES))
    assert not path.exists()
    assert store.local_path(digest_of(BYTES)).read_bytes() == BYTES


def test_an_address_whose_uploads_fill_their_share_keeps_no_other_address_waiting(store: ArtifactStore) -> None:
    assert isinstance(store, LocalStore | RemoteStore)
    writers, gate = store._writers, threading.Event()
    other = BYTES[::-1]

    async def from_address(address: str, work: Coroutine[Any, Any, object]) -> None:
        current_address.set(address)
        await work

    async def scene() -> None:
        flood: list[Coroutine[Any, Any, object]] = [writers.run(gate.wait, 60) for _ in range(WRITERS)]
        flood += [store.put_stream(stream(BYTES), expected=digest_of(BYTES), limit=LIMIT)]
        waiting = [asyncio.create_task(from_address("flood", one)) for one in flood]
        await asyncio.sleep(0)
        await from_address("other", store.put_stream(stream(other), expected=digest_of(other), limit=LIMIT))
        assert not any(one.done() for one in waiting)
        gate.set()
        await asyncio.gather(*waiting)

    asyncio.run(scene())
    assert store.read(digest_of(BYTES), 0, len(BYTES)) == BYTES


def test_what_is_held_can_be_read(store: ArtifactStore) -> None:
    digest = put(store, BYTES)
    with store.holding():
        assert store.local_path(digest).read_bytes() == BYTES
    assert store.local_path(digest).read_bytes() == BYTES


def test_takes_a_file_over_without_reading_it_for_the_digest_its_writer_has_computed(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        pytest.fail("it was read again")

    path = tmp_path / "plan"
    path.write_bytes(BYTES)
    digest = digest_of(BYTES)
    monkeypatch.setattr(hashlib, "file_digest", refuse)
    assert store.put_file(path, digest=digest) == (digest, len(BYTES))
    assert not path.exists()
    assert store.local_path(digest).read_bytes() == BYTES
    assert store.read(digest, 0, len(BYTES)) == BYTES


def test_gives_a_local_file_that_cannot_be_written_by_mistake(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"plan")
    taken, _ = store.put_file(tmp_path / "plan")
    for digest in (put(store, BYTES), taken):
        assert store.local_path(digest).stat().st_mode & 0o222 == 0


def test_forgets_what_is_deleted(store: ArtifactStore, remains: Callable[[], list[str]]) -> None:
    digest = put(store, BYTES)
    store.local_path(digest)
    store.delete(digest)
    store.delete(digest)
    assert store.size(digest) is None
    assert remains() == []
    for use in (
        lambda: store.read(digest, 0, 1),
        lambda: store.iter_bytes(digest, 0, 1),
        lambda: store.local_path(digest),
    ):
        with pytest.raises(NotFound, match=f"PUT /v1/blobs/{digest}"):
            use()


def test_spares_what_was_put_lately_from_deletion_by_age(store: ArtifactStore) -> None:
    digest = put(store, BYTES)
    assert not store.delete_stale(digest, older_than_s=3600)
    assert store.size(digest) == len(BYTES)
    assert store.delete_stale(digest, older_than_s=-1)
    assert store.size(digest) is None
    assert store.delete_stale(digest, older_than_s=3600)


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../../etc/passwd", f"sha256:{'A' * 64}", "a" * 64])
def test_refuses_what_is_no_digest(store: ArtifactStore, digest: str) -> None:
    for use in (
        lambda: store.size(digest),
        lambda: store.read(digest, 0, 1),
        lambda: store.local_path(digest),
        lambda: store.delete(digest),
        lambda: asyncio.run(store.put_stream(stream(b""), expected=digest, limit=1)),
    ):
        with pytest.raises(Invalid, match="64 lower-case"):
            use()


def test_says_that_it_can_be_used(store: ArtifactStore) -> None:
    store.check()


@pytest.mark.usefixtures("s3_environment")
def test_an_object_store_that_does_not_answer_is_named(tmp_path: Path) -> None:
    store = open_store(Settings(data_dir=tmp_path, store_url="s3://no-such-bucket/"))
    for use in (store.check, lambda: put(store, BYTES)):
        with pytest.raises(Unavailable, match="ENGINESMITH_STORE_URL") as unavailable:
            use()
        assert unavailable.value.code == "store_unavailable"


@pytest.mark.parametrize("url", ["ftp://host/x", "relative/path", "file://otherhost/x"])
def test_refuses_a_store_url_it_does_not_know(tmp_path: Path, url: str) -> None:
    with pytest.raises(Invalid, match="file:///DIRECTORY"):
        open_store(Settings(data_dir=tmp_path, store_url=url))
