"""Refits from another ONNX export of the model, whose weights have other names and another order."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from blake3 import blake3
from fastapi.testclient import TestClient
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.helper import make_node
from safetensors.numpy import load, save

from tests.workers.networks import Network, Weights, attention
from tests.workers.service import Service, service_with, with_weights
from workers.jobs.worker import Worker

Array = np.ndarray[Any, np.dtype[Any]]
IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
PATH = "/v1/models/net/weights"


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return attention(tmp_path / "network.onnx")


@pytest.fixture
def net(client: TestClient, worker: Worker, network: Network) -> Service:
    """A service with definition 1, weights 1, and engine 1 of them."""
    net = service_with(client, worker, network, network.weights(seed=1))
    net.result("/builds", {"definition": 1})
    return net


def export(network: Network, weights: Weights) -> ModelProto:
    return onnx.load_from_string(with_weights(network, weights))


def renamed(model: ModelProto, names: Mapping[str, str]) -> ModelProto:
    """The model with other names of initializers, in another order, and other names of everything inside."""
    inside = {name: f"/inner/{name}_output_0" for node in model.graph.node for name in node.output if name != "y"}
    names = {**inside, **names}
    for node in model.graph.node:
        node.name = f"/inner/{node.op_type}_{node.output[0]}"
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    initializers = sorted(model.graph.initializer, key=lambda one: one.name, reverse=True)
    del model.graph.initializer[:]
    for one in initializers:
        one.name = names.get(one.name, one.name)
        model.graph.initializer.append(one)
    return model


def computed_by(model: ModelProto) -> Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"ids": IDS})[0])


def run(net: Service, engine: int) -> Array:
    result = net.result("/runs", {"engine": engine, "inputs": net.upload(save({"ids": IDS}))})
    return np.asarray(load(net.client.get(f"/v1/blobs/{result['outputs']}").content)["y"])


def refitted(net: Service, body: Mapping[str, Any]) -> Array:
    """What an engine computes that was refitted with the weights of this request, without a rule."""
    version = net.post("/weights", body)["version"]
    return run(net, net.result("/refits", {"engine": 1, "weights": version})["engine"])


def assert_computes(output: Array, other: ModelProto) -> None:
    """Equal but for the order in which a session that sees the weights multiplies and adds."""
    np.testing.assert_allclose(output, computed_by(other), rtol=1e-5, atol=1e-6)


def digests(net: Service, version: int) -> dict[str, str]:
    tensors = net.client.get(f"{PATH}/{version}/tensors").json()["data"]
    return {one["name"]: one["blake3"] for one in tensors}


def refused(net: Service, model: ModelProto, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    answer = net.client.post(PATH, json={"onnx": net.upload(model.SerializeToString()), **fields})
    problem: dict[str, Any] = answer.json()
    assert answer.status_code == 422, problem
    return problem


def test_an_export_with_other_names_in_another_order_refits_to_what_it_computes(net: Service, network: Network) -> None:
    names = [one.name for one in export(network, {}).graph.initializer]
    numbered = {name: f"onnx::Tensor_{number}" for number, name in enumerate(sorted(names))}
    weights = network.weights(seed=2)
    other = renamed(export(network, weights), numbered)
    assert_computes(refitted(net, {"onnx": net.upload(other.SerializeToString())}), other)
    assert digests(net, 2) == {
        name: blake3(weights[name].tobytes()).hexdigest() if name in weights else digest
        for name, digest in digests(net, 1).items()
    }
    assert len(net.client.get("/v1/models/net/definitions").json()["data"]) == 1


def test_scalars_that_only_one_export_names_as_learnt_are_told_by_their_places(net: Service, network: Network) -> None:
    """`scale` and the like are parameters of the definition; named so, they are numbers that the code wrote."""
    scalars = ("scale", "one", "half", "root")
    names = {name: f"/inner/Constant_{number}_output_0" for number, name in enumerate(scalars)}
    other = renamed(export(network, network.weights(seed=3)), names)
    assert_computes(refitted(net, {"onnx": net.upload(other.SerializeToString())}), other)


def test_an_export_with_some_of_the_names_and_its_data_in_a_file_refits(net: Service, network: Network) -> None:
    other = renamed(export(network, network.weights(seed=4)), {"q.weight": "a", "k.weight": "b", "norm.bias": "c"})
    whole, data = ModelProto.FromString(other.SerializeToString()), b""
    for one in other.graph.initializer:
        if one.name in {"a", "b", "embeddings"}:
            raw = numpy_helper.to_array(one).tobytes()
            one.ClearField("raw_data")
            one.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "model.data"), ("offset", len(data)), ("length", len(raw))):
                one.external_data.add(key=key, value=str(value))
            data += raw
    body = {"onnx": net.upload(other.SerializeToString()), "external_data": {"model.data": net.upload(data)}}
    assert_computes(refitted(net, body), whole)
    blobs = {one["name"]: one["blob"] for one in net.client.get(f"{PATH}/2/tensors").json()["data"]}
    assert blobs["q.weight"] == f"sha256:{hashlib.sha256(data).hexdigest()}" != blobs["v.weight"]


def test_the_same_weights_are_the_version_that_there_is(net: Service, network: Network) -> None:
    other = renamed(export(network, network.weights(seed=1)), {"q.weight": "a"})
    answer = net.client.post(PATH, json={"onnx": net.upload(other.SerializeToString()), "label": "again"})
    assert (answer.status_code, answer.json()["version"]) == (200, 1)
    assert answer.headers["location"] == f"{PATH}/1"


def test_a_graph_with_one_node_more_is_refused_and_shown(net: Service, network: Network) -> None:
    other = export(network, network.weights(seed=2))
    other.graph.node[-1].output[0] = "almost"
    other.graph.node.append(make_node("Tanh", ["almost"], ["y"]))
    problem = refused(net, other)
    assert problem["code"] == "graph_differs"
    assert problem["errors"] == [
        {"pointer": "/onnx", "detail": "the definition has Mul 'y' where the file has Tanh 'y'"}
    ]
    assert "Register the file as a definition of its own" in problem["detail"]


def test_names_that_contradict_the_graph_are_refused_and_shown(net: Service, network: Network) -> None:
    other = renamed(export(network, network.weights(seed=2)), {"q.weight": "v.weight", "v.weight": "q.weight"})
    problem = refused(net, other)
    assert problem["code"] == "ambiguous_weights"
    assert "at the place of 'q.weight' the file has 'v.weight'" in problem["detail"]


def test_a_definition_is_the_newest_or_the_one_that_is_asked_for(net: Service, network: Network) -> None:
    other = export(network, network.weights(seed=2))
    other.graph.node[-1].op_type = "Add"
    net.post("/definitions", {"onnx": net.upload(other.SerializeToString())})
    first = renamed(export(network, network.weights(seed=5)), {"q.weight": "a"})
    assert "has Add 'y' where the file has Mul" in refused(net, first)["detail"]
    assert_computes(refitted(net, {"onnx": net.upload(first.SerializeToString()), "definition": 1}), first)


def test_an_export_is_converted_to_the_opset_of_the_definition(net: Service, network: Network) -> None:
    first = net.upload(with_weights(network, network.weights(seed=1)))
    assert net.post("/definitions", {"onnx": first, "opset": 18})["source"]["converted_from"] == 17
    other = renamed(export(network, network.weights(seed=6)), {"q.weight": "a"})
    version = net.post("/weights", {"onnx": net.upload(other.SerializeToString()), "definition": 2})["version"]
    engine = net.result("/builds", {"definition": 2, "weights": version})["engine"]
    assert_computes(run(net, engine), other)


def test_a_model_without_the_definition_is_told_how_to_make_one(client: TestClient, net: Service) -> None:
    client.post("/v1/models", json={"name": "empty"}).raise_for_status()
    digest = net.upload(b"anything")
    for path, body in (("/v1/models/empty/weights", {}), (PATH, {"definition": 7})):
        answer = client.post(path, json={"onnx": digest, **body})
        assert (answer.status_code, answer.json()["code"]) == (404, "definition_not_found")
        assert "Make one with POST" in answer.json()["detail"]
