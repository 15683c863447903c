"""Engines that were refitted lazily, as clients meet them; the plan is written by the tests, as a worker would."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from app.artifacts.service import collect_orphans, record
from app.artifacts.store import ArtifactStore
from app.artifacts.tables import Blob, BlobUse
from app.engines.publish import publish_plan
from app.engines.requests import request_build, request_engine, request_refit
from app.engines.schemas import BuildRequest, EngineRequest, RefitRequest
from app.engines.stages import no_time
from app.engines.tables import Engine
from app.engines.work import MaterialiseWork
from app.jobs import lease
from app.jobs.lease import JobError
from app.jobs.service import get_job, request_cancel
from app.jobs.state import State
from tests.engines.workbench import Workbench, digest_of

MODEL = "/v1/models/minilm"
PLAN = b"0123456789"
WAIT_BRIEFLY = {"Prefer": "wait=0.05"}


@pytest.fixture
def lazy(bench: Workbench) -> int:
    """An engine without a plan, refitted from engine 1, which has one."""
    bench.publish(bench.submit(request_build, BuildRequest(definition=1, weights=1)))
    bench.add_epoch(2)
    return bench.publish(bench.submit(request_refit, RefitRequest(engine=1, weights=2, materialise="lazy")))


@pytest.fixture
def write(bench: Workbench, store: ArtifactStore, tmp_path: Path) -> Callable[[str], None]:
    """Do a materialise job."""

    def write(job_id: str) -> None:
        held = lease.claim(bench.database, job_id, worker="test", settings=bench.settings)
        assert held is not None
        path = tmp_path / "plan"
        path.write_bytes(PLAN)
        digest, size = store.put_file(path)
        with bench.database.transaction() as session:
            record(session, digest, size)
            publish_plan(session, held.request["engine_id"], digest=digest, nbytes=size, signature="00")
            lease.succeed(session, held, {"engine": 2})

    return write


def materialise(client: TestClient, number: int) -> tuple[int, dict[str, Any]]:
    answer = client.post(f"{MODEL}/engines/{number}/materialise")
    return answer.status_code, answer.json()


def jobs_of(client: TestClient) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = client.get("/v1/jobs", params={"kind": "materialise"}).json()["data"]
    return jobs


def fail(bench: Workbench, job_id: str) -> None:
    held = lease.claim(bench.database, job_id, worker="test", settings=bench.settings)
    assert held is not None
    lease.fail(bench.database, held, JobError("out_of_memory", "The device is full."))


def while_waiting(client: TestClient, number: int, do: Callable[[str], None], **headers: str) -> Any:  # noqa: ANN401 - an answer
    """Ask for the plan of an engine, `do` something with the job that this makes, and return the answer."""
    answers: list[Any] = []
    waiter = threading.Thread(
        target=lambda: answers.append(client.get(f"{MODEL}/engines/{number}/plan", headers=headers)), daemon=True
    )
    waiter.start()
    while not (jobs := jobs_of(client)):
        pass
    do(jobs[0]["id"])
    waiter.join()
    return answers[0]


def test_an_engine_without_a_plan_says_so(client: TestClient, lazy: int) -> None:
    engine = client.get(f"{MODEL}/engines/{lazy}").json()
    assert (engine["materialised"], engine["plan_digest"], engine["plan_bytes"]) == (False, None, None)
    plan = client.get(f"{MODEL}/engines/{lazy}/manifest").json()["plan"]
    base = client.get(f"{MODEL}/engines/1").json()
    assert base["materialised"] is True
    assert plan == {"digest": None, "bytes": None, "signature": None, "root": base["plan_digest"], "base": 1}


def test_a_refit_of_an_engine_without_a_plan_is_based_on_the_one_that_has_it(
    bench: Workbench, client: TestClient, lazy: int
) -> None:
    bench.add_epoch(3)
    third = bench.publish(bench.submit(request_refit, RefitRequest(engine=lazy, weights=3, materialise="lazy")))
    assert client.get(f"{MODEL}/engines/{third}/manifest").json()["plan"]["base"] == 1
    assert client.get(f"{MODEL}/engines/{third}").json()["parent"] == lazy


def test_the_plan_is_written_by_one_job_however_often_it_is_asked_for(
    client: TestClient, bench: Workbench, lazy: int
) -> None:
    status, job = materialise(client, lazy)
    assert (status, job["kind"], job["state"]) == (202, "materialise", "queued")
    with bench.database.reading() as session:
        assert get_job(session, job["id"]).request == MaterialiseWork(engine_id=bench.engine(lazy).id).to_json()
    assert materialise(client, lazy)[1]["id"] == job["id"]
    assert client.put(f"{MODEL}/aliases/production", json={"engine": lazy}).status_code == 201
    assert client.get(f"{MODEL}/engines/{lazy}/plan", headers=WAIT_BRIEFLY).json()["id"] == job["id"]
    assert len(jobs_of(client)) == 1


def test_the_plan_written_becomes_the_engines_own(client: TestClient, lazy: int, write: Callable[[str], None]) -> None:
    _, job = materialise(client, lazy)
    write(job["id"])
    engine = client.get(f"{MODEL}/engines/{lazy}").json()
    assert (engine["materialised"], engine["plan_bytes"]) == (True, len(PLAN))
    assert "base" not in client.get(f"{MODEL}/engines/{lazy}/manifest").json()["plan"]
    assert client.get(f"{MODEL}/engines/{lazy}/plan").content == PLAN
    status, again = materialise(client, lazy)
    assert (status, again["id"], again["state"]) == (200, job["id"], "succeeded")


def test_an_engine_that_has_its_plan_answers_with_a_finished_job(client: TestClient, lazy: int) -> None:
    digest = client.get(f"{MODEL}/engines/{lazy - 1}").json()["plan_digest"]
    answers = [materialise(client, lazy - 1) for _ in range(2)]
    assert [status for status, _ in answers] == [200, 200]
    result = answers[0][1]["result"]
    assert result == {"engine": 1, "plan_digest": digest} | no_time()
    assert result["stages"]["write"] == {"seconds": 0.0, "bytes": 0}
    assert answers[0][1]["id"] == answers[1][1]["id"]


def test_a_job_that_failed_or_was_canceled_is_followed_by_another(
    client: TestClient, bench: Workbench, lazy: int
) -> None:
    first = materialise(client, lazy)[1]["id"]
    fail(bench, first)
    second = materialise(client, lazy)[1]["id"]
    client.post(f"/v1/jobs/{second}/cancel")
    third = materialise(client, lazy)[1]
    assert len({first, second, third["id"]}) == 3
    assert third["state"] == "queued"


def test_a_plan_that_another_job_was_faster_with_stays(bench: Workbench, lazy: int) -> None:
    engine_id = bench.engine(lazy).id
    for content in ("first", "second"):
        with bench.database.transaction() as session:
            record(session, digest_of(content), 5)
            found = publish_plan(session, engine_id, digest=digest_of(content), nbytes=5, signature="00")
            assert found.plan_digest == digest_of("first")


def test_the_plan_an_engine_is_loaded_from_outlives_collection(
    bench: Workbench, lazy: int, store: ArtifactStore
) -> None:
    collect_orphans(bench.database, store, older_than_s=-1)
    with bench.database.reading() as session:
        base = session.get_one(Engine, bench.engine(lazy).base_id)
        kept = {use.digest for use in session.scalars(select(BlobUse).where(BlobUse.owner.startswith("engine:")))}
        assert kept == {base.plan_digest}
        assert session.get(Blob, base.plan_digest) is not None


def test_an_alias_on_an_engine_without_a_plan_has_it_written(client: TestClient, lazy: int) -> None:
    assert client.put(f"{MODEL}/aliases/production", json={"engine": lazy}).status_code == 201
    assert [job["state"] for job in jobs_of(client)] == ["queued"]


def test_an_alias_that_is_refused_or_on_a_written_engine_has_nothing_written(client: TestClient, lazy: int) -> None:
    assert client.put(f"{MODEL}/aliases/production", json={"engine": 1}).status_code == 201
    refused = client.put(f"{MODEL}/aliases/production", json={"engine": lazy}, headers={"If-Match": '"7"'})
    assert refused.status_code == 412
    assert jobs_of(client) == []


EAGER: list[tuple[str, dict[str, Any]]] = [
    ("refits", {"engine": 1, "weights": 2}),
    ("engines", {"weights": 2}),
    ("builds", {"definition": 1, "weights": 2}),
]


@pytest.mark.parametrize(("path", "body"), EAGER)
def test_an_engine_without_a_plan_that_is_reused_has_it_written(
    client: TestClient, lazy: int, write: Callable[[str], None], path: str, body: dict[str, Any]
) -> None:
    answer = client.post(f"{MODEL}/{path}", json=body)
    (job,) = jobs_of(client)
    result = {"engine": lazy, "reused": True, "method": "reuse"}
    assert (answer.status_code, answer.json()["state"], job["state"]) == (200, "succeeded", "queued")
    assert answer.json()["result"] == result | {"materialising": job["id"]}
    assert client.post(f"{MODEL}/{path}", json=body).json()["result"]["materialising"] == job["id"]
    write(job["id"])
    assert client.post(f"{MODEL}/{path}", json=body).json()["result"] == result
    assert len(jobs_of(client)) == 1


def test_an_engine_without_a_plan_that_is_reused_lazily_stays_without(
    bench: Workbench, client: TestClient, lazy: int
) -> None:
    refit = bench.submit(request_refit, RefitRequest(engine=1, weights=2, materialise="lazy"))
    engine = bench.submit(request_engine, EngineRequest(weights=2, materialise="lazy"))
    assert refit.result == engine.result == {"engine": lazy, "reused": True, "method": "reuse"}
    assert jobs_of(client) == []


def test_a_download_waits_for_the_plan_to_be_written_and_serves_it(
    client: TestClient, lazy: int, write: Callable[[str], None]
) -> None:
    answer = while_waiting(client, lazy, write, Range="bytes=2-4")
    assert (answer.status_code, answer.content) == (206, PLAN[2:5])
    head = client.head(f"{MODEL}/engines/{lazy}/plan")
    assert (head.status_code, head.headers["content-length"], head.headers["etag"]) == (
        200,
        "10",
        answer.headers["etag"],
    )


def test_a_download_holds_no_session_while_it_waits(
    app: FastAPI, client: TestClient, lazy: int, write: Callable[[str], None]
) -> None:
    checked_out: list[int] = []

    def look(job_id: str) -> None:
        while app.state.watching._waiters.get(job_id) is None:
            pass
        while app.state.database.engine.pool.checkedout():  # it looks at the row once, then waits
            pass
        checked_out.append(app.state.database.engine.pool.checkedout())
        write(job_id)

    assert while_waiting(client, lazy, look).status_code == 200
    assert checked_out == [0]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_download_that_would_take_longer_answers_with_the_job(client: TestClient, lazy: int, method: str) -> None:
    answer = client.request(method, f"{MODEL}/engines/{lazy}/plan", headers=WAIT_BRIEFLY)
    (job,) = jobs_of(client)
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert int(answer.headers["retry-after"]) >= 1


def test_a_plan_that_cannot_be_written_is_answered_with_the_reason(
    client: TestClient, bench: Workbench, lazy: int
) -> None:
    answer = while_waiting(client, lazy, lambda job_id: fail(bench, job_id))
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (500, "out_of_memory")
    assert "The device is full." in problem["detail"]
    assert jobs_of(client)[0]["id"] in problem["detail"]


def test_a_plan_whose_job_is_canceled_is_a_conflict(client: TestClient, bench: Workbench, lazy: int) -> None:
    def cancel(job_id: str) -> None:
        with bench.database.transaction() as session:
            assert request_cancel(session, job_id).state == State.CANCELED

    answer = while_waiting(client, lazy, cancel)
    assert (answer.status_code, answer.json()["code"]) == (409, "materialise_canceled")


def test_an_engine_that_is_not_there_has_no_plan_to_write(client: TestClient, lazy: int) -> None:
    assert materialise(client, lazy + 1)[0] == 404
    assert client.get(f"{MODEL}/engines/{lazy + 1}/plan").status_code == 404
    assert jobs_of(client) == []
