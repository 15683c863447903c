"""How engines are verified over HTTP, on models that verification has to take as they are."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from onnx import helper
from safetensors.numpy import load, save
from sqlalchemy import select

from app.artifacts.tables import BlobUse
from app.definitions.parameter import InputSpec
from tests.workers.networks import Network, Weights, attention, network_of
from tests.workers.service import Service, service_with
from workers.jobs.worker import Worker

Array = np.ndarray[Any, np.dtype[Any]]
BUILD = {"definition": 1, "weights": 1}
DEFAULT = "/v1/models/net/definitions/1/verification"


@pytest.fixture
def net(client: TestClient, worker: Worker, tmp_path: Path) -> Service:
    """A service with the definition of an attention layer, whose input is "ids"."""
    network = attention(tmp_path / "network.onnx")
    return service_with(client, worker, network, network.weights(1))


def service_of(
    client: TestClient,
    worker: Worker,
    path: Path,
    nodes: list[Any],
    inputs: tuple[InputSpec, ...],
    weights: Weights,
    constants: dict[str, Array] | None = None,
) -> Service:
    """A service with a definition whose output is "y"."""
    parameters = {name: ("F32", np.shape(value)) for name, value in weights.items()}
    network: Network = network_of(path / "network.onnx", nodes, parameters, inputs, {"y": "F32"}, constants)
    return service_with(client, worker, network, weights)


def run(net: Service, engine: int, **inputs: Array) -> Array:
    result = net.result("/runs", {"engine": engine, "inputs": net.upload(save(inputs))})
    outputs: Array = load(net.client.get(f"/v1/blobs/{result['outputs']}").content)["y"]
    return outputs


def verification(net: Service, engine: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = net.client.get(f"/v1/models/net/engines/{engine}").json()["verification"]
    return found


def kept_for(net: Service, digest: str) -> set[str]:
    with net.worker.database.reading() as session:
        return set(session.scalars(select(BlobUse.owner).where(BlobUse.digest == digest)))


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def test_infinities_that_the_model_means_are_built_and_run(client: TestClient, worker: Worker, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    weights = {
        "w": np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32),
        "b": np.array([0, -np.inf, 0, -np.inf], np.float32),
    }
    net = service_of(client, worker, tmp_path, nodes, (InputSpec("x", "F32", ("n", 8)),), weights)
    assert net.result("/builds", BUILD)["engine"] == 1
    assert verification(net)["ok"] is True
    x = np.ones((3, 8), np.float32)
    np.testing.assert_allclose(run(net, 1, x=x), x @ weights["w"] + weights["b"], rtol=1e-5)
    refused = net.do("/builds", BUILD | {"reuse": False, "verify": {"against": "finite"}})
    assert refused["error"]["code"] == "verification_failed"


def audio(client: TestClient, worker: Worker, path: Path, frame: int) -> Service:
    """A model of audio that is cut into frames of this length, of which there has to be a whole number."""
    nodes = [helper.make_node("Reshape", ["x", "frames"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    weights = {"w": np.ones((frame, 4), np.float32)}
    inputs = (InputSpec("x", "F32", ("batch", "samples")),)
    return service_of(client, worker, path, nodes, inputs, weights, {"frames": np.array([0, -1, frame], np.int64)})


def test_a_model_of_audio_is_verified_with_as_many_samples_as_it_takes(
    client: TestClient, worker: Worker, tmp_path: Path
) -> None:
    net = audio(client, worker, tmp_path, 400)
    net.result("/builds", BUILD)
    assert verification(net)["made_up"]["shapes"] == {"x": [2, 16_000]}
    assert run(net, 1, x=np.ones((1, 800), np.float32)).shape == (1, 2, 4)


def test_what_no_guess_satisfies_says_how_to_give_shapes_or_inputs(
    client: TestClient, worker: Worker, tmp_path: Path
) -> None:
    net = audio(client, worker, tmp_path, 443)
    job = net.do("/builds", BUILD)
    assert (job["state"], job["error"]["code"]) == ("failed", "verification_impossible")
    for words in ("guess", "x [2, 16]", '"profiles"', '"verify": {"inputs"', "x F32['batch', 'samples']"):
        assert words in job["error"]["detail"]

    profile = {"x": {"min": [1, 443], "opt": [1, 443], "max": [1, 886]}}
    assert net.result("/builds", BUILD | {"profiles": [profile]})["engine"] == 1
    given = {"inputs": net.upload(save({"x": np.ones((1, 886), np.float32)}))}
    assert net.result("/builds", BUILD | {"verify": given})["engine"] == 2
    assert verification(net, 2)["asked"]["inputs"] == given["inputs"]


def test_an_engine_is_published_unverified_if_the_request_allows_it(
    client: TestClient, worker: Worker, tmp_path: Path
) -> None:
    net = audio(client, worker, tmp_path, 443)
    net.result("/builds", BUILD | {"verify": {"if_impossible": "publish"}})
    found = verification(net)
    assert (found["ok"], found["outputs"]) == (None, {})
    assert "guess" in found["detail"]
    again = net.result("/engines/1/verify", {})
    assert (again["ok"], "guess" in again["detail"]) == (None, True)


def test_the_last_row_is_index_minus_one(client: TestClient, worker: Worker, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Gather", ["h", "i"], ["y"])]
    weights = {"w": np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32)}
    inputs = (InputSpec("x", "F32", (5, 8)), InputSpec("i", "I64", ()))
    net = service_of(client, worker, tmp_path, nodes, inputs, weights)
    net.result("/builds", BUILD)
    x = np.random.default_rng(2).standard_normal((5, 8)).astype(np.float32)
    np.testing.assert_allclose(run(net, 1, x=x, i=np.array(-1)), (x @ weights["w"])[-1], rtol=1e-4, atol=1e-6)
    for index in (-6, 5):
        job = net.do("/runs", {"engine": 1, "inputs": net.upload(save({"x": x, "i": np.array(index)}))})
        assert f"holds {index}; its values must lie in [-5, 5)" in job["error"]["detail"]


def test_outputs_that_are_expected_decide(net: Service) -> None:
    net.result("/builds", BUILD)
    ids = np.arange(6).reshape(1, 6)
    y = run(net, 1, ids=ids)
    inputs, right, wrong = (net.upload(save(one)) for one in ({"ids": ids}, {"y": y}, {"y": y * np.float32(1.01)}))

    verify = {"inputs": inputs, "expected": right}
    result = net.result("/builds", BUILD | {"reuse": False, "verify": verify})
    assert verification(net, result["engine"])["against"] == "expected"
    failed = net.do("/builds", BUILD | {"reuse": False, "verify": verify | {"expected": wrong}})
    assert failed["error"]["code"] == "verification_failed"
    lenient = {"expected": wrong, "tolerance": {"relative_l2": 0.1, "cosine": 0.9}}
    assert net.result("/engines/1/verify", {"inputs": inputs, "expected": wrong})["ok"] is False
    assert net.do("/builds", BUILD | {"reuse": False, "verify": verify | lenient})["state"] == "succeeded"
    assert f"job:{failed['id']}" in kept_for(net, wrong)


def test_inputs_that_do_not_fit_the_definition_fail_the_build_by_name(net: Service) -> None:
    inputs = net.upload(save({"idz": np.zeros((1, 4), np.int64)}))
    job = net.do("/builds", BUILD | {"verify": {"inputs": inputs}})
    assert (job["state"], job["error"]["code"]) == ("failed", "bad_inputs")
    assert "input ids I64[batch, sequence] is missing" in job["error"]["detail"]


def test_what_is_kept_for_a_definition_is_what_its_engines_are_verified_with(net: Service) -> None:
    first, second = (net.upload(save({"ids": np.full((1, n), n)})) for n in (3, 4))
    assert net.client.get(DEFAULT).json()["code"] == "verification_not_found"
    assert net.client.delete(DEFAULT).status_code == 404
    for inputs in (second, first):
        body = {"inputs": inputs, "tolerance": {"relative_l2": 0.001}}
        assert net.client.put(DEFAULT, json=body).status_code == 200
    kept = net.client.get(DEFAULT).json()
    assert (kept["inputs"], kept["tolerance"]["relative_l2"]) == (first, 0.001)
    assert (kept_for(net, first), kept_for(net, second)) == ({"verification:1"}, set())

    net.result("/builds", BUILD)
    net.result("/refits", {"engine": 1, "weights": net.add_weights({"v.bias": np.ones(16, np.float32)})})
    for engine in (1, 2):
        found = verification(net, engine)
        assert (found["asked"]["inputs"], found["made_up"]) == (first, None)
        assert found["tolerance"]["relative_l2"] == 0.001
    own = net.result("/engines/1/verify", {"inputs": second, "tolerance": {"relative_l2": 0.5}})
    assert (own["asked"]["inputs"], own["tolerance"]["relative_l2"]) == (second, 0.5)

    assert net.client.delete(DEFAULT).status_code == 204
    assert (net.client.get(DEFAULT).status_code, kept_for(net, first) & {"verification:1"}) == (404, set())
    assert net.result("/engines/1/verify", {})["made_up"] is not None


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({}, "invalid_request", "/inputs"),
        ({"inputs": digest_of(b"nowhere")}, "blob_not_found", "/inputs"),
        ({"inputs": digest_of(b"nowhere"), "tolerance": {"cosine": 2}}, "invalid_request", "/tolerance/cosine"),
    ],
)
def test_what_cannot_be_kept_for_a_definition_is_refused(
    net: Service, body: dict[str, Any], code: str, pointer: str
) -> None:
    answer = net.client.put(DEFAULT, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]
    assert net.client.put(DEFAULT.replace("/1/", "/9/"), json=body | {"inputs": digest_of(b"")}).status_code in {
        404,
        422,
    }


def test_what_a_verification_sees_is_measured_once_for_all_weights(net: Service) -> None:
    net.result("/builds", BUILD)
    sees = verification(net)["sees"]
    assert (sees["parameters"], sees["of"], sees["unseen"], sees["without_effect"]) == (15, 15, [], ["k.bias"])
    assert verification(net)["inner"].keys() == set(sees["inner"])

    assert net.client.get("/v1/models/net/engines/1").json()["timings"]["coverage"] > 0

    changed = net.add_weights({"v.bias": np.ones(16, np.float32)})
    net.result("/refits", {"engine": 1, "weights": changed})
    assert "coverage" not in net.client.get("/v1/models/net/engines/2").json()["timings"]
    net.worker.host.close()
    net.result("/builds", {"definition": 1, "weights": changed, "reuse": False})
    assert [verification(net, engine)["sees"] for engine in (2, 3)] == [sees, sees]

    net.result("/builds", BUILD | {"reuse": False, "verify": {"coverage": "none"}})
    assert verification(net, 4)["sees"] is None
    net.result("/refits", {"engine": 4, "weights": changed, "reuse": False, "verify": {"coverage": "full"}})
    assert verification(net, 5)["sees"]["tried"] == 15
    assert net.result("/engines/4/verify", {"coverage": "full"})["sees"]["tried"] == 15
    other = {"inputs": net.upload(save({"ids": np.zeros((1, 1), np.int64)})), "coverage": "auto"}
    net.result("/refits", {"engine": 1, "weights": changed, "reuse": False, "verify": other})
    assert verification(net, 6)["sees"] is None  # of these inputs nothing is known
