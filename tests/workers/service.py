"""A service whose worker does a job when a test says so."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from fastapi.testclient import TestClient
from onnx import numpy_helper
from safetensors.numpy import load, save

from tests.workers.networks import Network, Weights
from workers.jobs.attempt import run_job
from workers.jobs.worker import Worker

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Service:
    """The API and one worker; the worker does a job when the test says so."""

    client: TestClient
    worker: Worker

    def upload(self, content: bytes) -> str:
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        assert self.client.put(f"/v1/blobs/{digest}", content=content).status_code in {200, 201}
        return digest

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self.client.post(f"/v1/models/net{path}", json=body)
        assert answer.status_code in {200, 201, 202}, answer.text
        content: dict[str, Any] = answer.json()
        return content

    def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.client.get(f"/v1/jobs/{job_id}").json()
        return job

    def do(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Post a job, have the worker do it, and return it as clients see it."""
        job_id = self.post(path, body)["id"]
        run_job(self.worker, job_id)
        return self.job(job_id)

    def result(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        job = self.do(path, body)
        assert job["state"] == "succeeded", job["error"]
        result: dict[str, Any] = job["result"]
        return result

    def run(self, engine: int, x: Array) -> Array:
        result = self.result("/runs", {"engine": engine, "inputs": self.upload(save({"x": x}))})
        outputs: Array = load(self.client.get(f"/v1/blobs/{result['outputs']}").content)["y"]
        return outputs

    def add_weights(self, changed: Weights, base: int = 1) -> int:
        version: int = self.post("/weights", {"files": [self.upload(save(dict(changed)))], "base": base})["version"]
        return version

    def engines(self) -> list[dict[str, Any]]:
        engines: list[dict[str, Any]] = self.client.get("/v1/models/net/engines").json()["data"]
        return engines


def service_with(client: TestClient, worker: Worker, network: Network, weights: Weights) -> Service:
    """A service with a model "net": definition 1 and weights 1, from one ONNX file."""
    net = Service(client, worker)
    assert client.post("/v1/models", json={"name": "net"}).status_code == 201
    net.post("/definitions", {"onnx": net.upload(with_weights(network, weights))})
    return net


def with_weights(network: Network, weights: Weights) -> bytes:
    """The network's ONNX file as exporters write it, weights inside."""
    model = onnx.load(network.path, load_external_data=False)
    for one in model.graph.initializer:
        if one.name in weights:
            one.CopyFrom(numpy_helper.from_array(np.asarray(weights[one.name]), one.name))
    return bytes(model.SerializeToString())


def computed(weights: Weights, x: Array) -> Array:
    """What a perceptron of two layers gives with these weights."""
    for layer in range(2):
        x = np.maximum(x @ weights[f"{layer}.weight"] + weights[f"{layer}.bias"], 0)
    return x
