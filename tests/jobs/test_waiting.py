from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, update

from app.database import Database, now
from app.fleet import service as fleet
from app.fleet.backend_offer import BackendOffer
from app.fleet.service import WorkerReport
from app.fleet.tables import ReportedWorker
from app.jobs import lease
from app.jobs.outage import next_outage
from app.jobs.queue import queue_of
from app.jobs.tables import Job
from app.settings import Settings

MakeJob = Callable[..., str]
H100 = "8.6.1/NVIDIA H100 80GB HBM3"
WORKER = WorkerReport(
    "host:1:a",
    "host",
    1,
    {"kind": "cpu", "name": "CPU", "memory_total": 2, "memory_free": 1},
    {"onnxruntime": BackendOffer(version="1", makes=("cpu",), loads=("cpu",))},
    (queue_of("onnxruntime"), queue_of("onnxruntime", "cpu")),
    None,
)


def _waiting(client: TestClient, job: str) -> Any:  # noqa: ANN401 - JSON
    answer = client.get(f"/v1/jobs/{job}")
    assert answer.status_code == 200
    return answer.json()["waiting"]


def _code(client: TestClient, job: str) -> str | None:
    waiting = _waiting(client, job)
    return None if waiting is None else str(waiting["code"])


def test_a_job_waits_for_a_worker_of_its_backend_until_one_comes_and_again_when_it_falls_silent(
    client: TestClient, database: Database, settings: Settings, make_job: MakeJob
) -> None:
    job = make_job()
    waiting = _waiting(client, job)
    assert waiting["code"] == "no_worker"
    assert waiting["detail"].startswith("No worker alive offers 'onnxruntime'. Start a worker that does")

    fleet.report(database, WORKER)
    assert _waiting(client, job) is None

    with database.transaction() as session:
        session.execute(update(ReportedWorker).values(seen_at=now() - timedelta(seconds=settings.worker_timeout_s + 1)))
    assert _code(client, job) == "no_worker"


def test_a_worker_that_cannot_use_the_backend_says_why(
    client: TestClient, database: Database, make_job: MakeJob
) -> None:
    job = make_job(queue=queue_of("tensorrt"))
    unusable = BackendOffer(version="8.6.1", unavailable="The driver is too old: install 535 or newer.")
    fleet.report(database, replace(WORKER, backends=dict(WORKER.backends) | {"tensorrt": unusable}))
    waiting = _waiting(client, job)
    assert waiting["code"] == "no_worker"
    assert "cannot use it: The driver is too old: install 535 or newer." in waiting["detail"]


def test_an_engine_waits_for_its_platform_where_others_have_the_backend(
    client: TestClient, database: Database, make_job: MakeJob
) -> None:
    job = make_job(queue=queue_of("tensorrt", H100))
    a100 = (queue_of("tensorrt"), queue_of("tensorrt", "8.6.1/NVIDIA A100-SXM4-80GB"))
    fleet.report(database, replace(WORKER, queues=a100))
    waiting = _waiting(client, job)
    assert waiting["code"] == "no_worker_of_platform"
    assert "the platform '8.6.1-nvidia-h100-80gb-hbm3' of 'tensorrt'" in waiting["detail"]

    fleet.report(database, replace(WORKER, id="host:2:b", queues=(queue_of("tensorrt", H100), queue_of("tensorrt"))))
    assert _waiting(client, job) is None


def test_a_job_waits_while_every_worker_that_can_do_it_is_at_another(
    client: TestClient, database: Database, settings: Settings, make_job: MakeJob
) -> None:
    fleet.report(database, WORKER)
    first, second = make_job(), make_job()
    held = lease.claim(database, first, worker=WORKER.id, settings=settings)
    assert held is not None
    assert _waiting(client, first) is None  # it runs
    assert _code(client, second) == "workers_busy"

    fleet.report(database, replace(WORKER, id="host:2:b"))
    assert _waiting(client, second) is None
    fleet.forget(database, "host:2:b")
    with database.transaction() as session:
        lease.succeed(session, held, {"outputs": "x"})
    assert _waiting(client, second) is None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_list_says_it_of_each_job_and_asks_for_the_fleet_once(
    client: TestClient, database: Database, make_job: MakeJob
) -> None:
    fleet.report(database, WORKER)
    here, there = make_job(), make_job(queue=queue_of("tensorrt"))
    also = [make_job(queue=queue_of("tensorrt")) for _ in range(10)]
    asked: list[str] = []
    engine = client.app.state.database.engine  # type: ignore[attr-defined]  # the application's own state
    event.listen(engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))
    jobs = client.get("/v1/jobs").json()["data"]
    codes = {job["id"]: job["waiting"] and job["waiting"]["code"] for job in jobs}
    assert codes == {here: None} | dict.fromkeys([there, *also], "no_worker")
    assert sum("workers" in statement for statement in asked) == 2  # their queues, then why nobody can use it


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_job_that_has_ended_costs_no_look_at_the_fleet(client: TestClient, make_job: MakeJob) -> None:
    job = make_job()
    assert client.post(f"/v1/jobs/{job}/cancel").json()["waiting"] is None
    asked: list[str] = []
    engine = client.app.state.database.engine  # type: ignore[attr-defined]  # the application's own state
    event.listen(engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))
    assert _waiting(client, job) is None
    assert [statement for statement in asked if "workers" in statement] == []


def test_a_job_that_an_outage_put_off_says_what_it_met_and_when_it_begins_again(
    client: TestClient, database: Database, settings: Settings, make_job: MakeJob
) -> None:
    fleet.report(database, WORKER)
    job = make_job()
    held = lease.claim(database, job, worker=WORKER.id, settings=settings)
    assert held is not None
    lease.put_off(database, held, next_outage(None, "store_unavailable", "The store does not answer."))
    waiting = _waiting(client, job)
    assert waiting["code"] == "outage"
    assert "put off once since" in waiting["detail"]
    assert "'store_unavailable': The store does not answer." in waiting["detail"]
    assert now() < datetime.fromisoformat(waiting["again_at"]) < now() + timedelta(seconds=2)
    assert client.get(f"/v1/jobs/{job}").json()["attempt"] == 0
    with database.transaction() as session:
        session.get_one(Job, job).again_at = now()
    assert _waiting(client, job) is None


def test_a_job_waits_while_every_worker_that_can_do_it_is_in_trouble(
    client: TestClient, database: Database, make_job: MakeJob
) -> None:
    job = make_job()
    fleet.report(database, replace(WORKER, trouble="The store does not answer."))
    waiting = _waiting(client, job)
    assert waiting["code"] == "workers_in_trouble"
    assert "The only worker that can do it begins no jobs for now: The store does not answer." in waiting["detail"]
    assert client.get("/v1/workers").json()["data"][0]["trouble"] == "The store does not answer."

    fleet.report(database, replace(WORKER, id="host:2:b"))
    assert _waiting(client, job) is None


def test_a_running_job_says_what_holds_up_its_worker(
    client: TestClient, database: Database, settings: Settings, make_job: MakeJob
) -> None:
    fleet.report(database, WORKER)
    mine, others = make_job(), make_job()
    lease.claim(database, mine, worker=WORKER.id, settings=settings)
    lease.claim(database, others, worker="host:2:b", settings=settings)
    fleet.report(database, replace(WORKER, trouble="The store does not answer."))
    waiting = _waiting(client, mine)
    assert waiting["code"] == "worker_in_trouble"
    assert "to go on: The store does not answer." in waiting["detail"]
    assert _waiting(client, others) is None
    fleet.report(database, WORKER)
    assert _waiting(client, mine) is None
