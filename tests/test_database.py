from pathlib import Path

import pytest

from app.database import Database


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_settling_writes_something_as_a_commit_of_nothing_is_not_synced(database: Database, tmp_path: Path) -> None:
    log = tmp_path / "enginesmith.db-wal"
    database.settle()
    for _ in range(3):
        before = log.read_bytes()
        with database.transaction():
            pass
        assert log.read_bytes() == before
        database.settle()
        assert log.read_bytes() != before
