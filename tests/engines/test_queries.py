from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, inspect

from app.artifacts.tables import BlobUse
from app.database import Database
from app.engines import queries as catalogue
from app.engines.lineage import Lineage
from app.engines.manifest import engine_manifest
from app.engines.queries import Served, count_changed_tensors
from app.engines.requests import request_build, request_refit
from app.engines.schemas import BuildRequest, RefitRequest
from app.errors import NotFound
from app.http.pagination import PageQuery
from app.registry.service import get_model
from tests.engines.workbench import Workbench

PAGE = PageQuery(limit=50, after=None)


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    """Collect the SELECT, INSERT and UPDATE statements sent meanwhile."""
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith(("BEGIN", "PRAGMA")):
            statements.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield statements
    event.remove(database.engine, "before_cursor_execute", note)


def build(bench: Workbench, weights: int = 1, **fields: object) -> int:
    body = BuildRequest.model_validate({"definition": 1, "weights": weights, "reuse": False, **fields})
    return bench.publish(bench.submit(request_build, body))


def refit(bench: Workbench, engine: int, weights: int) -> int:
    body = RefitRequest(engine=engine, weights=weights, reuse=False)
    return bench.publish(bench.submit(request_refit, body))


@pytest.fixture
def tree(bench: Workbench) -> Workbench:
    """Engine 1 (weights 1) ── 2 (weights 2) ── 3 (weights 3), and 4 (weights 1) beside 2."""
    bench.add_epoch(2, label="epoch 2")
    bench.add_epoch(3)
    refit(bench, refit(bench, build(bench), 2), 3)
    refit(bench, 1, 1)
    return bench


def family_of(bench: Workbench, number: int, ancestors: int = 10, descendants: int = 10) -> Lineage:
    with bench.database.reading() as session:
        model_id = get_model(session, "minilm").id
        return catalogue.load_lineage(session, model_id, number, ancestors=ancestors, descendants=descendants)


def test_engines_are_numbered_in_the_order_they_are_published(bench: Workbench) -> None:
    assert [build(bench), build(bench), build(bench)] == [1, 2, 3]


def test_a_published_engine_keeps_its_plan(bench: Workbench) -> None:
    engine = bench.engine(build(bench))
    with bench.database.reading() as session:
        assert session.get(BlobUse, (engine.plan_digest, f"engine:{engine.id}")) is not None


def test_a_published_engine_names_its_definition_and_weights_by_their_numbers(bench: Workbench) -> None:
    bench.add_definition("second")
    bench.add_epoch(2)
    engine = bench.engine(build(bench, definition=2, weights=2))
    assert (engine.definition, engine.weights, engine.method, engine.parent) == (2, 2, "build", None)


def test_an_engine_that_is_not_there_is_not_found(bench: Workbench) -> None:
    with pytest.raises(NotFound) as caught:
        bench.engine(1)
    assert caught.value.code == "engine_not_found"


def test_a_list_is_newest_first_and_takes_one_statement(tree: Workbench) -> None:
    with tree.database.reading() as session:
        model_id = get_model(session, "minilm").id
        with counted(tree.database) as statements:
            rows = catalogue.list_engines(session, model_id, PAGE)
    assert [engine.number for engine in rows.data] == [4, 3, 2, 1]
    assert len(statements) == 1


def test_a_list_leaves_the_large_columns_alone(tree: Workbench) -> None:
    with tree.database.reading() as session:
        rows = catalogue.list_engines(session, get_model(session, "minilm").id, PAGE)
    large = {"profiles", "options", "rules", "verification", "facts", "timings"}
    assert large <= inspect(rows.data[0]).unloaded


def test_reading_an_engine_takes_one_statement_and_loads_only_what_is_shown(tree: Workbench) -> None:
    with tree.database.reading() as session:
        model_id = get_model(session, "minilm").id
        with counted(tree.database) as statements:
            engine = catalogue.get_engine(session, model_id, 2, load=catalogue.DETAIL)
    assert len(statements) == 1
    assert inspect(engine).unloaded == {"rules"}


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        ({"weights": 1}, [4, 1]),
        ({"definition": 1}, [4, 3, 2, 1]),
        ({"definition": 2}, []),
        ({"backend": "tensorrt"}, []),
    ],
)
def test_a_list_can_be_narrowed(tree: Workbench, filters: dict[str, Any], numbers: list[int]) -> None:
    with tree.database.reading() as session:
        model_id = get_model(session, "minilm").id
        rows = catalogue.list_engines(session, model_id, PAGE, **filters)
    assert [engine.number for engine in rows.data] == numbers


def test_a_family_is_found_in_both_directions(tree: Workbench) -> None:
    lineage = family_of(tree, 2)
    assert [one.number for one in lineage.ancestors] == [1]
    assert [one.number for one in lineage.descendants] == [3]
    assert lineage.engine.label == "epoch 2"
    assert {one.number for one in family_of(tree, 1).descendants} == {2, 3, 4}


def test_a_family_says_where_it_was_cut_off(tree: Workbench) -> None:
    above = family_of(tree, 3, ancestors=1)
    assert [one.number for one in above.ancestors] == [2]
    assert not above.ancestors_complete
    below = family_of(tree, 1, descendants=2)
    assert {one.number for one in below.descendants} == {2, 4}
    assert not below.descendants_complete


def test_a_family_takes_as_many_statements_however_large_it_is(tree: Workbench) -> None:
    with counted(tree.database) as small:
        family_of(tree, 1)
    engine = 3
    for _ in range(5):
        engine = refit(tree, engine, 2)
    with counted(tree.database) as large:
        family_of(tree, 1)
    assert len(large) == len(small)


def test_lineage_counts_the_tensors_each_refit_changed(tree: Workbench) -> None:
    counts = count_changed_tensors(tree.database, family_of(tree, 1))
    assert counts == {2: 1, 3: 1, 4: 0}


def test_the_manifest_says_how_the_engine_came_to_be(tree: Workbench) -> None:
    with tree.database.reading() as session:
        document = engine_manifest(session, get_model(session, "minilm"), 3)
    engine = tree.engine(3)
    assert document["model"] == "minilm"
    assert document["weights"]["version"] == 3
    assert document["definition"]["source"] == {"family": "bert"}
    assert document["binding"]["ok"] is True
    assert document["plan"] == {
        "digest": engine.plan_digest,
        "bytes": 10,
        "signature": "00",
        "root": tree.engine(1).plan_digest,
    }
    assert document["parents"] == [
        {"number": 2, "method": "refit", "weights": 2},
        {"number": 1, "method": "build", "weights": 1},
    ]
    assert document["job"]["id"] == engine.job_id
    assert document["verification"] == {"against": "reference", "ok": True}
    assert document["service_version"]
    assert "service_version" not in document["facts"]


@pytest.mark.parametrize(
    ("served", "numbers"),
    [
        (Served(), (1, 1)),
        (Served(["1.32.0"], ["cpu"]), (1, 1)),
        (Served(["1.32.0", "1.33.0"], ["gpu", "cpu"]), (1, 1)),
        (Served(["1.33.0"], ["cpu"]), (None, None)),
        (Served(["1.32.0"], ["gpu"]), (None, None)),
        (Served(["1.32.0"], []), (None, None)),
    ],
)
def test_only_engines_that_somebody_serves_are_found(
    bench: Workbench, served: Served, numbers: tuple[int | None, int | None]
) -> None:
    engine = bench.engine(build(bench))
    with bench.database.reading() as session:
        equal = catalogue.find_equal(session, engine.model_id, engine.fingerprint, served)
        parent = catalogue.find_parent(session, engine.model_id, engine.recipe, served)
    assert (equal[0].number if equal else None, parent and parent.number) == numbers


def test_a_parent_can_be_narrowed_to_root_plans(tree: Workbench) -> None:
    build(tree, weights=2)
    first, second = tree.engine(1), tree.engine(5)

    def parent_of(*root_plans: str) -> int | None:
        with tree.database.reading() as session:
            found = catalogue.find_parent(session, first.model_id, first.recipe, Served(), root_plans)
        return None if found is None else found.number

    assert [parent_of(first.root_plan), parent_of(second.root_plan), parent_of()] == [4, 5, None]


def test_of_each_compiled_engine_the_newest_refit_is_found(tree: Workbench) -> None:
    build(tree, weights=2)
    engine = tree.engine(1)

    def roots(served: Served, limit: int) -> list[int]:
        with tree.database.reading() as session:
            found = catalogue.find_roots(session, engine.model_id, engine.recipe, served, limit=limit)
        return [engine_id for engine_id, _ in found]

    assert roots(Served(), 9) == [tree.engine(5).id, tree.engine(4).id]
    assert roots(Served(), 1) == [tree.engine(5).id]
    assert roots(Served(["1.32.0"], ["gpu"]), 9) == []
