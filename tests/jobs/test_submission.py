import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from fastapi import FastAPI
from fastapi.responses import Response
from fastapi.testclient import TestClient
from pydantic import BaseModel
from sqlalchemy import Connection, event
from sqlalchemy.orm import Session

from app.database import Database, now
from app.errors import Invalid
from app.jobs import lease, service
from app.jobs.notices import Announcer, wait_for
from app.jobs.queue import redis_url
from app.jobs.submission import SubmitDep, wait_seconds
from app.jobs.tables import Job
from app.registry.service import create_model, get_model
from app.settings import Settings

QUEUE = "enginesmith.test"
FULL = 2  # what SQLite calls it in numbers


class Body(BaseModel):
    number: int


@dataclass
class Preparations:
    """Each entry of `open_sessions` is one preparation; where there is a gate it waits there for the others."""

    open_sessions: list[int] = field(default_factory=list)
    gate: threading.Barrier | None = None


@pytest.fixture
def preparations() -> Preparations:
    return Preparations()


@dataclass(frozen=True)
class Placed:
    """A job of a number."""

    number: int

    def place(self, session: Session) -> Job:
        model = get_model(session, "minilm")
        request = {"number": self.number}
        return service.create(session, kind="build", model_id=model.id, queue=QUEUE, request=request, likeness="any")


@pytest.fixture
def client(app: FastAPI, database: Database, preparations: Preparations) -> Iterator[TestClient]:
    with database.transaction() as session:
        create_model(session, "minilm", "", {})

    @app.post("/jobs-for-tests")
    async def make_job(body: Body, submit: SubmitDep) -> Response:
        def prepare() -> Placed:
            preparations.open_sessions.append(app.state.database.engine.pool.checkedout())
            if preparations.gate is not None:
                preparations.gate.wait(30)
            if body.number < 0:
                raise Invalid("Give a number that is not negative.")
            return Placed(body.number)

        return await submit(prepare)

    with TestClient(app, "http://localhost") as client:
        yield client


def _post(client: TestClient, number: int = 1, /, **headers: str) -> tuple[int, dict[str, object]]:
    answer = client.post("/jobs-for-tests", json={"number": number}, headers=headers)
    return answer.status_code, answer.json()


def _finish(database: Database, settings: Settings, job_id: str) -> None:
    announce = Announcer(redis_url(settings.broker_url))
    held = lease.claim(database, job_id, worker="w", settings=settings)
    assert held is not None
    with database.transaction() as session:
        lease.succeed(session, held, {"engine": 1}, notify=announce)


def test_a_new_job_is_answered_with_202_and_where_to_look(client: TestClient) -> None:
    answer = client.post("/jobs-for-tests", json={"number": 1})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert int(answer.headers["Retry-After"]) >= 1
    assert client.get(answer.headers["Location"]).json() == job
    assert (job["state"], job["model"], job["attempt"]) == ("queued", "minilm", 0)


def test_the_same_key_and_body_give_the_same_job(client: TestClient) -> None:
    _, first = _post(client, **{"Idempotency-Key": "k"})
    _, again = _post(client, **{"Idempotency-Key": "k"})
    _, other = _post(client, **{"Idempotency-Key": "k2"})
    assert first["id"] == again["id"] != other["id"]


def test_a_repeated_request_is_answered_without_preparing_it_again(
    client: TestClient, preparations: Preparations
) -> None:
    _post(client, **{"Idempotency-Key": "k"})
    _post(client, **{"Idempotency-Key": "k"})
    assert len(preparations.open_sessions) == 1


def test_a_request_is_prepared_with_no_session_open(client: TestClient, preparations: Preparations) -> None:
    _post(client)
    _post(client, **{"Idempotency-Key": "k"})
    assert preparations.open_sessions == [0, 0]


def test_a_request_refused_while_it_is_prepared_makes_no_job_and_uses_no_key(client: TestClient) -> None:
    status, _ = _post(client, -1, **{"Idempotency-Key": "k"})
    assert status == 422
    assert client.get("/v1/jobs").json()["data"] == []
    assert _post(client, 1, **{"Idempotency-Key": "k"})[0] == 202


def test_a_body_nested_too_deep_is_refused_with_a_key_too(client: TestClient) -> None:
    for depth in range(900, 1100, 4):  # on both sides of where the parser gives up, which the stack decides
        body = b'{"number": ' + b"[" * depth + b"]" * depth + b"}"
        headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
        answer = client.post("/jobs-for-tests", content=body, headers=headers)
        assert answer.status_code == 422, depth


def test_the_same_key_with_another_body_is_refused(client: TestClient) -> None:
    _post(client, 1, **{"Idempotency-Key": "k"})
    status, problem = _post(client, 2, **{"Idempotency-Key": "k"})
    assert (status, problem["code"]) == (422, "idempotency_key_reused")


def test_concurrent_posts_with_one_key_make_one_job(client: TestClient, preparations: Preparations) -> None:
    preparations.gate = threading.Barrier(6)  # none has its job before all are prepared
    answers: list[tuple[int, dict[str, object]]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(_post(client, **{"Idempotency-Key": "k"}))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [202] * 6
    assert len({job["id"] for _, job in answers}) == 1


@pytest.mark.parametrize("end", ["succeeded", "canceled"])
def test_prefer_wait_answers_once_it_hears_of_the_end(
    client: TestClient, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    heard: list[bool] = []

    async def wait_and_look(ended: asyncio.Event, timeout_s: float) -> None:
        await wait_for(ended, timeout_s)
        heard.append(ended.is_set())

    monkeypatch.setattr("app.jobs.submission.wait_for", wait_and_look)
    monkeypatch.setattr("app.jobs.watching.LOOK_EVERY_S", 30.0)
    answers: list[tuple[int, dict[str, object]]] = []
    waiter = threading.Thread(target=lambda: answers.append(_post(client, Prefer="wait=60")))
    waiter.start()
    while not (jobs := client.get("/v1/jobs").json()["data"]):
        pass
    if end == "succeeded":
        _finish(database, settings, jobs[0]["id"])
    else:
        client.post(f"/v1/jobs/{jobs[0]['id']}/cancel")
    waiter.join()
    ((status, job),) = answers
    assert (status, job["state"], job["result"]) == (200, end, {"engine": 1} if end == "succeeded" else None)
    assert heard == [True]


@pytest.fixture
def synced(app: FastAPI) -> list[bool]:
    """Whether each of the API's own transactions waited for the disk, on SQLite."""
    synced: list[bool] = []

    def look(connection: Connection) -> None:
        synced.append(connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == FULL)

    event.listen(app.state.database.engine, "commit", look)
    return synced


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("prefer", [{}, {"Prefer": "wait=0.05"}])
def test_whoever_posts_a_job_hears_of_it_after_a_wait_for_the_disk(
    client: TestClient, synced: list[bool], prefer: dict[str, str]
) -> None:
    assert _post(client, **prefer)[0] == 202
    assert synced == [False, True]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_so_does_who_posts_again_what_another_request_waits_for(client: TestClient, synced: list[bool]) -> None:
    waiter = threading.Thread(target=_post, args=(client,), kwargs={"Prefer": "wait=60", "Idempotency-Key": "k"})
    waiter.start()
    while not client.get("/v1/jobs").json()["data"]:
        pass
    assert synced == [False]
    status, job = _post(client, **{"Idempotency-Key": "k"})
    assert (status, synced) == (202, [False, True])
    client.post(f"/v1/jobs/{job['id']}/cancel")
    waiter.join()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_end_of_a_job_that_was_waited_for_is_the_only_wait_for_the_disk(
    client: TestClient, database: Database, settings: Settings, synced: list[bool]
) -> None:
    answers: list[tuple[int, dict[str, object]]] = []
    waiter = threading.Thread(target=lambda: answers.append(_post(client, Prefer="wait=60")))
    waiter.start()
    while not (jobs := client.get("/v1/jobs").json()["data"]):
        pass
    _finish(database, settings, jobs[0]["id"])  # in a durable transaction, as a worker does
    waiter.join()
    ((status, job),) = answers
    assert (status, job["state"], synced) == (200, "succeeded", [False])


def test_prefer_wait_gives_up_with_202(client: TestClient) -> None:
    answer = client.post("/jobs-for-tests", json={"number": 1}, headers={"Prefer": "wait=0.05"})
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (202, "wait=0.05")


def test_waits_and_streams_end_with_the_process_and_leave_the_job_queued(app: FastAPI, client: TestClient) -> None:
    app.state.watching.ending = True
    status, job = _post(client, Prefer="wait=60")
    assert (status, job["state"]) == (202, "queued")
    streamed = client.get(f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"})
    assert [line for line in streamed.text.splitlines() if line.startswith("id:")] == ["id: 1"]


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None),
        ("wait=5", 5.0),
        ("respond-async, wait=10", 10.0),
        ("wait = 2", 2.0),
        ("await=3", None),
        ("wait=x", None),
        ("wait=1e9", None),
        ('wait="7"; foo', 7.0),
        ("wait=٣", None),
    ],
)
def test_reads_wait_out_of_a_prefer_header(prefer: str | None, seconds: float | None) -> None:
    assert wait_seconds(prefer) == seconds


@pytest.mark.parametrize("key", ["", "k" * 256, "k\x85"])
def test_a_key_that_is_empty_too_long_or_not_printable_is_refused(client: TestClient, key: str) -> None:
    headers = [(b"idempotency-key", key.encode("latin-1"))]
    answer = client.post("/jobs-for-tests", json={"number": 1}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_idempotency_key")


def test_a_queued_job_is_canceled_at_once_and_again_without_harm(client: TestClient) -> None:
    _, job = _post(client)
    for _ in range(2):
        answer = client.post(f"/v1/jobs/{job['id']}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "canceled")


def test_a_finished_job_stays_when_canceled(client: TestClient, database: Database, settings: Settings) -> None:
    _, job = _post(client)
    _finish(database, settings, str(job["id"]))
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "succeeded"


def test_jobs_are_listed_newest_first_and_filtered(client: TestClient, database: Database, settings: Settings) -> None:
    first, second = _post(client)[1]["id"], _post(client)[1]["id"]
    _finish(database, settings, str(first))
    assert [job["id"] for job in client.get("/v1/jobs").json()["data"]] == [second, first]
    assert [job["id"] for job in client.get("/v1/jobs?state=succeeded").json()["data"]] == [first]
    assert client.get("/v1/jobs?kind=refit&model=minilm").json()["data"] == []
    assert client.get("/v1/jobs?model=nobody").status_code == 404


def test_a_later_job_is_expected_to_take_as_long_as_earlier_ones(
    client: TestClient, database: Database, settings: Settings
) -> None:
    assert _post(client)[1]["progress"]["eta_s"] is None  # type: ignore[index]
    _finish(database, settings, client.get("/v1/jobs").json()["data"][0]["id"])
    assert _post(client)[1]["progress"]["eta_s"] is not None  # type: ignore[index]


def test_a_look_is_worth_while_once_a_job_is_likely_to_be_done_and_soon_where_nobody_knows(
    client: TestClient, database: Database, settings: Settings
) -> None:
    _, first = _post(client)
    _finish(database, settings, str(first["id"]))
    _let_it_begin(database, str(first["id"]), 20.0)
    job = client.post("/jobs-for-tests", json={"number": 1}, headers={"Idempotency-Key": "k"})
    assert job.json()["progress"]["eta_s"] == pytest.approx(20.0, abs=1.0)
    assert 19 <= int(job.headers["Retry-After"]) <= 21
    lease.claim(database, job.json()["id"], worker="w", settings=settings)
    _let_it_begin(database, job.json()["id"], 60.0)
    again = client.post("/jobs-for-tests", json={"number": 1}, headers={"Idempotency-Key": "k"})
    assert (again.json()["id"], again.json()["progress"]["eta_s"]) == (job.json()["id"], None)
    assert again.headers["Retry-After"] == "1"


def _let_it_begin(database: Database, job_id: str, seconds_ago: float) -> None:
    with database.transaction() as session:
        session.get_one(Job, job_id).started_at = now() - timedelta(seconds=seconds_ago)


def test_events_come_in_pages(client: TestClient, database: Database, settings: Settings) -> None:
    _, job = _post(client)
    _finish(database, settings, str(job["id"]))
    first = client.get(f"/v1/jobs/{job['id']}/events?limit=2").json()
    assert [(event["seq"], event["type"]) for event in first["data"]] == [(1, "queued"), (2, "running")]
    rest = client.get(f"/v1/jobs/{job['id']}/events?after={first['next_cursor']}").json()
    assert [(event["seq"], event["type"]) for event in rest["data"]] == [(3, "succeeded")]


def test_events_are_streamed_to_the_end_and_replayed_from_the_last_one_seen(
    client: TestClient, database: Database, settings: Settings
) -> None:
    _, job = _post(client)
    _finish(database, settings, str(job["id"]))
    url, stream = f"/v1/jobs/{job['id']}/events", {"Accept": "text/event-stream"}
    whole = client.get(url, headers=stream)
    assert whole.headers["content-type"].startswith("text/event-stream")
    assert [line for line in whole.text.splitlines() if line.startswith("id:")] == ["id: 1", "id: 2", "id: 3"]
    rest = client.get(url, headers=stream | {"Last-Event-ID": "2"}).text
    assert "event: succeeded" in rest
    assert "event: running" not in rest
    assert client.get(url, headers=stream | {"Last-Event-ID": "x"}).status_code == 422


def test_a_process_that_streams_to_enough_clients_says_503_and_still_gives_pages(
    app: FastAPI, client: TestClient
) -> None:
    _, job = _post(client)
    app.state.watching._max_streams = 0
    url = f"/v1/jobs/{job['id']}/events"
    answer = client.get(url, headers={"Accept": "text/event-stream"})
    assert (answer.status_code, answer.json()["code"], answer.headers["Retry-After"]) == (503, "busy", "1")
    assert client.get(url).status_code == 200


def test_events_of_a_job_that_is_not_there_are_404(client: TestClient) -> None:
    assert client.get("/v1/jobs/nobody/events", headers={"Accept": "text/event-stream"}).status_code == 404
