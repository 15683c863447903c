import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import obstore
import pytest
from sqlalchemy import select, update

from app.artifacts import service
from app.artifacts.local import LocalStore
from app.artifacts.remote import RemoteStore
from app.artifacts.store import ArtifactStore, open_store
from app.artifacts.strays import call_for_sweep, find_strays, sweep_store
from app.artifacts.tables import Blob, StoreSweep
from app.database import Database, now
from app.settings import Settings
from tests.artifacts.conftest import digest_of

HOUR_S = 3600.0
PUT_AND_DIE = """
import os, signal, sys
from pathlib import Path
from app.artifacts.store import open_store
from app.settings import Settings
open_store(Settings(data_dir=Path(sys.argv[1]))).put_file(Path(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""

Put = Callable[[ArtifactStore, bytes], str]


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "s3":
        request.getfixturevalue("s3_environment")
    url = {"local": "", "memory": "memory:///", "s3": f"s3://bucket/{uuid4().hex}"}[request.param]
    return open_store(Settings(data_dir=tmp_path, store_url=url))


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def put_bytes(store: ArtifactStore, data: bytes) -> str:
        path = tmp_path / "outgoing"
        path.write_bytes(data)
        return store.put_file(path)[0]

    return put_bytes


def record(database: Database, digest: str) -> None:
    with database.transaction() as session:
        service.record(session, digest, 1)


def sweep(database: Database, store: ArtifactStore, *, older_than_s: float = -60) -> int:
    return sweep_store(database, store, older_than_s=older_than_s, every_s=HOUR_S)


@pytest.mark.slow
def test_what_a_killed_process_has_put_before_its_row_is_removed(
    database: Database, local_store: LocalStore, tmp_path: Path
) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"put and never recorded")
    digest = digest_of(path.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", PUT_AND_DIE, tmp_path, path], check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == -signal.SIGKILL
    assert local_store.size(digest) == 22
    assert service.collect_orphans(database, local_store, older_than_s=-1) == 0
    assert sweep(database, local_store) == 1
    assert local_store.size(digest) is None


def test_only_files_without_a_row_are_removed(database: Database, any_store: ArtifactStore, put: Put) -> None:
    known, stray = put(any_store, b"known"), put(any_store, b"stray")
    record(database, known)
    assert [one.digest for one in find_strays(database, any_store, older_than_s=-60)] == [stray]
    assert sweep(database, any_store) == 1
    assert (any_store.size(known), any_store.size(stray)) == (5, None)


def test_a_young_file_is_kept_for_the_row_that_is_to_come(
    database: Database, any_store: ArtifactStore, put: Put
) -> None:
    digest = put(any_store, b"young")
    assert sweep(database, any_store, older_than_s=HOUR_S) == 0
    assert any_store.size(digest) == 5


def test_a_file_that_is_put_again_in_the_middle_of_a_sweep_is_kept(
    database: Database, local_store: LocalStore, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put(local_store, b"again")
    os.utime(local_store.local_path(digest), (time.time() - 2 * HOUR_S,) * 2)
    delete_stale = local_store.delete_stale

    def put_first(digest: str, *, older_than_s: float) -> bool:
        put(local_store, b"again")
        return delete_stale(digest, older_than_s=older_than_s)

    monkeypatch.setattr(local_store, "delete_stale", put_first)
    assert sweep(database, local_store, older_than_s=HOUR_S) == 0
    assert local_store.size(digest) == 5


def test_what_is_not_named_as_an_artifact_is_left_alone(database: Database, any_store: ArtifactStore) -> None:
    name = digest_of(b"x").removeprefix("sha256:")
    shard = next(other for other in ("00", "01") if other != name[:2])
    foreign = {"notes.txt", "sha256/readme", f"sha256/{shard}/{name}", f"sha256/{name[:2]}/{name}.bak"}
    for path in foreign:
        if isinstance(any_store, RemoteStore):
            obstore.put(any_store._objects, path, b"theirs")
        elif isinstance(any_store, LocalStore):
            (any_store.root / path).parent.mkdir(exist_ok=True)
            (any_store.root / path).write_bytes(b"theirs")
    assert list(any_store.page()) == []
    assert sweep(database, any_store) == 0
    if isinstance(any_store, RemoteStore):
        assert {row["path"] for page in obstore.list(any_store._objects) for row in page} == {*foreign, "owner"}
    elif isinstance(any_store, LocalStore):
        assert all((any_store.root / path).exists() for path in foreign)


def test_pages_tell_every_artifact_once(any_store: ArtifactStore, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("local", "remote"):
        monkeypatch.setattr(f"app.artifacts.{module}.PAGE", 3)
    digests = sorted(put(any_store, bytes([number])) for number in range(10))
    told: list[str] = []
    while page := any_store.page(told[-1] if told else None):
        assert all(one.size == 1 and abs(now() - one.put_at) < timedelta(minutes=1) for one in page)
        told += [one.digest for one in page]
    assert told == digests


def test_a_sweep_that_was_broken_off_goes_on_where_it_was(
    database: Database, local_store: LocalStore, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.artifacts.local.PAGE", 1)
    for number in range(4):
        put(local_store, bytes([number]))
    done = [sweep_store(database, local_store, older_than_s=-60, every_s=HOUR_S, go_on=lambda: False) for _ in range(6)]
    assert done == [1, 1, 1, 1, 0, 0]


def test_the_next_sweep_waits_for_its_time_or_a_call(database: Database, local_store: LocalStore, put: Put) -> None:
    assert sweep(database, local_store) == 0
    put(local_store, b"later")
    assert sweep(database, local_store) == 0
    call_for_sweep(database)
    assert sweep(database, local_store) == 1


def test_while_one_sweeps_nobody_else_does_unless_it_was_killed(
    database: Database, local_store: LocalStore, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        """Stands in for a signal in the middle of a sweep."""

    def killed(_digest: str, *, older_than_s: float) -> bool:
        assert sweep(database, LocalStore.open(local_store.root), older_than_s=older_than_s) == 0
        raise Killed

    put(local_store, b"stray")
    monkeypatch.setattr(local_store, "delete_stale", killed)
    with pytest.raises(Killed):
        sweep(database, local_store)
    with database.transaction() as session:
        session.execute(update(StoreSweep).values(due_at=now()))
    assert sweep(database, LocalStore.open(local_store.root)) == 1


def test_the_store_of_a_service_with_another_database_is_not_touched(
    database: Database, any_store: ArtifactStore, put: Put
) -> None:
    assert any_store.owner("another service") == "another service"
    assert any_store.owner("a third one") == "another service"
    digest = put(any_store, b"theirs")
    assert sweep(database, any_store) == 0
    assert any_store.size(digest) == 6


def test_a_sweep_takes_half_written_files_of_killed_writers_along(database: Database, local_store: LocalStore) -> None:
    half = local_store.root / "incoming" / "half"
    half.write_bytes(b"ha")
    os.utime(half, (time.time() - HOUR_S,) * 2)
    sweep(database, local_store)
    assert not half.exists()


def test_a_row_written_before_the_sweep_keeps_its_file(database: Database, local_store: LocalStore, put: Put) -> None:
    digest = put(local_store, b"late row")
    service.record_upload(database, local_store, digest, 8)
    assert sweep(database, local_store) == 0
    with database.reading() as session:
        assert session.scalars(select(Blob.digest)).all() == [digest]
