import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi import FastAPI
from fastapi._compat import ModelField
from fastapi.testclient import TestClient

from app.http.pools import READ_PLACES, WORK_PLACES, Pool
from app.http.routes import Route
from app.http.turns import current_address
from app.main import ROUTERS
from app.registry import service as registry

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@contextmanager
def _blocked(pool: Pool, client: TestClient, places: int) -> Iterator[None]:
    """Hold every place of a pool."""
    gate = threading.Event()
    portal = client.portal
    assert portal is not None

    async def hold(number: int) -> None:
        current_address.set(f"192.0.2.{number}")  # no address alone may have all places
        await pool.run(gate.wait, 60)

    holders = [portal.start_task_soon(hold, number) for number in range(places)]
    while pool._free > 0:
        time.sleep(0.001)
    try:
        yield
    finally:
        gate.set()
        for holder in holders:
            holder.result()


def test_reads_are_answered_while_all_work_stands_still(app: FastAPI, client: TestClient) -> None:
    client.post("/v1/models", json={"name": "m"}).raise_for_status()
    with _blocked(app.state.pools.work, client, WORK_PLACES):
        for path in ("models", "models/m", "jobs", "workers", "models/m/engines", "models/m/aliases"):
            assert client.get(f"/v1/{path}").status_code == 200, path


def test_a_full_house_answers_503_at_once(app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, places in (("work", WORK_PLACES), ("reads", READ_PLACES)):
        full = Pool("be tested", places=places, queue=0)
        monkeypatch.setattr(app.state.pools, name, full)
        with _blocked(full, client, places):
            answer = client.post("/v1/models", json={"name": "m"}) if name == "work" else client.get("/v1/models")
            assert (answer.status_code, answer.json()["code"]) == (503, "busy"), name
            assert answer.headers["Retry-After"] == "1"
        monkeypatch.undo()
    assert client.get("/v1/models").json()["data"] == []


def test_a_place_and_a_connection_are_given_back_after_an_error(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(registry, "create_model", fail)
    for _ in range(2 * WORK_PLACES):
        assert client.post("/v1/models", json={"name": "m"}).status_code == 500
    monkeypatch.undo()
    assert client.post("/v1/models", json={"name": "m"}).status_code == 201
    assert app.state.database.engine.pool.checkedout() == 0


def test_every_json_body_has_a_limit_that_the_description_tells(app: FastAPI) -> None:
    assert ROUTERS
    seen = set()
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" not in content:
                assert "x-max-body-bytes" not in operation, path
                continue
            limit = operation["x-max-body-bytes"]
            seen.add(limit)
            words = operation["requestBody"]["description"]
            assert f"{limit // 1024} KiB" in words, (method, path)
            assert str(operation["x-max-body-values"]) in words.replace(",", ""), (method, path)
    assert seen == {256 * 1024, 1024 * 1024}


def test_no_answer_is_made_on_the_event_loop(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client.post("/v1/models", json={"name": "m"}).raise_for_status()
    portal = client.portal
    assert portal is not None
    loop, made_in = portal.call(threading.get_ident), dict[str, set[int]]()
    validate, serialize = ModelField.validate, ModelField.serialize_json

    def validated(self: ModelField, value: object, *given: object, **more: object) -> object:
        if self.mode == "serialization":  # else it is a request
            made_in.setdefault("validated", set()).add(threading.get_ident())
        return validate(self, value, *given, **more)  # type: ignore[arg-type]

    def serialized(self: ModelField, value: object) -> bytes:
        made_in.setdefault("serialized", set()).add(threading.get_ident())
        return serialize(self, value)

    monkeypatch.setattr(ModelField, "validate", validated)
    monkeypatch.setattr(ModelField, "serialize_json", serialized)
    for path in ("models", "models/m", "jobs", "workers", "models/m/weights", "models/m/aliases", "artifacts/damaged"):
        assert client.get(f"/v1/{path}").status_code == 200, path
    assert client.post("/v1/models", json={"name": "n"}).status_code == 201
    assert made_in.keys() == {"validated", "serialized"}
    assert loop not in set.union(*made_in.values())


@pytest.mark.usefixtures("app")
def test_every_call_with_an_answer_is_made_by_one_route() -> None:
    odd = {
        (path, type(route).__name__)
        for router in ROUTERS
        for route in router.routes
        if (path := getattr(route, "path", "")) and not isinstance(route, Route)
    }
    assert odd == {("/blobs/{digest}", "APIRoute")}  # bytes, or two fields
