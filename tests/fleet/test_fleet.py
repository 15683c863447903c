from dataclasses import replace
from datetime import timedelta

from fastapi.testclient import TestClient
from sqlalchemy import update

from app.database import Database, now
from app.fleet import service
from app.fleet.service import WorkerReport
from app.fleet.tables import Worker
from app.settings import Settings

DEVICE = {"kind": "cpu", "name": "x", "memory_total": 2, "memory_free": 1}
REPORT = WorkerReport(
    "w1", "host", 7, DEVICE, {"onnxruntime": {"version": "1", "capabilities": {}}}, ("enginesmith.onnxruntime",), None
)


def test_a_worker_is_listed_with_what_it_reported_last(client: TestClient, database: Database) -> None:
    service.report(database, REPORT)
    service.report(database, replace(REPORT, job_id="j1"))
    (worker,) = client.get("/v1/workers").json()["data"]
    assert (worker["id"], worker["job"], worker["device"]) == ("w1", "j1", DEVICE)


def test_a_silent_worker_counts_as_gone(database: Database, settings: Settings) -> None:
    service.report(database, REPORT)
    with database.transaction() as session:
        session.execute(update(Worker).values(seen_at=now() - timedelta(seconds=settings.worker_timeout_s + 1)))
    with database.reading() as session:
        assert service.alive(session, settings) == []


def test_a_worker_that_stops_is_forgotten(database: Database, settings: Settings) -> None:
    service.report(database, REPORT)
    service.forget(database, "w1")
    with database.reading() as session:
        assert service.alive(session, settings) == []
