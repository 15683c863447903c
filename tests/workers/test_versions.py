from collections.abc import Iterator

import pytest
from sqlalchemy import event

from app.bindings.report import BindingReport, ParameterBinding
from app.bindings.service import Draft, record
from app.database import Database
from app.registry.tables import Model
from app.weights.manifest import Manifest, TensorEntry
from app.weights.service import Draft as WeightsDraft
from app.weights.service import register
from workers import versions
from workers.versions import Versions

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
        version, _ = register(session, model.id, WeightsDraft.of(MANIFEST))
        return version.id, record(session, Draft.of(BindingReport((BINDING,))))


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
    known = Versions()
    for _ in range(2):
        with database.reading() as session:
            assert known.manifest(session, keys[0]) == MANIFEST.to_json()
            assert known.binding(session, keys[1]).parameters == (BINDING,)


def test_what_was_read_is_remembered(database: Database, keys: tuple[int, int], statements: list[str]) -> None:
    read_twice(database, keys)
    assert selects(statements) == 2


def test_what_is_larger_than_all_that_is_kept_is_read_each_time(
    database: Database, keys: tuple[int, int], statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "KEPT_ROWS", 0)
    read_twice(database, keys)
    assert selects(statements) == 4
