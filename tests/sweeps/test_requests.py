"""What the variants of a sweep are called, and how its jobs are made."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from app.artifacts.service import record, require
from app.database import Database
from app.registry.service import create_model, lock_model
from app.settings import Settings
from app.sweeps.requests import _variants, request_sweep
from app.sweeps.schemas import MAX_LABEL, SweepRequest
from tests.engines.workbench import Workbench, digest_of

INPUTS = digest_of("inputs")
WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")


def is_waiting(database: Database) -> bool:
    """Whether some transaction waits for a lock; a transaction sees the same answer for as long as it lasts."""
    with database.reading() as session:
        return bool(session.scalar(WAITING))


def labels(**body: object) -> list[str]:
    return [one.label for one in _variants(SweepRequest.model_validate({"definition": 1} | body))]


def test_a_label_that_is_not_given_is_another_than_those_that_are() -> None:
    none = {"options": {"optimization": "none"}}
    given = {"label": "optimization=none", "options": {"optimization": "basic"}}
    assert labels(variants=[none, given, {}]) == ["optimization=none (#0)", "optimization=none", "as given"]


def test_labels_that_are_cut_off_differ() -> None:
    layers = [[f"encoder.layer.{index}.weight" for index in range(20)] + [last] for last in ("a", "b")]
    first, second = labels(vary={"refit": layers})
    assert first != second
    assert len(first) == MAX_LABEL >= len(second)


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_sweep_locks_blobs_before_its_model_as_builds_do(database: Database, settings: Settings) -> None:
    bench = Workbench(database, settings)
    with database.transaction() as session:
        model_id = create_model(session, "minilm", "", {}).id
        record(session, INPUTS, 1)
    bench.add_definition()
    bench.add_epoch(1)
    bench.add_worker()
    body = {"definition": 1, "weights": 1, "vary": {"optimization": ["none"]}, "verify": {"inputs": INPUTS}}
    placement = request_sweep(database, bench.store, settings, "minilm", SweepRequest.model_validate(body))

    def place() -> None:
        with database.transaction() as session:
            placement.place(session)

    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as session:
            require(session, INPUTS, "/verify/inputs")
            placing = pool.submit(place)
            while not placing.done() and not is_waiting(database):
                time.sleep(0.01)
            lock_model(session, model_id)  # else each would wait for the other
        placing.result()
