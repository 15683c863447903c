"""The scrubber reads what was not read for the longest time, and tells what it finds damaged."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import update

from app.artifacts import scrub as scrubber
from app.artifacts import service
from app.artifacts.damage import note, noting
from app.artifacts.local import LocalStore
from app.artifacts.remote import RemoteStore
from app.artifacts.scrub import Scrubbed, Stopped, Throttle, scrub
from app.artifacts.store import ArtifactStore, open_store
from app.artifacts.tables import Blob
from app.database import Database, now
from app.settings import Settings
from tests.artifacts.conftest import digest_of

DAY_S = 86400.0
CONTENTS = [b"one" * 1000, b"two" * 1000, b"three" * 1000]
Age = Callable[[bytes, float], None]


@pytest.fixture
def age(database: Database, store: LocalStore) -> Age:
    """Put a content, as if it had been checked so many seconds ago."""

    def put(content: bytes, seconds: float) -> None:
        digest, size = store.put_chunks([content])
        moment = now() - timedelta(seconds=seconds)
        with database.transaction() as session:
            service.record(session, digest, size)
            changed = {"checked_at": moment, "seen_at": moment}
            session.execute(update(Blob).where(Blob.digest == digest).values(**changed))

    return put


def row_of(database: Database, content: bytes) -> Blob:
    with database.reading() as session:
        return session.get_one(Blob, digest_of(content))


def run(database: Database, store: ArtifactStore, period_s: float = DAY_S) -> Scrubbed:
    if isinstance(store, LocalStore):
        store = LocalStore(store.root)  # the scrubber's own, which tells nobody
    return scrub(database, store, period_s=period_s, over=Event())


def damage(store: ArtifactStore, content: bytes) -> Path:
    path = store.unchecked_path(digest_of(content))
    path.chmod(0o644)
    path.write_bytes(content[:-1] + b"?")
    return path


def test_reads_what_is_due_and_nothing_else(database: Database, store: ArtifactStore, age: Age) -> None:
    for content, seconds in zip(CONTENTS, (0.9 * DAY_S, 0.6 * DAY_S, 0.4 * DAY_S), strict=True):
        age(content, seconds)
    assert run(database, store) == Scrubbed(read=2)
    assert run(database, store) == Scrubbed()
    read = row_of(database, CONTENTS[0])
    assert read.checked_at is not None
    assert now() - read.checked_at < timedelta(minutes=1)
    assert read.checking_until is None


def test_tells_what_is_damaged_or_missing_and_looks_again_after_a_while(
    database: Database, store: ArtifactStore, age: Age
) -> None:
    for content in CONTENTS:
        age(content, DAY_S)
    path = damage(store, CONTENTS[0])
    store.delete(digest_of(CONTENTS[1]))
    assert run(database, store) == Scrubbed(read=3, damaged=2)
    found = [row_of(database, content) for content in CONTENTS]
    assert [one.damage for one in found] == ["changed", "missing", None]
    assert [one.found_by for one in found] == ["scrubber", "scrubber", None]

    path.write_bytes(CONTENTS[0])
    assert run(database, store) == Scrubbed()
    with database.transaction() as session:
        session.execute(update(Blob).values(checked_at=now() - timedelta(seconds=scrubber.LOOK_AGAIN_S)))
    assert run(database, store) == Scrubbed(read=2, damaged=1)
    assert [row_of(database, content).damage for content in CONTENTS] == [None, "missing", None]
    assert row_of(database, CONTENTS[1]).damaged_at == found[1].damaged_at


def test_what_a_job_has_yet_to_put_is_not_missed(database: Database, store: ArtifactStore) -> None:
    with database.transaction() as session:
        service.record(session, digest_of(b"to come"), 7, used_within_s=3600)
        session.execute(update(Blob).values(checked_at=now() - timedelta(days=2)))
    assert run(database, store) == Scrubbed()


def test_what_another_scrubber_reads_is_left_to_it_unless_it_was_killed(
    database: Database, store: ArtifactStore, age: Age
) -> None:
    age(CONTENTS[0], DAY_S)
    assert scrubber._claim(database, DAY_S) == digest_of(CONTENTS[0])
    assert run(database, store) == Scrubbed()
    with database.transaction() as session:
        session.execute(update(Blob).values(checking_until=now() - timedelta(seconds=1)))
    assert run(database, store) == Scrubbed(read=1)


def test_a_process_that_ends_leaves_the_rest_to_others(database: Database, store: ArtifactStore, age: Age) -> None:
    age(CONTENTS[0], DAY_S)
    over = Event()

    class Ending:
        def recheck(self, _digest: str, pace: Throttle) -> int | None:
            over.set()
            pace(1)
            return 1

    assert scrub(database, Ending(), period_s=DAY_S, over=over) == Scrubbed()  # type: ignore[arg-type]
    assert run(database, store) == Scrubbed(read=1)


def test_reads_no_faster_than_its_pace() -> None:
    waited: list[float] = []
    pace = Throttle(1000.0, Event(), lambda _over, seconds: waited.append(seconds))
    pace(500)
    pace(2000)
    assert waited == [0.5, 2.0]
    pace.over.set()
    with pytest.raises(Stopped):
        pace(1)


@pytest.mark.parametrize("is_missing", [False, True])
def test_a_damaged_object_is_replaced_by_the_copy_of_this_machine(
    database: Database, settings: Settings, tmp_path: Path, *, is_missing: bool
) -> None:
    remote = settings.model_copy(update={"store_url": "memory:///"})
    store = open_store(remote, noting(database, "worker"))
    assert isinstance(store, RemoteStore)
    (tmp_path / "file").write_bytes(CONTENTS[0])
    (tmp_path / "other").write_bytes(CONTENTS[1])
    digest, size = store.put_file(tmp_path / "file")
    with database.transaction() as session:
        service.record(session, digest, size)
        session.execute(update(Blob).values(checked_at=now() - timedelta(days=2)))
    note(database, digest, "changed", "worker")
    if is_missing:
        store._objects.delete(f"sha256/{digest[7:9]}/{digest[7:]}")
    else:
        store._put(tmp_path / "other", digest)
    assert run(database, store) == Scrubbed(read=1, damaged=1, healed=1)
    assert row_of(database, CONTENTS[0]).damaged_at is None
    assert store.read(digest, 0, size) == CONTENTS[0]
