from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.workers.networks import Network, Weights, perceptron
from tests.workers.service import Service, service_with
from workers.jobs.worker import Worker


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return perceptron(tmp_path / "network.onnx")


@pytest.fixture
def weights(network: Network) -> Weights:
    return network.weights(seed=1)


@pytest.fixture
def net(client: TestClient, worker: Worker, network: Network, weights: Weights) -> Service:
    """A service with definition 1, weights 1 and engine 1 of them."""
    net = service_with(client, worker, network, weights)
    net.result("/builds", {"definition": 1, "weights": 1})
    return net
