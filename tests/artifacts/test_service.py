import asyncio
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from app.artifacts import service
from app.artifacts.local import LocalStore
from app.artifacts.tables import Blob, BlobUse
from app.database import Database, now
from app.definitions.tables import Definition
from app.errors import Invalid, Unavailable
from app.registry.tables import Model
from app.weights.tables import CheckpointFile
from tests.artifacts.conftest import digest_of, stream

GRACE_S = 3600.0
LONG_AGO_S = 10 * GRACE_S
BYTES = os.urandom(1000)
DIGEST = digest_of(BYTES)


def put(store: LocalStore, data: bytes = BYTES) -> None:
    asyncio.run(store.put_stream(stream(data), expected=digest_of(data), limit=len(data)))


def upload(database: Database, store: LocalStore, data: bytes = BYTES) -> str:
    put(store, data)
    service.record_upload(database, store, digest_of(data), len(data))
    return digest_of(data)


def upload_long_ago(database: Database, store: LocalStore, data: bytes = BYTES) -> str:
    digest = upload(database, store, data)
    with database.transaction() as session:
        seen = now() - timedelta(seconds=LONG_AGO_S)
        session.execute(update(Blob).where(Blob.digest == digest).values(seen_at=seen))
    os.utime(store.local_path(digest), (time.time() - LONG_AGO_S,) * 2)
    return digest


def collect(database: Database, store: LocalStore) -> int:
    return service.collect_orphans(database, store, older_than_s=GRACE_S)


def recorded(database: Database) -> set[str]:
    with database.reading() as session:
        return set(session.scalars(select(Blob.digest)))


class Collecting(threading.Thread):
    """A collection on a thread of its own."""

    def __init__(self, database: Database, store: LocalStore) -> None:
        super().__init__()
        self._collect = partial(collect, database, store)
        self.collected: int | None = None

    def run(self) -> None:
        self.collected = self._collect()


class Interrupted(LocalStore):
    """A store in which something happens just before a file is deleted by age."""

    before: Callable[[], object]

    def delete_stale(self, digest: str, *, older_than_s: float) -> bool:
        self.before()
        return super().delete_stale(digest, older_than_s=older_than_s)


def test_require_names_everything_that_is_missing(database: Database, local_store: LocalStore) -> None:
    upload(database, local_store)
    missing = [digest_of(b"1"), digest_of(b"2")]
    with database.transaction() as session, pytest.raises(Invalid) as refused:
        service.require(session, [missing[0], DIGEST, missing[1]], "/files")
    assert refused.value.code == "blob_not_found"
    assert [error.pointer for error in refused.value.errors] == ["/files/0", "/files/2"]
    assert all(f"PUT /v1/blobs/{digest} first" in refused.value.detail for digest in missing)


def test_require_points_at_the_field_of_a_single_digest(database: Database) -> None:
    with database.transaction() as session, pytest.raises(Invalid) as refused:
        service.require(session, DIGEST, "/onnx")
    assert [error.pointer for error in refused.value.errors] == ["/onnx"]


def test_require_returns_the_blobs(database: Database, local_store: LocalStore) -> None:
    other = upload(database, local_store, b"other")
    upload(database, local_store)
    with database.transaction() as session:
        blobs = service.require(session, [DIGEST, other, DIGEST], "/files")
    assert {digest: blob.size for digest, blob in blobs.items()} == {DIGEST: 1000, other: 5}


def test_recording_twice_keeps_one_row(database: Database, local_store: LocalStore) -> None:
    upload_long_ago(database, local_store)
    upload(database, local_store)
    with database.reading() as session:
        (blob,) = session.scalars(select(Blob)).all()
        assert now() - blob.seen_at < timedelta(seconds=GRACE_S)
        assert now() - blob.created_at < timedelta(seconds=GRACE_S)


@pytest.mark.parametrize("known", [DIGEST, None], ids=["digest known", "digest unknown"])
def test_what_a_killed_process_put_is_collected(
    database: Database, local_store: LocalStore, tmp_path: Path, known: str | None
) -> None:
    class Killed(Exception):
        """Stands in for a signal that comes as soon as the file is there."""

    class Deadly(LocalStore):
        def put_file(self, path: Path, *, digest: str | None = None) -> tuple[str, int]:
            super().put_file(path, digest=digest)
            raise Killed

    path = tmp_path / "plan"
    path.write_bytes(BYTES)
    with pytest.raises(Killed):
        service.put_file(database, Deadly(local_store.root), path, digest=known, used_within_s=0)
    assert local_store.size(DIGEST) == len(BYTES)
    assert collect(database, local_store) == 0
    assert service.collect_orphans(database, local_store, older_than_s=-1) == 1
    assert local_store.size(DIGEST) is None


def test_what_a_job_has_put_is_spared_for_as_long_as_it_may_run(
    database: Database, local_store: LocalStore, tmp_path: Path
) -> None:
    path = tmp_path / "plan"
    path.write_bytes(BYTES)
    service.put_file(database, local_store, path, used_within_s=60)
    assert service.collect_orphans(database, local_store, older_than_s=-30) == 0
    assert local_store.size(DIGEST) == len(BYTES)
    with database.transaction() as session:
        service.record(session, DIGEST, len(BYTES))
    assert service.collect_orphans(database, local_store, older_than_s=-30) == 1


def test_a_file_is_put_under_its_digest(database: Database, local_store: LocalStore, tmp_path: Path) -> None:
    path = tmp_path / "outputs"
    path.write_bytes(BYTES)
    assert service.put_file(database, local_store, path, used_within_s=0) == (DIGEST, len(BYTES))
    assert local_store.read(DIGEST, 0, len(BYTES)) == BYTES
    assert not path.exists()


def test_collects_what_nothing_needs(database: Database, local_store: LocalStore) -> None:
    orphan = upload_long_ago(database, local_store, b"orphan")
    young = upload(database, local_store, b"young")
    used = upload_long_ago(database, local_store, b"used")
    with database.transaction() as session:
        service.keep(session, used, "engine:7")
        service.keep(session, used, "engine:7")
        session.execute(update(Blob).where(Blob.digest == used).values(seen_at=now() - timedelta(days=9)))
    assert collect(database, local_store) == 1
    assert recorded(database) == {young, used}
    assert local_store.size(orphan) is None
    assert local_store.size(used) == 4


def test_collects_a_released_blob_a_grace_later(database: Database, local_store: LocalStore) -> None:
    upload_long_ago(database, local_store)
    with database.transaction() as session:
        service.keep(session, DIGEST, "weights:1")
        service.keep(session, DIGEST, "weights:2")
    with database.transaction() as session:
        service.release(session, "weights:1")
    with database.reading() as session:
        assert list(session.scalars(select(BlobUse.owner))) == ["weights:2"]
    with database.transaction() as session:
        service.release(session, "weights:2")
    assert collect(database, local_store) == 0
    assert service.collect_orphans(database, local_store, older_than_s=-1) == 1


def test_collects_until_nothing_is_left_the_oldest_first(
    database: Database, local_store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCH", 2)
    digests = [upload_long_ago(database, local_store, bytes([number])) for number in range(5)]
    left: list[set[str]] = []

    def go_on() -> bool:
        left.append(recorded(database))
        return True

    assert service.collect_orphans(database, local_store, older_than_s=GRACE_S, go_on=go_on) == 5
    assert left == [set(digests[2:]), set(digests[4:]), set()]


def test_a_collection_ends_where_it_is_told_to(
    database: Database, local_store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCH", 2)
    digests = [upload_long_ago(database, local_store, bytes([number])) for number in range(3)]
    assert service.collect_orphans(database, local_store, older_than_s=GRACE_S, go_on=lambda: False) == 2
    assert recorded(database) == {digests[2]}


def test_collecting_takes_the_index_of_a_file_along(database: Database, local_store: LocalStore) -> None:
    upload_long_ago(database, local_store)
    with database.transaction() as session:
        session.add(CheckpointFile(digest=DIGEST, tensors=[]))
    assert collect(database, local_store) == 1


@pytest.mark.parametrize("batch", [1, 100])
def test_a_blob_someone_forgot_to_keep_stays_and_stops_nothing(
    database: Database, local_store: LocalStore, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(service, "BATCH", batch)
    named = upload_long_ago(database, local_store, b"named by a definition")
    upload_long_ago(database, local_store)
    with database.transaction() as session:
        model = Model(name="m")
        session.add(model)
        session.flush()
        empty: dict[str, Any] = {"source": {}, "inputs": [], "outputs": [], "parameters": [], "rules": []}
        session.add(Definition(model_id=model.id, version=1, digest=named, parameter_count=0, **empty))
    assert collect(database, local_store) == 1
    assert recorded(database) == {named}
    assert local_store.size(named) is not None


@pytest.mark.parametrize("use", [
    lambda session: service.require(session, [DIGEST], "/files"),
    lambda session: service.keep(session, DIGEST, "engine:7"),
    lambda session: service.record(session, DIGEST, len(BYTES)),
], ids=["require", "keep", "record"])  # fmt: skip
def test_collecting_spares_a_blob_that_is_being_used(
    database: Database, local_store: LocalStore, use: Callable[[Any], object]
) -> None:
    upload_long_ago(database, local_store)
    with database.transaction() as session:
        use(session)
        session.flush()
        collecting = Collecting(database, local_store)
        collecting.start()
        collecting.join(timeout=0.3)  # on SQLite it waits for the one writer; on PostgreSQL it passes over the row
    collecting.join()
    assert collecting.collected == 0
    assert recorded(database) == {DIGEST}
    assert local_store.size(DIGEST) == len(BYTES)


def test_an_upload_between_row_and_file_keeps_its_file(database: Database, local_store: LocalStore) -> None:
    upload_long_ago(database, local_store)
    store = Interrupted(local_store.root)
    store.before = lambda: upload(database, local_store)
    assert collect(database, store) == 1
    assert recorded(database) == {DIGEST}
    assert local_store.size(DIGEST) == len(BYTES)


def test_an_upload_stored_but_not_yet_recorded_keeps_its_file(database: Database, local_store: LocalStore) -> None:
    upload_long_ago(database, local_store)
    put(local_store)
    assert collect(database, local_store) == 1
    service.record_upload(database, local_store, DIGEST, len(BYTES))
    assert recorded(database) == {DIGEST}
    assert local_store.size(DIGEST) == len(BYTES)


def test_require_after_collecting_asks_for_the_bytes(database: Database, local_store: LocalStore) -> None:
    upload_long_ago(database, local_store)
    collect(database, local_store)
    assert not service.touch(database, DIGEST)
    with database.transaction() as session, pytest.raises(Invalid, match="PUT"):
        service.require(session, [DIGEST], "/files")


def test_an_upload_whose_file_was_collected_is_asked_for_again(database: Database, local_store: LocalStore) -> None:
    put(local_store)
    local_store.delete(DIGEST)
    with pytest.raises(Unavailable, match="Send it again"):
        service.record_upload(database, local_store, DIGEST, len(BYTES))
    assert recorded(database) == set()


def test_two_collectors_share_the_work(database: Database, local_store: LocalStore) -> None:
    for number in range(20):
        upload_long_ago(database, local_store, bytes([number]))
    collectors = [Collecting(database, local_store) for _ in range(2)]
    for collector in collectors:
        collector.start()
    for collector in collectors:
        collector.join()
    assert sum(collector.collected or 0 for collector in collectors) == 20
    assert recorded(database) == set()


def test_require_waits_for_a_collection_in_progress_and_then_asks_for_the_bytes(
    database: Database, local_store: LocalStore
) -> None:
    upload_long_ago(database, local_store)
    outcomes: list[Exception] = []

    def require() -> None:
        try:
            with database.transaction() as session:
                service.require(session, [DIGEST], "/files")
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            outcomes.append(error)

    requiring = threading.Thread(target=require)
    with database.transaction() as session:
        session.execute(delete(Blob).where(Blob.digest == DIGEST))
        requiring.start()
        requiring.join(timeout=0.3)
        assert requiring.is_alive()
    requiring.join()
    assert [type(outcome) for outcome in outcomes] == [Invalid]


def test_touch_spares_a_blob_seen_lately_the_write(database: Database, local_store: LocalStore) -> None:
    upload(database, local_store)
    seen = _seen_at(database)
    assert service.touch(database, DIGEST, unless_seen_within_s=60)
    assert _seen_at(database) == seen
    assert service.touch(database, DIGEST)
    assert _seen_at(database) > seen


def _seen_at(database: Database) -> datetime:
    with database.reading() as session:
        return session.scalars(select(Blob.seen_at)).one()
