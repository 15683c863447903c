"""A backend that a package brings: found by its entry point, and used as any other through the HTTP API."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper
from safetensors.numpy import load, save

from app.backends import GROUP
from app.definitions.parameter import InputSpec
from examples.client import Client, ServiceProblem
from tests.adding.distribution import write_metadata
from tests.workers.networks import network_of, perceptron
from tests.workers.service import computed, with_weights

if TYPE_CHECKING:
    from tests.serve.conftest import Launcher

ROOT = Path(__file__).parents[2]
ENTRY = "tests.adding.toy_backend_entry:ABACUS"
FIRST, SECOND = 1, 2  # versions of the weights, and what they are seeded with


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("added")


@pytest.fixture(scope="module")
def client(launch: "Launcher", folder: Path) -> Iterator[Client]:
    """A client of a service beside which a package with the toy is installed, and a model with two weights."""
    site = folder / "site"
    write_metadata(site, "enginesmith-abacus", GROUP, {"abacus": ENTRY})
    service = launch.ready(folder / "data", PYTHONPATH=f"{site}:{ROOT}")
    client = Client(f"http://127.0.0.1:{service.port}", "net")
    network = perceptron(folder / "network.onnx")
    client.call("POST", "/v1/models", {"name": "net"})
    client.post("definitions", {"onnx": upload(client, folder, with_weights(network, network.weights(FIRST)))})
    client.post("weights", {"files": [upload(client, folder, save(network.weights(SECOND)))]})
    yield client
    assert service.stop(signal.SIGTERM) == 0


def upload(client: Client, folder: Path, content: bytes) -> str:
    path = folder / "upload"
    path.write_bytes(content)
    return client.upload(path)


def done(client: Client, what: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post something that makes a job and return its result."""
    job = client.call("POST", f"/v1/models/net/{what}", body, Prefer="wait=60")
    return client.finish(job, lambda _job: None)


def test_the_fleet_offers_it(client: Client) -> None:
    (worker,) = client.call("GET", "/v1/workers")["data"]
    assert worker["backends"]["abacus"]["makes"] == ["wood"]
    assert {"enginesmith.abacus", "enginesmith.abacus.wood"} <= {*worker["queues"]}


def test_it_builds_refits_and_runs(client: Client, folder: Path) -> None:
    x = np.random.default_rng(3).standard_normal((3, 8)).astype(np.float32)
    body = {"definition": 1, "weights": 1, "backend": "abacus", "options": {"beads": "glass"}}

    built = done(client, "builds", body)["engine"]
    refitted = done(client, "refits", {"engine": built, "weights": 2})["engine"]
    engines = [client.call("GET", f"/v1/models/net/engines/{number}") for number in (built, refitted)]
    runs = [
        done(client, "runs", {"engine": number, "inputs": upload(client, folder, save({"x": x}))})
        for number in (built, refitted)
    ]

    assert [one["backend"] for one in engines] == ["abacus"] * 2
    assert [one["verification"]["ok"] for one in engines] == [True] * 2
    assert engines[0]["facts"]["beads"] == "glass"
    assert engines[0]["plan_digest"] != engines[1]["plan_digest"]
    network = perceptron(folder / "network.onnx")
    for seed, run in zip((FIRST, SECOND), runs, strict=True):
        outputs = load(client.download(run["outputs"]))
        np.testing.assert_allclose(outputs["y"], computed(network.weights(seed), x), rtol=1e-5, atol=1e-6)


def test_its_preflight_is_asked(client: Client, folder: Path) -> None:
    body = {"definition": 1, "weights": 1, "backend": "abacus"}
    (verdict,) = client.post("builds/check", body)["verdicts"]
    assert (verdict["version"], verdict["taken"], verdict["source"]) == ("3.0", True, "the beads")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])]
    tanh = network_of(
        folder / "tanh.onnx", nodes, {"w": ("F32", (8, 8))}, (InputSpec("x", "F32", ("n", 8)),), {"y": "F32"}
    )
    client.post("definitions", {"onnx": upload(client, folder, with_weights(tanh, tanh.weights(FIRST)))})
    with pytest.raises(ServiceProblem, match=r"422 preflight_refused: .*Tanh: no beads for it"):
        client.post("builds", {"definition": 2, "backend": "abacus"})


def test_what_it_does_not_take_is_refused_at_once(client: Client) -> None:
    body = {"definition": 1, "weights": 1, "backend": "abacus", "options": {"beads": "iron"}}
    with pytest.raises(ServiceProblem, match=r"422 invalid_options: .*'iron' is not one of"):
        client.post("builds", body)
