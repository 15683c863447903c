"""A checkpoint format that a package brings is used like our own, from the upload to a run."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.numpy import save

from app.children.children import MODULES, Children
from app.children.fork_server import ForkServer
from app.main import create_app
from app.settings import Settings
from app.weights.recognition import checkpoint_formats
from tests.adding import toy_format
from tests.adding.distribution import install
from tests.workers.networks import Weights, perceptron
from tests.workers.service import Service, computed, service_with
from workers.jobs.worker import Worker

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: FastAPI) -> Iterator[None]:
    module = Path(toy_format.__file__)
    group = "enginesmith.checkpoint_formats"
    install(monkeypatch, tmp_path / "site", "toys", group, {"toy": module.stem}, module)
    checkpoint_formats.cache_clear()
    server = ForkServer(MODULES)  # one that was started with the package on its path
    app.state.children = Children(server, tmp_path / "scratch")
    yield
    server.close()
    checkpoint_formats.cache_clear()


def toy_file(weights: Weights) -> bytes:
    header = json.dumps([[name, "F32", list(one.shape)] for name, one in weights.items()]).encode()
    file = toy_format.MAGIC + struct.pack("<I", len(header)) + header
    for one in weights.values():
        file += b"\xee" * (-len(file) % toy_format.ALIGNMENT) + one.tobytes()
    return file


@pytest.mark.usefixtures("toy")
def test_a_format_from_a_package_is_uploaded_built_with_and_run(
    client: TestClient, worker: Worker, tmp_path: Path
) -> None:
    network = perceptron(tmp_path / "definition.onnx")
    weights = network.weights(seed=2)
    net = service_with(client, worker, network, network.weights(seed=1))

    version = net.post("/weights", {"files": [net.upload(toy_file(weights))]})
    assert (version["version"], version["tensor_count"]) == (2, 4)
    engine = net.result("/builds", {"definition": 1, "weights": 2})["engine"]
    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)
    np.testing.assert_allclose(net.run(engine, x), computed(weights, x), rtol=1e-5)

    same = net.post("/weights", {"files": [net.upload(save(dict(weights)))]})
    assert same["version"] == 2  # the same tensors, whatever the file


@pytest.mark.usefixtures("toy")
def test_its_errors_are_answered_as_those_of_our_own(client: TestClient, worker: Worker) -> None:
    net = Service(client, worker)
    client.post("/v1/models", json={"name": "net"})

    def refusal(content: bytes) -> tuple[str, str]:
        answer = client.post("/v1/models/net/weights", json={"files": [net.upload(content)]}).json()
        return answer["code"], answer["errors"][0]["detail"]

    cut = toy_file({"x": np.zeros(100, np.float32)})[:-5]
    code, detail = refusal(cut)
    assert code == "truncated_file"
    assert detail.startswith(f"The file lacks 5 of {len(cut) + 5} bytes. Upload the whole file. (The file was read as ")
    code, detail = refusal(b"TOY2" + bytes(40))
    assert code == "unknown_format"
    assert "b'TOY2\\x00" in detail
    assert "safetensors, toy. " in detail


def test_a_broken_format_stops_the_start(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path / "site", "toys", "enginesmith.checkpoint_formats", {"toy": "not_there"})
    checkpoint_formats.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        create_app(settings)
