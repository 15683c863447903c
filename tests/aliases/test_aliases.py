from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from app.aliases import service as aliases
from app.aliases.tables import Alias
from app.database import Database
from app.errors import NotFound, PreconditionFailed
from app.http.pagination import PageQuery
from app.registry.service import create_model, get_model
from app.registry.tables import Model

PAGE = PageQuery(limit=50, after=None)


@pytest.fixture
def move(database: Database) -> Callable[..., tuple[Alias, bool]]:
    with database.transaction() as session:
        create_model(session, "minilm", "", {})

    def move(engine: int, if_match: str | None = None, if_none_match: str | None = None) -> tuple[Alias, bool]:
        with database.transaction() as session:
            model = get_model(session, "minilm")
            return aliases.move_alias(
                session, model, "production", engine, if_match=if_match, if_none_match=if_none_match
            )

    return move


def _model(session: Session) -> Model:
    return get_model(session, "minilm")


def test_a_move_changes_the_etag_and_a_repeated_one_does_not(move: Callable[..., tuple[Alias, bool]]) -> None:
    first, created = move(1)
    assert created
    second, created = move(2)
    assert not created
    again, _ = move(2)
    assert aliases.etag(first) != aliases.etag(second) == aliases.etag(again)


def test_if_match_of_an_older_state_is_refused_and_changes_nothing(
    database: Database, move: Callable[..., tuple[Alias, bool]]
) -> None:
    old = aliases.etag(move(1)[0])
    move(2)
    with pytest.raises(PreconditionFailed, match="GET it again"):
        move(3, if_match=old)
    with database.reading() as session:
        assert aliases.get_alias(session, _model(session), "production").engine == 2


def test_if_none_match_star_only_creates(move: Callable[..., tuple[Alias, bool]]) -> None:
    move(1, if_none_match="*")
    with pytest.raises(PreconditionFailed, match="already exists"):
        move(2, if_none_match="*")


def test_if_match_on_an_alias_that_is_gone_is_refused(move: Callable[..., tuple[Alias, bool]]) -> None:
    with pytest.raises(PreconditionFailed, match="does not exist"):
        move(1, if_match='"1"')


def test_history_outlives_a_deletion_and_the_etag_never_repeats(
    database: Database, move: Callable[..., tuple[Alias, bool]]
) -> None:
    before = aliases.etag(move(1)[0])
    with database.transaction() as session:
        aliases.delete_alias(session, _model(session), "production", if_match=before)
    with database.reading() as session, pytest.raises(NotFound):
        aliases.get_alias(session, _model(session), "production")
    after, created = move(1)
    assert created
    assert aliases.etag(after) != before
    with database.reading() as session:
        moves = aliases.list_moves(session, _model(session), "production", PAGE).data
    assert [(step.engine, step.revision) for step in moves] == [(1, 3), (None, 2), (1, 1)]


@pytest.mark.parametrize("engine", [0, 10**30])
def test_an_engine_number_that_no_database_holds_is_refused(client: TestClient, engine: int) -> None:
    client.post("/v1/models", json={"name": "minilm"})
    answer = client.put("/v1/models/minilm/aliases/production", json={"engine": engine})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/engine")


def test_an_alias_that_has_not_moved_is_not_sent_again(
    client: TestClient, move: Callable[..., tuple[Alias, bool]]
) -> None:
    path = "/v1/models/minilm/aliases/production"
    move(1)
    seen = client.get(path).headers["etag"]
    same = client.get(path, headers={"If-None-Match": seen})
    assert (same.status_code, same.headers["etag"], same.content) == (304, seen, b"")
    move(2)
    assert client.get(path, headers={"If-None-Match": seen}).json()["engine"] == 2
