"""What is too much for the process that answers reads is done in the office, with the same answers."""

import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.numpy import save
from sqlalchemy import text

from app.database import DATABASE_DOWN, Database
from app.errors import NotFound, Unavailable
from app.heavy import LIGHT
from app.http.pools import Pool
from app.office.office import Office
from app.registry.service import create_model
from app.remembered import MEMORY, Memory
from app.settings import Settings
from tests.workers.networks import perceptron
from tests.workers.service import Service, service_with
from workers.jobs.worker import Worker

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def office(app: FastAPI) -> Iterator[Office]:
    office: Office = app.state.office
    yield office
    office.close()


@pytest.fixture
def net(client: TestClient, worker: Worker, tmp_path: Path, office: Office) -> Service:
    """A model with two weight versions."""
    network = perceptron(tmp_path / "definition.onnx")
    net = service_with(client, worker, network, network.weights(seed=1))
    net.post("/weights", {"files": [net.upload(save(dict(network.weights(seed=2))))]})
    assert office._process is None
    return net


def allow(app: FastAPI, rows: int) -> None:
    """Have the API read at most so many rows from now on, and forget what it has read."""
    app.state.database._sessions.configure(info={MEMORY: Memory(), LIGHT: rows})


def test_everything_is_answered_alike(app: FastAPI, client: TestClient, net: Service, office: Office) -> None:
    engine = net.result("/builds", {"definition": 1, "weights": 1})["engine"]
    refitted = net.result("/refits", {"engine": engine, "weights": 2})["engine"]
    url = "/v1/models/net"
    reads = [
        f"{url}/weights/2/tensors?limit=3",
        f"{url}/weights/2/diff?from=1",
        f"{url}/definitions/1/parameters",
        f"{url}/engines/{refitted}/lineage",
        f"{url}/weights/9/tensors",
        f"{url}/weights/1/tensors?after=x",
    ]
    posts: list[tuple[str, dict[str, Any]]] = [
        ("bindings/check", {"definition": 1, "weights": 2}),
        ("bindings/check", {"definition": 1, "weights": 2, "rules": [{"parameter": "("}]}),
        ("bindings/propose", {"definition": 1, "weights": 2}),
        ("builds", {"definition": 1, "weights": 1}),
        ("refits", {"engine": engine, "weights": 2}),
        ("engines", {"weights": 2}),
        ("builds", {"definition": 1, "weights": 1, "rules": [{"parameter": "fc1.weight", "tensors": ["no"]}]}),
    ]

    def answers() -> list[tuple[int, Any]]:
        found = [client.get(one) for one in reads] + [client.post(f"{url}/{path}", json=body) for path, body in posts]
        return [(one.status_code, _lasting(one.json())) for one in found]

    here = answers()
    assert office._process is None
    allow(app, rows=0)
    assert answers() == here
    assert office._process is not None
    assert {status for status, _ in here} == {200, 404, 422}


def test_an_engine_is_built_and_refitted_by_what_the_office_checked(app: FastAPI, net: Service) -> None:
    allow(app, rows=0)
    engine = net.result("/builds", {"definition": 1, "weights": 1})["engine"]
    assert net.result("/engines", {"weights": 2})["method"] == "refit"
    assert engine == 1


def test_a_small_model_does_not_start_the_office(app: FastAPI, net: Service, office: Office) -> None:
    allow(app, rows=4)
    assert net.post("/bindings/check", {"definition": 1, "weights": 2})["ok"]
    assert office._process is None


def test_a_killed_office_is_started_anew(app: FastAPI, net: Service, office: Office) -> None:
    allow(app, rows=0)
    net.post("/bindings/check", {"definition": 1, "weights": 2})
    assert office._process is not None
    first = office._process.pid
    os.kill(first, signal.SIGKILL)
    assert net.post("/bindings/check", {"definition": 1, "weights": 2})["ok"]
    assert office._process.pid != first


@pytest.mark.usefixtures("net")
def test_a_full_office_refuses_at_once(app: FastAPI, client: TestClient, office: Office) -> None:
    allow(app, rows=0)
    office._pool = Pool("be tested", places=0, queue=0)
    body = {"definition": 1, "weights": 1}
    for path in ("bindings/check", "builds"):
        answer = client.post(f"/v1/models/net/{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (503, "busy")
        assert int(answer.headers["Retry-After"]) > 0


def test_errors_come_back_as_what_they_are(office: Office) -> None:
    with pytest.raises(NotFound) as raised:
        office.call(_missing, 3)
    assert (raised.value.code, raised.value.detail) == ("thing_not_found", "There is no 3.")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        office.call(_divided, 0)
    assert office.call(_divided, 2) == 0.5


def test_a_database_or_a_disk_that_is_down_is_told_as_such(office: Office) -> None:
    with pytest.raises(DATABASE_DOWN, match="no such table"):
        office.call(_missing_table, office._settings)
    with pytest.raises(OSError, match="No space left") as raised:
        office.call(_full, 0)
    assert raised.value.errno == errno.ENOSPC


def test_closing_it_ends_what_it_is_doing_and_starts_no_other_one(office: Office) -> None:
    assert office.call(_divided, 1) == 1
    process = office._process
    assert process is not None
    refused: list[str] = []

    def work() -> None:
        try:
            office.call(time.sleep, 60)
        except Unavailable as error:
            refused.append(error.code)

    worker = Thread(target=work)
    worker.start()
    while not office._lock.locked():
        time.sleep(0.01)
    office.close()
    worker.join(30)
    assert refused == ["stopping"]
    assert process.returncode == -signal.SIGKILL
    assert office._process is None


def test_the_office_has_the_same_database(app: FastAPI, office: Office) -> None:
    with app.state.database.transaction() as session:
        create_model(session, "net", "", {})
    assert office.call(_url, app.state.database) == str(app.state.database.engine.url)


def _missing_table(settings: Settings) -> None:
    with Database(settings.database).reading() as session:
        session.execute(text("SELECT * FROM nowhere"))


def _full(_number: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _missing(number: int) -> None:
    raise NotFound(f"There is no {number}.", code="thing_not_found")


def _divided(number: int) -> float:
    return 1 / number


def _url(database: Any) -> str:  # noqa: ANN401 - the office's own
    return str(database.engine.url)


def _lasting(answer: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return an answer without what is new each time."""
    if isinstance(answer, dict):
        fresh = {"id", "request_id", "created_at", "finished_at", "started_at", "seconds"}
        return {name: _lasting(value) for name, value in answer.items() if name not in fresh}
    return [_lasting(one) for one in answer] if isinstance(answer, list) else answer
