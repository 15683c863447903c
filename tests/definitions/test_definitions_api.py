import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from onnx import ModelProto, numpy_helper
from onnx.helper import make_node
from sqlalchemy import update

from app.artifacts.store import ArtifactStore
from app.database import Database
from app.definitions import service
from app.definitions.parameter import Parameter
from app.definitions.tables import Definition
from app.registry import service as registry

Make = Callable[..., ModelProto]
URL = "/v1/models/m/definitions"


@pytest.fixture(autouse=True)
def model(client: TestClient) -> None:
    assert client.post("/v1/models", json={"name": "m"}).status_code == 201


def put(client: TestClient, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert client.put(f"/v1/blobs/{digest}", content=data).status_code in {200, 201}
    return digest


def network(make: Make, value: float) -> bytes:
    w = numpy_helper.from_array(np.full((4, 2), value, np.float32), "w")
    return make([make_node("MatMul", ["x", "w"], ["y"])], [w]).SerializeToString()


def make_bytes(make: Make, nodes: list[Any], tensors: dict[str, Any]) -> bytes:
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    return make(nodes, initializers).SerializeToString()


def bert(minilm: Path, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - values of a config
    return {"family": "bert", "config": json.loads((minilm / "config.json").read_text()) | changes}


def test_an_onnx_file_becomes_a_definition_and_a_weight_version(client: TestClient, tiny_model: Make) -> None:
    digest = put(client, network(tiny_model, 1.0))
    answer = client.post(URL, json={"onnx": digest})
    made = answer.json()
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"{URL}/1"
    assert made["source"]["onnx"] == digest
    assert made["inputs"] == [{"name": "x", "dtype": "F32", "shape": ["n", 4], "low": 0, "high": None}]
    assert made["outputs"] == [{"name": "y", "dtype": "F32", "shape": ["n", 2]}]
    assert (made["version"], made["parameter_count"], made["weights"]) == (1, 1, 1)
    tensors = client.get("/v1/models/m/weights/1/tensors").json()["data"]
    assert [(t["name"], t["dtype"], t["shape"]) for t in tensors] == [("w", "F32", [4, 2])]
    assert client.get(f"{URL}/1").json() == made


def test_other_weights_in_the_same_graph_are_the_same_definition(client: TestClient, tiny_model: Make) -> None:
    first = client.post(URL, json={"onnx": put(client, network(tiny_model, 1.0))}).json()
    again = client.post(URL, json={"onnx": put(client, network(tiny_model, 2.0))})
    assert again.status_code == 200
    assert (again.json()["version"], again.json()["digest"]) == (1, first["digest"])
    assert (first["weights"], again.json()["weights"]) == (1, 2)
    assert client.post(URL, json={"onnx": put(client, network(tiny_model, 1.0))}).json()["weights"] == 1


def test_the_graph_is_kept_weightless_under_its_digest(
    client: TestClient, tiny_model: Make, store: ArtifactStore
) -> None:
    made = client.post(URL, json={"onnx": put(client, network(tiny_model, 7.25))}).json()
    graph = store.local_path(made["digest"]).read_bytes()
    assert np.float32(7.25).tobytes() not in graph
    assert f"sha256:{hashlib.sha256(graph).hexdigest()}" == made["digest"]


def test_a_family_definition_binds_to_its_checkpoint(client: TestClient, minilm: Path) -> None:
    made = client.post(URL, json=bert(minilm)).json()
    assert (made["parameter_count"], made["weights"]) == (103, None)
    assert made["source"]["config"]["hidden_size"] == 384
    files = [put(client, (minilm / "model.safetensors").read_bytes())]
    assert client.post("/v1/models/m/weights", json={"files": files}).status_code == 201
    report = client.post("/v1/models/m/bindings/check", json={"definition": 1, "weights": 1}).json()
    assert report["ok"]


def test_parameters_come_in_pages(client: TestClient, minilm: Path) -> None:
    client.post(URL, json=bert(minilm))
    names: list[str] = []
    page: dict[str, Any] = {"next_cursor": None, "has_more": True}
    while page["has_more"]:
        after = {"after": page["next_cursor"]} if page["next_cursor"] else {}
        page = client.get(f"{URL}/1/parameters", params={"limit": 40, **after}).json()
        names += [row["name"] for row in page["data"]]
    assert len(names) == 103
    assert names == sorted(set(names))


def test_definitions_are_listed_newest_first(client: TestClient, minilm: Path) -> None:
    for layers in (1, 2):
        client.post(URL, json=bert(minilm, num_hidden_layers=layers))
    assert [row["version"] for row in client.get(URL).json()["data"]] == [2, 1]


def test_faults_of_a_config_point_into_the_body(client: TestClient, minilm: Path) -> None:
    answer = client.post(URL, json=bert(minilm, hidden_act="mish", is_decoder=True))
    assert answer.status_code == 422
    assert answer.json()["code"] == "unsupported_config"
    assert {error["pointer"] for error in answer.json()["errors"]} == {"/config/hidden_act", "/config/is_decoder"}
    assert client.get(URL).json()["data"] == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"family": "bert"}, "invalid_request"),
        ({"onnx": "sha256:" + "0" * 64, "family": "bert", "config": {}}, "invalid_request"),
        ({"onnx": "sha256:" + "0" * 64, "precision": "fp16"}, "invalid_request"),
        ({"onnx": "../../etc/passwd"}, "invalid_request"),
        ({"family": "bert", "config": {}, "precison": "fp16"}, "invalid_request"),
        ({"family": "bert", "config": {}, "opset": 17}, "invalid_request"),
        ({"family": "bert", "config": {}, "external_data": {"a": "sha256:" + "0" * 64}}, "invalid_request"),
        ({"onnx": "sha256:" + "0" * 64, "opset": 25}, "invalid_request"),
        ({"family": "mamba", "config": {}}, "unknown_family"),
        ({"onnx": "sha256:" + "0" * 64}, "blob_not_found"),
    ],
)
def test_refuses_bodies_it_cannot_use(client: TestClient, body: dict[str, Any], code: str) -> None:
    answer = client.post(URL, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_a_damaged_file_is_refused_and_leaves_nothing(client: TestClient, tiny_model: Make) -> None:
    answer = client.post(URL, json={"onnx": put(client, network(tiny_model, 1.0)[:-3])})
    assert (answer.status_code, answer.json()["code"]) == (422, "not_onnx")
    assert client.get("/v1/models/m/weights").json()["data"] == []


def test_a_definition_says_which_floats_stayed_in_the_graph(client: TestClient, tiny_model: Make) -> None:
    def resized(weights: int) -> bytes:
        image = make_node("Unsqueeze", ["m", "axes"], ["image"])
        nodes = [make_node("MatMul", ["x", "w"], ["m"]), image, make_node("Resize", ["image", "", "scales"], ["y"])]
        tensors = {
            "w": np.ones((4, weights), np.float32),
            "axes": np.array([1, 2]),
            "scales": np.array([1, 1, 2, 2], np.float32),
        }
        return make_bytes(tiny_model, nodes, tensors)

    small, large = (client.post(URL, json={"onnx": put(client, resized(size))}).json() for size in (4, 1000))
    for made in (small, large):
        assert made["constants"] == [{"name": "scales", "bytes": 16, "reason": "setting"}]
        assert (made["constant_count"], made["constant_bytes"]) == (1, 16)
    assert large["source"]["warnings"] == []
    (warning,) = small["source"]["warnings"]
    assert "16 of 80 bytes" in warning
    assert "scales (setting)" in warning


def test_a_file_is_converted_to_the_opset_that_is_asked_for(client: TestClient, tiny_model: Make) -> None:
    digest = put(client, tiny_model([make_node("Relu", ["x"], ["y"])], opset=20).SerializeToString())
    made = client.post(URL, json={"onnx": digest, "opset": 17}).json()
    assert (made["source"]["opset"], made["source"]["converted_from"]) == (17, 20)
    gelu = put(client, tiny_model([make_node("Gelu", ["x"], ["y"])], opset=20).SerializeToString())
    refused = client.post(URL, json={"onnx": gelu, "opset": 17}).json()
    assert (refused["status"], refused["code"]) == (422, "opset_not_convertible")


def test_no_more_than_the_largest_constants_are_listed(client: TestClient, tiny_model: Make) -> None:
    names = [f"/Constant_{number}_output_0" for number in range(150)]
    nodes: list[Any] = []
    last = "x"
    for number, name in enumerate(names):
        nodes += [make_node("Constant", [], [name], value_float=float(number))]
        nodes += [make_node("Add", [last, name], [last := f"v{number}"])]
    nodes.append(make_node("Relu", [last], ["y"]))
    made = client.post(URL, json={"onnx": put(client, make_bytes(tiny_model, nodes, {}))}).json()
    assert (len(made["constants"]), made["constant_count"], made["constant_bytes"]) == (100, 150, 600)


def test_a_definition_of_an_earlier_release_has_none_to_tell_of(
    client: TestClient, database: Database, tiny_model: Make
) -> None:
    client.post(URL, json={"onnx": put(client, network(tiny_model, 1.0))})
    with database.transaction() as session:
        session.execute(update(Definition).values(constants=None))
    answer = client.get(f"{URL}/1").json()
    assert (answer["constants"], answer["constant_count"], answer["constant_bytes"]) == (None, None, None)


def test_says_what_does_not_exist(client: TestClient) -> None:
    assert client.get(f"{URL}/1").json()["code"] == "definition_not_found"
    assert client.get(f"{URL}/1/parameters").json()["code"] == "definition_not_found"
    assert client.post("/v1/models/none/definitions", json={"family": "bert", "config": {}}).status_code == 404


@pytest.mark.parametrize("path", ["", "/parameters"])
def test_refuses_a_version_that_no_database_holds(client: TestClient, path: str) -> None:
    answer = client.get(f"{URL}/{10**30}{path}")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/path/version")


def test_refuses_a_config_with_a_number_that_no_tensor_has(client: TestClient, minilm: Path) -> None:
    answer = client.post(URL, json=bert(minilm, vocab_size=10**30))
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/config/vocab_size")


def test_service_reads_back_what_was_made(client: TestClient, database: Database, tiny_model: Make) -> None:
    client.post(URL, json={"onnx": put(client, network(tiny_model, 1.0))})
    with database.reading() as session:
        model_id = registry.get_model(session, "m").id
        definition = service.get_definition(session, model_id, 1)
        assert service.load_parameters(session, definition.id) == (Parameter("w", (4, 2), "F32"),)
        assert definition.rules == []
    assert [spec.name for spec in service.inputs_of(definition)] == ["x"]
