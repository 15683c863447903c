import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy.sql.schema import Table

from app.bindings.service import UnsavedReport, record
from app.database import Database, JsonText
from app.engines.fingerprint import recipe
from app.engines.tables import Engine
from migrations import alembic_config, upgrade
from tests.conftest import OTHERS_OUT

PLAN = "sha256:" + "9a" * 32
MOMENT = "2026-11-22 10:00:00+00:00"
REPORT = '{"ok": true, "bindings": [{"parameter": "w", "tensors": ["w"]}]}'
OTHER_REPORT = '{"ok": true, "bindings": []}'
LAZY = {"plan_digest": None, "plan_bytes": None, "plan_signature": None}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'old.db'}"
        return
    whole = sa.make_url(request.getfixturevalue("postgres_url"))
    engine = sa.create_engine(whole, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("CREATE SCHEMA old"))
        yield whole.update_query_dict({"options": "-csearch_path=old"}).render_as_string(hide_password=False)
        connection.execute(sa.text(OTHERS_OUT))
        connection.execute(sa.text("DROP SCHEMA old CASCADE"))  # to drop a database would take seconds
    engine.dispose()


@pytest.fixture
def old_url(empty_url: str) -> str:
    """A database of revision 0001 with an engine, its refit, and all that they refer to."""
    command.upgrade(alembic_config(empty_url), "0001")
    row = dict.fromkeys(("model_id", "definition_id", "definition", "weights_id", "weights"), 1)
    engine = row | {"backend": "onnxruntime", "backend_version": "1.32.0", "device": "cpu", "fingerprint": "f"}
    engine |= {"recipe": "r", "refittable": True, "plan_digest": PLAN, "plan_bytes": 10, "plan_signature": "00"}
    engine |= {"job_id": "job", "created_at": MOMENT}
    engine |= dict.fromkeys(("profiles", "options", "rules", "verification", "facts", "timings"), "[]")
    engine |= {"binding": REPORT}
    insert(empty_url, "blobs", {"digest": PLAN, "size": 10, "created_at": MOMENT, "seen_at": MOMENT})
    model = {"name": "net", "description": "", "labels": "{}", "created_at": MOMENT}
    insert(empty_url, "models", model | {"last_definition": 1, "last_weights": 1, "last_engine": 2})
    made = {"model_id": 1, "version": 1, "digest": PLAN, "created_at": MOMENT}
    graph = dict.fromkeys(("source", "inputs", "outputs", "parameters", "rules"), "[]")
    insert(empty_url, "definitions", made | graph | {"parameter_count": 1})
    insert(empty_url, "weight_versions", made | {"tensor_count": 1, "bytes": 10, "manifest": "[]"})
    job = {"id": "job", "kind": "build", "state": "succeeded", "queue": "q", "model_id": 1, "model": "net"}
    job |= {"attempt": 1, "fence": 1, "last_event": 0, "created_at": MOMENT}
    insert(empty_url, "jobs", job | {"request": f'{{"weights_id": 1, "binding": {REPORT}}}'})
    queued = job | {"id": "queued", "kind": "refit", "state": "queued"}
    insert(empty_url, "jobs", queued | {"request": f'{{"parent_id": 1, "binding": {OTHER_REPORT}}}'})
    insert(empty_url, "jobs", job | {"id": "run", "kind": "run", "request": '{"engine_id": 1}'})
    insert(empty_url, "engines", engine | {"number": 1, "method": "build"})
    insert(empty_url, "engines", engine | {"number": 2, "method": "refit", "parent": 1})
    return empty_url


def insert(url: str, table: str, row: dict[str, Any]) -> None:
    """Insert a row, whatever the present code says of the table."""
    with connected(url) as connection:
        connection.execute(sa.insert(sa.table(table, *map(sa.column, row))).values(row))


@contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    """A transaction on a connection as the service makes them, with foreign keys asked for."""
    database = Database(url)
    with database.engine.begin() as connection:
        yield connection
    database.dispose()


def engines_of(url: str) -> list[dict[str, Any]]:
    return rows_of(url, "engines", "number")


def rows_of(url: str, name: str, order: str = "id") -> list[dict[str, Any]]:
    with connected(url) as connection:
        table = Table(name, sa.MetaData(), autoload_with=connection)
        return [dict(row._mapping) for row in connection.execute(sa.select(table).order_by(order))]


def test_the_migrations_give_the_tables_the_code_expects(database_url: str) -> None:
    command.check(alembic_config(database_url))  # raises where a table and its migration differ


def test_upgrading_again_changes_nothing(database_url: str) -> None:
    before = sa.inspect(sa.create_engine(database_url)).get_table_names()
    command.upgrade(alembic_config(database_url), "head")
    assert sa.inspect(sa.create_engine(database_url)).get_table_names() == before
    assert "jobs" in before


def test_engines_of_the_first_release_are_kept_and_get_their_platform(old_url: str) -> None:
    before = engines_of(old_url)
    upgrade(old_url)
    after = engines_of(old_url)
    assert [row["number"] for row in after] == [1, 2]
    for old, new in zip(before, after, strict=True):
        assert old.keys() - new.keys() == {"binding"}
        assert all(new[name] == value for name, value in old.items() if name != "binding")
        assert (new["platform"], new["root_plan"], new["base_id"]) == ("cpu", PLAN, None)
    command.check(alembic_config(old_url))


def test_bindings_of_the_first_releases_are_kept_once_and_named_by_engines_and_jobs(old_url: str) -> None:
    upgrade(old_url)
    reports = {row["id"]: row["report"] for row in rows_of(old_url, "bindings")}
    assert sorted(reports.values(), key=str) == sorted(map(json.loads, (REPORT, OTHER_REPORT)), key=str)
    assert [reports[row["binding_id"]] for row in engines_of(old_url)] == [json.loads(REPORT)] * 2
    requests = {row["id"]: row["request"] for row in rows_of(old_url, "jobs")}
    assert reports[requests["job"].pop("binding_id")] == json.loads(REPORT)
    assert reports[requests["queued"].pop("binding_id")] == json.loads(OTHER_REPORT)
    assert requests == {"job": {"weights_id": 1}, "queued": {"parent_id": 1}, "run": {"engine_id": 1}}


def test_a_binding_of_an_earlier_release_is_found_again_by_its_text(old_url: str) -> None:
    upgrade(old_url)
    database = Database(old_url)
    with database.transaction() as session:
        unsaved = UnsavedReport("sha256:" + hashlib.sha256(REPORT.encode()).hexdigest(), JsonText(REPORT))
        assert {record(session, unsaved)} == set(session.scalars(sa.select(Engine.binding_id)))
    database.dispose()


def test_jobs_of_the_first_releases_say_nothing_of_how_long_others_take(old_url: str) -> None:
    before = rows_of(old_url, "jobs")
    upgrade(old_url)
    after = rows_of(old_url, "jobs")
    assert [row.pop("likeness") for row in after] == [None] * len(before)
    assert [row["id"] for row in after] == [row["id"] for row in before]
    with connected(old_url) as connection:
        indexes = sa.inspect(connection).get_indexes("jobs")
    assert ["likeness", "state", "id"] in [index["column_names"] for index in indexes]


def test_an_upgraded_database_takes_engines_without_a_plan_and_holds_their_base(old_url: str) -> None:
    upgrade(old_url)
    lazy = lazy_engine(old_url)
    insert(old_url, "engines", lazy | {"number": 3, "base_id": 1})
    assert engines_of(old_url)[2]["plan_digest"] is None
    with pytest.raises(sa.exc.IntegrityError):
        insert(old_url, "engines", lazy | {"number": 4, "base_id": 99})
    with pytest.raises(sa.exc.IntegrityError):
        insert(old_url, "engines", lazy | {"number": 4, "base_id": 1, "plan_digest": "sha256:" + "00" * 32})


def test_engines_bound_by_rules_can_be_refitted_into_those_bound_by_others(old_url: str) -> None:
    profiles, options, rules = [{"x": {"max": [4]}}], {"level": 3.0, "seed": None}, [{"ignore": "head"}]
    compiled = {"definition": PLAN, "backend": "onnxruntime", "profiles": profiles, "options": {"level": 3}}
    before = {"number": 3, "recipe": digest_of({**compiled, "rules": rules})}
    texts = {"profiles": json.dumps(profiles), "options": json.dumps(options), "rules": json.dumps(rules)}
    insert(old_url, "engines", engine_row(old_url) | texts | before)
    upgrade(old_url)
    expected = recipe(definition_digest=PLAN, backend="onnxruntime", profiles=profiles, options=options)
    assert [row["recipe"] for row in engines_of(old_url)] == ["r", "r", expected]
    command.downgrade(alembic_config(old_url), "0005")
    assert engines_of(old_url)[2]["recipe"] == before["recipe"]


def test_a_downgrade_gives_the_first_release_its_rows_back(old_url: str) -> None:
    before = engines_of(old_url), rows_of(old_url, "jobs")
    upgrade(old_url)
    command.downgrade(alembic_config(old_url), "0001")
    assert (engines_of(old_url), rows_of(old_url, "jobs")) == before
    upgrade(old_url)
    assert len(engines_of(old_url)) == 2


def test_a_downgrade_is_refused_while_an_engine_has_no_plan(old_url: str) -> None:
    upgrade(old_url)
    insert(old_url, "engines", lazy_engine(old_url) | {"number": 3, "base_id": 1})
    with pytest.raises(RuntimeError, match="1 engines have no plan"):
        command.downgrade(alembic_config(old_url), "0001")
    assert engines_of(old_url)[2]["base_id"] == 1


def digest_of(content: dict[str, Any]) -> str:
    """The digest that earlier releases stored."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def engine_row(url: str) -> dict[str, Any]:
    """The columns of an engine of the first release, but for its id; what is JSON is "[]"."""
    lists = ("profiles", "options", "rules", "verification", "facts", "timings")
    row = {name: value for name, value in engines_of(url)[0].items() if name != "id"}
    return row | dict.fromkeys(lists, "[]") | {"created_at": MOMENT, "binding": REPORT}


def lazy_engine(url: str) -> dict[str, Any]:
    """The columns of an engine without a plan, but for its number and base."""
    lists = ("profiles", "options", "rules", "verification", "facts", "timings")
    row = {name: value for name, value in engines_of(url)[0].items() if name not in {"id", "number", "base_id"}}
    return row | LAZY | dict.fromkeys(lists, "[]") | {"created_at": MOMENT}
