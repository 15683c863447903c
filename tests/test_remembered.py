from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.exc import NoResultFound

from app.bindings.report import BindingReport, ParameterBinding
from app.bindings.service import UnsavedReport, load_binding, record
from app.database import Database
from app.registry.tables import Model
from app.remembered import MEMORY, Memory
from app.tables import Base
from app.weights.manifest import Manifest, TensorEntry
from app.weights.service import load_rows, register
from app.weights.unsaved import UnsavedWeights

MANIFEST = Manifest({"w": TensorEntry("w", "F32", (2,), "b3", "sha256:00", 0, 8)})
BINDING = ParameterBinding("w", "F32", (2,), ("w",))


@pytest.fixture
def keys(database: Database, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """The keys of a weight version and of a binding."""
    monkeypatch.setattr("app.artifacts.service.keep", lambda *_args: None)  # there is no such file
    with database.transaction() as session:
        model = Model(name="net")
        session.add(model)
        session.flush()
        version, _ = register(session, model.id, UnsavedWeights.of(MANIFEST))
        return version.id, record(session, UnsavedReport.of(BindingReport((BINDING,))))


@pytest.fixture
def statements(database: Database, keys: tuple[int, int]) -> Iterator[list[str]]:  # noqa: ARG001 - made before
    """What the database is asked from now on."""
    asked: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        asked.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield asked
    event.remove(database.engine, "before_cursor_execute", note)


def selects(statements: list[str]) -> int:
    return sum(statement.startswith("SELECT") for statement in statements)


def read_twice(database: Database, keys: tuple[int, int]) -> None:
    for _ in range(2):
        with database.reading() as session:
            assert load_rows(session, keys[0]) == MANIFEST.to_json()
            assert load_binding(session, keys[1]).parameters == (BINDING,)


def test_what_was_read_is_remembered(database: Database, keys: tuple[int, int], statements: list[str]) -> None:
    read_twice(database, keys)
    assert selects(statements) == 2


def test_each_database_has_a_memory_of_its_own(
    database: Database, keys: tuple[int, int], statements: list[str], tmp_path: Path
) -> None:
    read_twice(database, keys)
    other = Database(f"sqlite:///{tmp_path / 'other.db'}")
    Base.metadata.create_all(other.engine)
    with pytest.raises(NoResultFound), other.reading() as session:
        load_rows(session, keys[0])
    other.dispose()
    assert selects(statements) == 2


def test_what_is_larger_than_all_that_is_kept_is_read_each_time(
    database: Database, keys: tuple[int, int], statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database._sessions.kw["info"], MEMORY, Memory(kept_rows=0))
    read_twice(database, keys)
    assert selects(statements) == 4


def test_what_was_used_last_stays() -> None:
    memory = Memory(kept_rows=5)
    for key in (1, 2):
        memory.put(("rows", key), [0, 0])
    assert memory.get(("rows", 1)) == [0, 0]
    memory.put(("rows", 3), [0, 0])
    assert memory.get(("rows", 2)) is None
    assert memory.get(("rows", 1)) == memory.get(("rows", 3)) == [0, 0]
    assert memory.get(("other rows", 1)) is None


def test_a_text_counts_as_one_row() -> None:
    memory = Memory(kept_rows=1)
    memory.put(("name", 1), "a name longer than one letter")
    assert memory.get(("name", 1)) == "a name longer than one letter"
