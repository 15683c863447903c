from pathlib import Path

import pytest

from tests.workers.networks import Network, Weights, perceptron


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return perceptron(tmp_path / "network.onnx")


@pytest.fixture
def weights(network: Network) -> Weights:
    return network.weights(seed=1)
