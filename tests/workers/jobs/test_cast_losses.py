"""Values that a cast loses: a warning among the job's events, and counts among the engine's facts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.workers.networks import Network, perceptron
from tests.workers.service import Service, service_with
from workers.jobs.worker import Worker


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return perceptron(tmp_path / "network.onnx")


@pytest.fixture
def net(client: TestClient, worker: Worker, network: Network) -> Service:
    """A service with definition 1, weights 1 and engine 1 of them."""
    net = service_with(client, worker, network, network.weights(seed=1))
    net.result("/builds", {"definition": 1, "weights": 1})
    return net


def facts(net: Service, engine: int) -> dict[str, Any]:
    found: dict[str, Any] = net.client.get(f"/v1/models/net/engines/{engine}").json()["facts"]
    return found


def warnings(net: Service, job: str) -> list[str]:
    events = net.client.get(f"/v1/jobs/{job}/events").json()["data"]
    logs = [event["data"] for event in events if event["type"] == "log" and event["data"]["level"] == "warning"]
    return [line for log in logs for line in log["lines"]]


@pytest.mark.parametrize("path", ["/builds", "/refits"])
def test_lost_values_are_told_each_time_an_engine_is_made_of_them(net: Service, network: Network, path: str) -> None:
    bias = np.array(network.weights(seed=1)["1.bias"], np.float64)
    bias[:2], bias[2] = 1e300, 1e-300
    weights = net.add_weights({"1.bias": bias})
    rules = [{"parameter": r"1\.bias", "tensors": ["1.bias"], "transforms": [{"op": "cast", "dtype": "F32"}]}]
    start: dict[str, Any] = {"definition": 1} if path == "/builds" else {"engine": 1}
    body = start | {"weights": weights, "rules": rules, "reuse": False}
    for _ in range(2):
        job = net.do(path, body)
        assert job["state"] == "succeeded", job["error"]
        assert facts(net, job["result"]["engine"])["cast"] == {"overflowed": {"1.bias": 2}, "vanished": {"1.bias": 1}}
        told = warnings(net, job["id"])
        assert any("overflow" in line and "1.bias (2)" in line for line in told)
        assert any("become 0" in line and "1.bias (1)" in line for line in told)
    assert "cast" not in facts(net, 1)
