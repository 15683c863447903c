from dataclasses import replace
from datetime import timedelta

from fastapi.testclient import TestClient
from sqlalchemy import update

from app.database import Database, now
from app.fleet import service
from app.fleet.backend_offer import read_offers
from app.fleet.service import WorkerReport
from app.fleet.tables import ReportedWorker
from app.settings import Settings

DEVICE = {
    "kind": "cuda",
    "name": "NVIDIA H100 80GB HBM3",
    "memory_total": 2,
    "memory_free": 1,
    "compute_capability": "9.0",
    "driver": "12.8",
    "device_attributes_remembered": True,
}
BACKENDS = {
    "onnxruntime": {"version": "1", "makes": ["cpu"], "loads": ["cpu"], "capabilities": {"lacks": {"x": "why"}}},
    "tensorrt": {"version": "8.6.1", "unavailable": "no GPU; start a worker where there is one"},
}
REPORT = WorkerReport("w1", "host", 7, DEVICE, read_offers(BACKENDS), ("enginesmith.onnxruntime",), None)


def test_a_worker_is_listed_with_what_it_reported_last(client: TestClient, database: Database) -> None:
    service.report(database, REPORT)
    service.report(database, replace(REPORT, job_id="j1"))
    (worker,) = client.get("/v1/workers").json()["data"]
    assert (worker["id"], worker["job"], worker["device"]) == ("w1", "j1", DEVICE | {"fingerprint": None})
    assert worker["backends"] == BACKENDS


def test_a_silent_worker_counts_as_gone(database: Database, settings: Settings) -> None:
    service.report(database, REPORT)
    with database.transaction() as session:
        session.execute(update(ReportedWorker).values(seen_at=now() - timedelta(seconds=settings.worker_timeout_s + 1)))
    with database.reading() as session:
        assert service.alive(session, settings) == []


def test_a_worker_that_stops_is_forgotten(database: Database, settings: Settings) -> None:
    service.report(database, REPORT)
    service.forget(database, "w1")
    with database.reading() as session:
        assert service.alive(session, settings) == []
