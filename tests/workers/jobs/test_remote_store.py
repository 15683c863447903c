"""A worker whose artifacts lie in an object store, and in a cache that has room for none."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.artifacts.cache import KEEP_S
from app.artifacts.local import LocalStore
from app.artifacts.remote import RemoteStore
from app.artifacts.store import open_store
from app.errors import Unavailable
from app.main import create_app
from app.settings import Settings
from tests.workers.networks import perceptron
from tests.workers.service import Service, service_with
from tests.workers.weight_holding import OFFERED, HeldWeights, HostInProcess
from workers.channel.messages import Build, Request
from workers.engine_host.backends.base import Arrays
from workers.jobs.attempt import run_job
from workers.jobs.worker import Worker

Array = np.ndarray[Any, np.dtype[Any]]
BUILD = {"definition": 1, "weights": 1, "backend": "tensorrt"}
PATIENCE_S = 30


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"store_url": "memory:///", "cache_bytes": 0})


@pytest.fixture
def store(settings: Settings) -> RemoteStore:
    store = open_store(settings)
    assert isinstance(store, RemoteStore)
    return store


@pytest.fixture
def app(settings: Settings, store: RemoteStore) -> FastAPI:
    app = create_app(settings)
    app.state.store = store  # each one opened has a memory of its own
    return app


@pytest.fixture
def host(tmp_path: Path) -> HostInProcess:
    (tmp_path / "host").mkdir()
    return HostInProcess(tmp_path / "host")


@pytest.fixture
def net(client: TestClient, worker: Worker, host: HostInProcess, tmp_path: Path) -> Service:
    """A service with a definition and weights, which never lay in the worker's cache."""
    worker.host.close()
    network = perceptron(tmp_path / "network.onnx")
    worker = replace(worker, host=host, offered=OFFERED)  # type: ignore[arg-type]
    return service_with(client, worker, network, network.weights(seed=1))


def copies(settings: Settings) -> list[Path]:
    return list((settings.data_dir / "cache" / "sha256").glob("*/*"))


def test_a_build_that_takes_long_can_read_its_weights_after_its_plan_was_put(
    net: Service, host: HostInProcess, store: RemoteStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    put_file, run = store.put_file, HeldWeights.run

    def take_long(request: Request) -> None:
        if isinstance(request, Build):
            for used in (settings.data_dir / "cache" / "used").iterdir():
                os.utime(used, (time.time() - 2 * KEEP_S,) * 2)

    def put(path: Path, *, digest: str | None = None) -> tuple[str, int]:
        made = put_file(path, digest=digest)
        done.set()
        return made

    def run_when_put(engine: HeldWeights, inputs: Arrays) -> dict[str, Array]:
        assert done.wait(PATIENCE_S)
        return run(engine, inputs)

    host.before = take_long
    monkeypatch.setattr(store, "put_file", put)
    monkeypatch.setattr(HeldWeights, "run", run_when_put)
    job = net.do("/builds", BUILD)
    assert (job["state"], job["error"]) == ("succeeded", None)


def test_a_plan_that_the_cache_has_no_room_for_is_published_and_not_fetched_again(
    net: Service, store: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    whole = store._whole

    def full(*_args: object, **_kwargs: object) -> None:
        raise Unavailable("no room", code="store_full")

    def fetch(digest: str) -> Any:  # noqa: ANN401 - as the method it stands for
        fetched.append(digest)
        return whole(digest)

    monkeypatch.setattr(LocalStore, "put_file", full)
    monkeypatch.setattr(store, "_whole", fetch)
    net.result("/builds", BUILD)
    plan = net.engines()[0]["plan_digest"]
    assert store.size(plan) is not None
    assert plan not in fetched


def test_a_damaged_copy_of_weights_is_fetched_again_by_the_next_attempt(
    client: TestClient, worker: Worker, store: RemoteStore, tmp_path: Path
) -> None:
    network = perceptron(tmp_path / "network.onnx")
    net = service_with(client, worker, network, network.weights(seed=1))
    digest = net.client.get("/v1/models/net/weights/1/tensors").json()["data"][0]["blob"]
    copy = store.local_path(digest)
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.chmod(0o644)
    copy.write_bytes(content)

    build = net.do("/builds", {"definition": 1, "weights": 1})
    assert (build["state"], copy.exists()) == ("queued", False)
    run_job(net.worker, build["id"])
    assert net.job(build["id"])["state"] == "succeeded"
