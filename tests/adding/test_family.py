"""A family that a package brings is used like our own, from its config to a run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.numpy import save

from app.children.children import MODULES, Children
from app.children.fork_server import ForkServer
from tests.adding import toy_family
from tests.adding.distribution import install
from tests.workers.service import Service
from workers.jobs.worker import Worker

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: FastAPI) -> Iterator[None]:
    module = Path(toy_family.__file__)
    install(monkeypatch, tmp_path / "site", "toys", "enginesmith.families", {"toy": module.stem}, module)
    server = ForkServer(MODULES)  # one that was started with the package on its path
    app.state.children = Children(server, tmp_path / "scratch")
    yield
    server.close()


@pytest.mark.usefixtures("toy")
def test_a_family_from_a_package_is_defined_bound_built_and_run(client: TestClient, worker: Worker) -> None:
    net = Service(client, worker)
    assert client.post("/v1/models", json={"name": "net"}).status_code == 201

    made = net.post("/definitions", {"family": "toy", "config": {"width": 3}})
    assert made["source"] == {
        "family": "toy", "precision": "fp32", "config": {"width": 3}, "opset": 17, "warnings": []
    }  # fmt: skip
    weight, bias = np.arange(9, dtype=np.float32).reshape(3, 3) - 4, np.array([1, -1, 0.5], np.float32)
    files = [net.upload(save({"toy.dense.weight": weight, "toy.dense.bias": bias}))]
    assert net.post("/weights", {"files": files})["version"] == 1
    assert net.post("/bindings/check", {"definition": 1, "weights": 1})["ok"]

    engine = net.result("/builds", {"definition": 1, "weights": 1})["engine"]
    x = np.array([[1, 2, -3], [0.5, 0, 0]], np.float32)
    np.testing.assert_array_equal(net.run(engine, x), np.maximum(x @ weight.T + bias, 0))


@pytest.mark.usefixtures("toy")
def test_faults_of_its_config_and_its_name_are_told_as_of_our_own(client: TestClient) -> None:
    client.post("/v1/models", json={"name": "net"})
    url = "/v1/models/net/definitions"
    wide = client.post(url, json={"family": "toy", "config": {"width": 5000}}).json()
    assert (wide["code"], wide["errors"][0]["pointer"]) == ("unsupported_config", "/config/width")
    unknown = client.post(url, json={"family": "toyy", "config": {}}).json()
    assert (unknown["code"], unknown["errors"][0]["detail"]) == ("unknown_family", "one of bert, gpt2, toy")
