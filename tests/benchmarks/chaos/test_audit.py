"""What the audit of a chaos campaign finds, with one promise broken at a time."""

import dataclasses
from pathlib import Path

import pytest
from sqlalchemy import update

from app.artifacts.service import keep, record
from app.artifacts.store import ArtifactStore
from app.database import Database
from app.engines.requests import request_build
from app.engines.schemas import BuildRequest
from app.jobs import events, idempotency, service
from app.jobs.tables import IdempotencyKey, Job
from app.registry.service import create_model
from app.settings import Settings
from benchmarks.chaos.audit import Audit
from benchmarks.chaos.load import Promise
from tests.engines.workbench import Workbench

OUTPUTS = "sha256:" + "ab" * 32
KEY = "key"


@pytest.fixture
def audit(settings: Settings) -> Audit:
    return Audit(settings)


def end(database: Database, job_id: str, state: str = "succeeded", result: dict[str, str] | None = None) -> None:
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(state=state, result=result))
        events.append(session, job_id, state, {})


@pytest.fixture
def ran(database: Database, model_id: int) -> Promise:
    """A run that kept its promise."""
    with database.transaction() as session:
        job = service.create(session, kind="run", model_id=model_id, queue="q", request={}, likeness="any")
        idempotency.remember(session, KEY, "digest", job.id)
    end(database, job.id, result={"outputs": OUTPUTS})
    return Promise(KEY, "run", job.id, 1, 0.0, outputs=OUTPUTS)


def found(audit: Audit, *promises: Promise) -> dict[str, int]:
    findings = dataclasses.asdict(audit.look(promises))
    return {what: len(cases) for what, cases in findings.items() if cases}


def test_a_promise_that_was_kept_is_no_finding(audit: Audit, ran: Promise) -> None:
    assert found(audit, ran) == {}


def test_a_job_that_never_ended_is_lost(audit: Audit, database: Database, ran: Promise) -> None:
    with database.transaction() as session:
        session.execute(update(Job).values(state="queued"))
    assert found(audit, ran) == {"lost": 1}


def test_an_accepted_job_without_a_row_is_lost(audit: Audit, ran: Promise) -> None:
    assert found(audit, dataclasses.replace(ran, job_id="of no row")) == {"lost": 1}


@pytest.mark.parametrize("state", ["failed", "canceled"])
def test_a_job_that_nobody_wanted_to_fail_has_failed(
    audit: Audit, database: Database, model_id: int, state: str
) -> None:
    with database.transaction() as session:
        job = service.create(session, kind="run", model_id=model_id, queue="q", request={}, likeness="any")
        idempotency.remember(session, KEY, "digest", job.id)
    end(database, job.id, state)
    assert found(audit, Promise(KEY, "run", job.id, 1, 0.0, outputs=OUTPUTS)) == {"failed": 1}


@pytest.mark.parametrize(
    ("host_kills", "code", "what"),
    [
        ((100.5, 101.5), "engine_host_died_twice", "struck"),
        ((99.5, 101.5), "engine_host_died_twice", "failed"),
        ((100.5, 102.5), "engine_host_died_twice", "failed"),
        ((100.5, 101.5), "out_of_memory", "failed"),
    ],
)
def test_a_job_whose_host_the_campaign_killed_twice_was_struck(
    audit: Audit, database: Database, ran: Promise, host_kills: tuple[float, ...], code: str, what: str
) -> None:
    error = {"code": code, "detail": "The engine host was killed by SIGKILL."}
    with database.transaction() as session:
        session.execute(update(Job).values(state="failed", error=error))
    promise = dataclasses.replace(ran, accepted=100.0, ended=102.0)
    findings = audit.look([promise], host_kills)
    assert {name for name, cases in dataclasses.asdict(findings).items() if cases} == {what}
    assert any(findings.broken().values()) == (what == "failed")


def test_other_outputs_are_wrong(audit: Audit, ran: Promise) -> None:
    assert found(audit, dataclasses.replace(ran, outputs="sha256:" + "cd" * 32)) == {"wrong": 1}


def test_a_job_that_ended_twice_is_doubled(audit: Audit, database: Database, ran: Promise) -> None:
    end(database, ran.job_id, result={"outputs": OUTPUTS})
    assert found(audit, ran) == {"doubled": 1}


def test_a_missing_event_is_noticed(audit: Audit, database: Database, ran: Promise) -> None:
    with database.transaction() as session:
        session.execute(update(Job).values(last_event=Job.last_event + 1))
    assert found(audit, ran) == {"doubled": 1}


def test_a_key_that_names_another_job_is_doubled(audit: Audit, database: Database, ran: Promise) -> None:
    with database.transaction() as session:
        session.execute(update(IdempotencyKey).values(key="another"))
    assert found(audit, ran) == {"doubled": 1}


def test_a_job_that_no_key_made_is_doubled(audit: Audit, database: Database, model_id: int, ran: Promise) -> None:
    with database.transaction() as session:
        service.create(session, kind="run", model_id=model_id, queue="q", request={}, likeness="any")
    assert found(audit, ran) == {"doubled": 1}


@pytest.mark.parametrize(("times", "kind", "expected"), [
    (0, "build", {"doubled": 1}),
    (1, "build", {}),
    (2, "build", {"doubled": 1}),
    (1, "fresh", {}),
    (2, "fresh", {"doubled": 1}),
])  # fmt: skip
def test_a_build_makes_one_engine(
    audit: Audit, database: Database, settings: Settings, times: int, kind: str, expected: dict[str, int]
) -> None:
    with database.transaction() as session:
        create_model(session, "minilm", "", {})
    bench = Workbench(database, settings)
    bench.add_definition()
    bench.add_epoch(1)
    bench.add_worker()
    job = bench.submit(request_build, BuildRequest(definition=1, weights=1, reuse=False))
    with database.transaction() as session:
        idempotency.remember(session, KEY, "digest", job.id)
    for _ in range(times):
        bench.publish(job)
    end(database, job.id)
    counts = found(audit, Promise(KEY, kind, job.id, 1, 0.0))
    counts.pop("dangling", None)  # the workbench has rows for bytes that it never put
    assert counts == expected


def test_a_kept_row_without_a_file_dangles(audit: Audit, database: Database) -> None:
    with database.transaction() as session:
        record(session, OUTPUTS, 3)
        keep(session, OUTPUTS, "weights:1")
    assert found(audit) == {"dangling": 1}


def test_a_file_of_another_size_dangles(audit: Audit, database: Database, store: ArtifactStore, tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"abc")
    digest, _ = store.put_file(path)
    with database.transaction() as session:
        record(session, digest, 4)
        keep(session, digest, "weights:1")
    assert found(audit) == {"dangling": 1}


def test_a_file_that_no_sweep_removes_dangles(
    audit: Audit, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"abc")
    store.put_file(path)
    monkeypatch.setattr("benchmarks.chaos.audit.sweep_store", lambda *_, **__: 0)
    assert found(audit) == {"dangling": 1}
    monkeypatch.undo()
    assert found(audit) == {}
