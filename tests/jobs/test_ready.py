from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import event

from app.database import Database, now
from app.jobs import lease
from app.jobs.outage import next_outage
from app.jobs.queue import queue_of
from app.jobs.ready import ready_jobs
from app.jobs.tables import Job
from app.settings import Settings

MakeJob = Callable[..., str]
MINE, ANYONES, OTHERS = (queue_of("tensorrt", platform) for platform in ("8.6.1/H100", None, "8.6.1/A100"))


def test_the_oldest_jobs_of_a_workers_queues_come_first(database: Database, make_job: MakeJob) -> None:
    first, _, second, third = (make_job(queue=queue) for queue in (ANYONES, OTHERS, MINE, ANYONES))
    assert ready_jobs(database, [MINE, ANYONES], 8) == [first, second, third]
    assert ready_jobs(database, [MINE, ANYONES], 2) == [first, second]


def test_a_job_that_runs_or_waits_for_an_outage_to_pass_is_not_ready(
    database: Database, make_job: MakeJob, settings: Settings
) -> None:
    runs, waits = make_job(queue=MINE), make_job(queue=MINE)
    assert lease.claim(database, runs, worker="one", settings=settings) is not None
    held = lease.claim(database, waits, worker="one", settings=settings)
    assert held is not None
    lease.put_off(database, held, next_outage(None, "store_unavailable", "no answer"))
    assert ready_jobs(database, [MINE], 8) == []
    assert lease.claim(database, waits, worker="two", settings=settings) is None

    with database.transaction() as session:
        session.get_one(Job, waits).again_at = now() - timedelta(seconds=1)
    assert ready_jobs(database, [MINE], 8) == [waits]
    again = lease.claim(database, waits, worker="two", settings=settings)
    assert again is not None
    assert (again.attempt, again.outage and again.outage["times"]) == (1, 1)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_look_takes_steps_in_an_index_only(database: Database, make_job: MakeJob) -> None:
    make_job(queue=MINE)
    statements: list[tuple[str, object]] = []
    event.listen(database.engine, "before_cursor_execute", lambda *given: statements.append((given[2], given[3])))
    ready_jobs(database, [MINE], 8)
    statement, parameters = next(one for one in statements if "jobs" in one[0])
    with database.engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()  # type: ignore[arg-type]  # as they were
    steps = [row.detail for row in plan]
    assert steps[0] == "SEARCH jobs USING INDEX ix_jobs_state_queue_id (state=? AND queue=?)"
    assert steps[1] == "CORRELATED SCALAR SUBQUERY 1"  # what a job waits for
    assert all(step.startswith("SEARCH ") and "INDEX" in step for step in steps[2:])
