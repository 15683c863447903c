"""Whatever a job puts into the store, collection knows of it before: a job may be stopped or killed at any moment."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save
from sqlalchemy.exc import OperationalError

from app.artifacts import service as artifacts
from app.artifacts.tables import Blob
from app.errors import ServiceError
from tests.workers.networks import perceptron
from tests.workers.service import Service, service_with
from workers.jobs.worker import Worker


@pytest.fixture
def net(client: TestClient, worker: Worker, tmp_path: Path) -> Service:
    network = perceptron(tmp_path / "network.onnx")
    return service_with(client, worker, network, network.weights(seed=1))


def test_what_a_job_puts_is_recorded_before(net: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[bool] = []
    put_file = net.worker.store.put_file

    def put(path: Path, *, digest: str | None = None) -> tuple[str, int]:
        with net.worker.database.reading() as session:
            recorded.append(digest is not None and session.get(Blob, digest) is not None)
        return put_file(path, digest=digest)

    monkeypatch.setattr(net.worker.store, "put_file", put)
    net.result("/builds", {"definition": 1, "weights": 1})
    assert recorded == [True]
    net.result("/runs", {"engine": 1, "inputs": net.upload(save({"x": np.zeros((1, 8), np.float32)}))})
    assert recorded == [True] * 2
    net.result("/benchmarks", {"engine": 1, "iterations": 1})
    assert recorded == [True] * 3


def test_a_database_that_is_away_while_a_plan_is_put_throws_no_compile_away(
    net: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = iter(range(6))  # more often than publishing waits for
    put_file = artifacts.put_file

    def put(*arguments: Any, **options: Any) -> tuple[str, int]:  # noqa: ANN401 - as it has them
        for _ in away:
            raise OperationalError("INSERT", {}, Exception("the server is starting up"))
        return put_file(*arguments, **options)

    monkeypatch.setattr(artifacts, "put_file", put)
    monkeypatch.setattr(net.worker.stopping, "wait", lambda _seconds: False)
    assert net.result("/builds", {"definition": 1, "weights": 1})["method"] == "build"


def test_what_a_host_says_of_a_file_makes_it_replace_no_other_artifact(net: Service, tmp_path: Path) -> None:
    digest = net.upload(b"right")
    path = tmp_path / "plan"
    path.write_bytes(b"wrong")
    with pytest.raises(ServiceError) as refused:
        net.worker.put(path, digest=digest)
    assert refused.value.code == "wrong_digest"
    assert net.worker.store.read(digest, 0, 9) == b"right"
    path.write_bytes(b"right")
    assert net.worker.put(path, digest=digest) == (digest, len(b"right"))
