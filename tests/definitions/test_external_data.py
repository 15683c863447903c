"""Graphs whose data lie in files beside them, as a client uploads them."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.helper import make_graph, make_node, make_tensor_value_info

Make = Callable[..., ModelProto]
URL = "/v1/models/m/definitions"
W = np.arange(16, dtype=np.float32).reshape(4, 4)
B = np.array([5, 6, 7, 8], np.float32)


@pytest.fixture(autouse=True)
def model(client: TestClient) -> None:
    assert client.post("/v1/models", json={"name": "m"}).status_code == 201


def put(client: TestClient, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert client.put(f"/v1/blobs/{digest}", content=data).status_code in {200, 201}
    return digest


def outside(name: str, array: np.ndarray[Any, Any], location: str, **fields: object) -> TensorProto:
    tensor = TensorProto(name=name, data_type=numpy_helper.from_array(array).data_type, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def linear(make: Make, tensors: Sequence[TensorProto]) -> bytes:
    nodes = [make_node("Gemm", ["x", "w", "b"], ["g"]), make_node("Reshape", ["g", "shape"], ["y"])]
    return make(nodes, tensors).SerializeToString()


def two_files(make: Make) -> bytes:
    shape = np.array([-1, 2], np.int64)
    return linear(
        make,
        [
            outside("w", W, "data/weights.bin", offset=8, length=W.nbytes),
            outside("b", B, "other.bin"),
            outside("shape", shape, "data/weights.bin", offset=8 + W.nbytes),
        ],
    )


FILES = {"data/weights.bin": bytes(8) + W.tobytes() + np.array([-1, 2], np.int64).tobytes(), "other.bin": B.tobytes()}


def test_weights_are_ranges_of_the_files_as_they_were_uploaded(client: TestClient, tiny_model: Make) -> None:
    digests = {location: put(client, data) for location, data in FILES.items()}
    answer = client.post(URL, json={"onnx": put(client, two_files(tiny_model)), "external_data": digests})
    made = answer.json()
    assert answer.status_code == 201, made
    assert made["source"]["external_data"] == digests
    tensors = client.get(f"/v1/models/m/weights/{made['weights']}/tensors").json()["data"]
    assert [(one["name"], one["blob"], one["offset"], one["nbytes"]) for one in tensors] == [
        ("b", digests["other.bin"], 0, 16),
        ("w", digests["data/weights.bin"], 8, 64),
    ]
    graph = client.get(f"/v1/blobs/{made['digest']}").content
    assert b"data/weights.bin" not in graph
    assert np.array([-1, 2], np.int64).tobytes() in graph  # a setting comes inside


def test_the_graph_is_the_same_wherever_its_data_lay(client: TestClient, tiny_model: Make) -> None:
    digests = {location: put(client, data) for location, data in FILES.items()}
    shape = np.array([-1, 2], np.int64)
    inside = [numpy_helper.from_array(array, name) for name, array in (("w", W), ("b", B), ("shape", shape))]
    first = client.post(URL, json={"onnx": put(client, two_files(tiny_model)), "external_data": digests}).json()
    second = client.post(URL, json={"onnx": put(client, linear(tiny_model, inside))}).json()
    assert (second["version"], second["weights"]) == (first["version"], first["weights"])


def test_data_of_a_branch_and_of_a_constant_node_may_lie_outside(client: TestClient, tiny_model: Make) -> None:
    def branch(kind: str, node: Any) -> Any:  # noqa: ANN401 - protobuf
        nodes = [node, make_node(kind, ["x", "k"], ["r"])] if node else [make_node("Neg", ["x"], ["r"])]
        return make_graph(nodes, kind, [], [make_tensor_value_info("r", 1, None)])

    constant = make_node("Constant", [], ["k"], value=outside("", B, "other.bin"))
    nodes = [
        make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array([True]))),
        make_node("If", ["yes"], ["y"], then_branch=branch("Add", constant), else_branch=branch("Sub", None)),
    ]
    files = {"other.bin": put(client, FILES["other.bin"])}
    made = client.post(URL, json={"onnx": put(client, tiny_model(nodes).SerializeToString()), "external_data": files})
    tensors = client.get(f"/v1/models/m/weights/{made.json()['weights']}/tensors").json()["data"]
    assert [(one["name"], one["blob"]) for one in tensors] == [("k", files["other.bin"])]


@pytest.mark.parametrize(
    ("left_out", "extra", "words"),
    [
        ({"other.bin"}, {}, ["'other.bin' is missing", "PUT /v1/blobs"]),
        (set(), {"third.bin"}, ["not 'third.bin'", "leave"]),
        ({"other.bin", "data/weights.bin"}, {"third.bin"}, ["'data/weights.bin', 'other.bin' are missing"]),
    ],
)
def test_missing_and_superfluous_files_are_named(
    client: TestClient, tiny_model: Make, left_out: set[str], extra: set[str], words: list[str]
) -> None:
    files = {location: put(client, data) for location, data in FILES.items() if location not in left_out}
    files |= {location: put(client, b"more") for location in extra}
    problem = client.post(URL, json={"onnx": put(client, two_files(tiny_model)), "external_data": files}).json()
    assert (problem["status"], problem["code"]) == (422, "external_data")
    assert all(word in problem["detail"] for word in words), problem["detail"]
    assert len(problem["errors"]) == len(left_out) + len(extra)


@pytest.mark.parametrize(
    "fields", [{"offset": 4}, {"offset": -4}, {"length": 12}, {"length": 20}, {"offset": "x"}, {"offset": 2**62}]
)
def test_a_range_that_is_not_in_the_file_is_refused(
    client: TestClient, tiny_model: Make, fields: dict[str, object]
) -> None:
    shape = numpy_helper.from_array(np.array([-1, 2], np.int64), "shape")
    data = linear(tiny_model, [numpy_helper.from_array(W, "w"), outside("b", B, "other.bin", **fields), shape])
    files = {"other.bin": put(client, FILES["other.bin"])}
    problem = client.post(URL, json={"onnx": put(client, data), "external_data": files}).json()
    assert (problem["status"], problem["code"]) == (422, "external_data")
    assert "initializer 'b'" in problem["detail"]


def test_a_file_that_was_not_uploaded_is_named_by_its_place(client: TestClient, tiny_model: Make) -> None:
    files = dict.fromkeys(FILES, f"sha256:{'0' * 64}")
    problem = client.post(URL, json={"onnx": put(client, two_files(tiny_model)), "external_data": files}).json()
    assert problem["code"] == "blob_not_found"
    assert {one["pointer"] for one in problem["errors"]} == {
        "/external_data/data~1weights.bin",
        "/external_data/other.bin",
    }
