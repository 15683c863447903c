"""One network in every checkpoint format: bound, built, verified and refitted to the same engine, over HTTP."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from safetensors.numpy import save

from tests.golden.checkpoints.values import PERCEPTRON, read
from tests.workers.networks import Network
from tests.workers.service import Array, Service, with_weights

INPUT = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)


def npz(tensors: Mapping[str, Array]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **tensors)  # type: ignore[arg-type]  # numpy's stubs take the names for its own argument
    return buffer.getvalue()


FILES = {
    "safetensors": save(dict(PERCEPTRON)),
    "pytorch": read("perceptron.pt"),
    "training": read("training.pt"),
    "pytorch_legacy": read("perceptron_legacy.pt"),
    "npz": npz(PERCEPTRON),
    "gguf": read("perceptron.gguf"),
}


def outputs(network: Network, tensors: Mapping[str, Array]) -> Array:
    """What onnxruntime itself gives for the network with these weights inside."""
    session = ort.InferenceSession(with_weights(network, tensors), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": INPUT})
    return np.asarray(found)


def add(net: Service, raw: bytes, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of the request
    return net.post("/weights", {"files": [net.upload(raw)]} | more)


@pytest.mark.parametrize("name", FILES)
def test_an_engine_is_built_and_refitted_from_every_format(net: Service, network: Network, name: str) -> None:
    version = add(net, FILES[name])["version"]
    assert version == 2
    assert net.post("/bindings/check", {"definition": 1, "weights": version})["ok"]
    refitted = net.result("/refits", {"engine": 1, "weights": version})["engine"]
    built = net.result("/builds", {"definition": 1, "weights": version, "reuse": False})["engine"]
    assert len({1, refitted, built}) == 3
    expected = outputs(network, PERCEPTRON)
    for engine in (refitted, built):
        np.testing.assert_array_equal(net.run(engine, INPUT), expected)
        facts = net.client.get(f"/v1/models/net/engines/{engine}").json()
        assert facts["verification"]["ok"], facts


def test_equal_tensors_are_one_version_whatever_they_come_in(net: Service) -> None:
    assert {add(net, raw)["version"] for raw in FILES.values()} == {2}


@pytest.mark.parametrize("name", FILES)
def test_what_did_not_change_is_known_across_formats(net: Service, network: Network, name: str) -> None:
    changed = dict(PERCEPTRON) | {"1.bias": PERCEPTRON["1.bias"] + 1}
    add(net, FILES[name])
    later = add(net, npz(changed))["version"]
    diff = net.client.get(f"/v1/models/net/weights/{later}/diff", params={"from": 2}).json()
    assert (diff["unchanged"], diff["changed"], diff["data"][0]["name"]) == (3, 1, "1.bias")
    over = add(net, npz({"1.bias": changed["1.bias"]}), base=2)["version"]
    assert over == later  # a file of one format over a version of another
    engine = net.result("/refits", {"engine": 1, "weights": later})["engine"]
    np.testing.assert_array_equal(net.run(engine, INPUT), outputs(network, changed))


def test_a_nested_checkpoint_binds_by_what_is_proposed(net: Service, network: Network) -> None:
    version = add(net, read("ema.pt"))["version"]
    body = {"definition": 1, "weights": version}
    (unclear, *_) = net.post("/bindings/propose", body)["unclear"]  # two networks are in it: the client knows which
    assert "a rule may ignore one" in unclear["detail"]
    for ignored, values in (("ema", PERCEPTRON), ("model", {name: one + 1 for name, one in PERCEPTRON.items()})):
        proposed = net.post("/bindings/propose", body | {"rules": [{"ignore": rf"{ignored}\..*"}]})
        assert proposed["report"]["ok"], proposed
        refit = {"engine": 1, "weights": version, "rules": proposed["rules"]}
        engine = net.result("/refits", refit)["engine"]
        np.testing.assert_array_equal(net.run(engine, INPUT), outputs(network, values))
