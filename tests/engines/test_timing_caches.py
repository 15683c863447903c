from app.artifacts.service import record
from app.artifacts.tables import BlobUse
from app.database import Database
from app.engines.timing_caches import find_timing_cache, replace_timing_cache
from tests.engines.workbench import digest_of

H100 = "8.6.1/NVIDIA H100 80GB HBM3"


def replace(database: Database, content: str, platform: str = H100) -> None:
    with database.transaction() as session:
        record(session, digest_of(content), len(content))
        replace_timing_cache(session, platform, digest=digest_of(content), nbytes=len(content))


def found(database: Database, platform: str = H100) -> str | None:
    with database.reading() as session:
        return find_timing_cache(session, platform)


def owner_of(database: Database, content: str, platform: str = H100) -> BlobUse | None:
    with database.reading() as session:
        return session.get(BlobUse, (digest_of(content), f"timing_cache:{platform}"))


def test_each_platform_has_a_timing_cache_of_its_own(database: Database) -> None:
    assert found(database) is None
    replace(database, "first")
    replace(database, "other", platform="8.6.1/ampere_plus")
    assert found(database) == digest_of("first")
    assert found(database, "8.6.1/ampere_plus") == digest_of("other")


def test_the_last_one_written_is_kept_and_the_one_before_let_go(database: Database) -> None:
    replace(database, "first")
    replace(database, "second")
    assert found(database) == digest_of("second")
    assert owner_of(database, "first") is None
    assert owner_of(database, "second") is not None


def test_the_same_bytes_again_stay_kept(database: Database) -> None:
    replace(database, "first")
    replace(database, "first")
    assert found(database) == digest_of("first")
    assert owner_of(database, "first") is not None
