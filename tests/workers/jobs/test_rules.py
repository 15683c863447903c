"""Checkpoints that do not bind as they are: the proposed rules, refits by them, and what the engines then compute."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save

from tests.workers.networks import Network, Weights
from tests.workers.service import Service, computed

Array = np.ndarray[Any, np.dtype[Any]]
F8 = ml_dtypes.float8_e4m3fn


@pytest.fixture
def trained(network: Network) -> Weights:
    """The weights that the definition came with, trained on. All matrices are square: only values tell how they lie."""
    first, noise = network.weights(seed=1), network.weights(seed=2)
    return {name: np.asarray(array) + np.float32(0.1) * noise[name] for name, array in first.items()}


@pytest.fixture
def x() -> Array:
    return np.random.default_rng(7).standard_normal((3, 8)).astype(np.float32)


def upload(net: Service, tensors: Weights) -> int:
    raw = save({name: np.ascontiguousarray(array) for name, array in tensors.items()})
    version: int = net.post("/weights", {"files": [net.upload(raw)]})["version"]
    return version


def propose(net: Service, weights: int) -> list[Any]:
    answer = net.post("/bindings/propose", {"definition": 1, "weights": weights})
    assert answer["ok"], answer["unclear"] + answer["report"]["problems"]
    rules: list[Any] = answer["rules"]
    return rules


def as_saved(trained: Weights) -> dict[str, Array]:
    """As PyTorch's Linear keeps them, in a module that was wrapped."""
    return {f"module.{name}": np.asarray(array).T for name, array in trained.items()}


def test_a_state_dict_is_put_in_by_a_refit_with_the_proposed_rules(net: Service, trained: Weights, x: Array) -> None:
    weights = upload(net, as_saved(trained))
    rules = propose(net, weights)
    assert [{"op": "transpose", "perm": [1, 0]}] in [rule.get("transforms") for rule in rules]
    result = net.result("/refits", {"engine": 1, "weights": weights, "rules": rules})
    assert result["method"] == "refit"
    np.testing.assert_allclose(net.run(result["engine"], x), computed(trained, x), rtol=1e-5, atol=1e-6)
    assert net.client.get(f"/v1/models/net/engines/{result['engine']}/manifest").json()["rules"] == rules


def test_a_state_dict_of_other_values_is_not_put_in_by_a_guess(net: Service, network: Network) -> None:
    weights = upload(net, as_saved(network.weights(seed=9)))
    answer = net.post("/bindings/propose", {"definition": 1, "weights": weights})
    assert not answer["ok"]
    assert answer["unclear"][0]["parameters"] == ["0.weight", "1.weight"]
    assert "square" in answer["unclear"][0]["detail"]


def test_the_cheapest_engine_by_other_rules_is_a_refit_and_so_is_the_way_back(
    net: Service, network: Network, trained: Weights, x: Array
) -> None:
    weights = upload(net, as_saved(trained))
    body = {"definition": 1, "weights": weights, "rules": propose(net, weights), "backend": "onnxruntime"}
    there = net.result("/engines", body)
    again = network.weights(seed=3)
    plain = {"definition": 1, "weights": upload(net, again), "rules": [], "backend": "onnxruntime"}
    back = net.result("/engines", plain)
    assert (there["method"], back["method"]) == ("refit", "refit")
    np.testing.assert_allclose(net.run(there["engine"], x), computed(trained, x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net.run(back["engine"], x), computed(again, x), rtol=1e-5, atol=1e-6)


def test_quantised_weights_compute_what_they_stand_for(net: Service, trained: Weights, x: Array) -> None:
    quantised: dict[str, Array] = {}
    expected: dict[str, Array] = {}
    for name, array in trained.items():
        if not name.endswith("weight"):
            quantised[name] = expected[name] = np.asarray(array)
            continue
        scale = np.float32(1 / 64)
        numbers = (np.asarray(array) / scale).astype(F8)
        quantised |= {name: numbers, f"{name}_scale_inv": np.array([scale])}
        expected[name] = numbers.astype(np.float32) * scale
    weights = upload(net, quantised)
    check = net.post("/bindings/check", {"definition": 1, "weights": weights})
    assert {problem["kind"] for problem in check["problems"]} == {"wrong_dtype", "unexpected"}
    result = net.result("/refits", {"engine": 1, "weights": weights, "rules": propose(net, weights)})
    np.testing.assert_allclose(net.run(result["engine"], x), computed(expected, x), rtol=1e-5, atol=1e-6)


def test_an_adapter_over_the_base_is_merged_by_a_rule(net: Service, network: Network, x: Array) -> None:
    base = network.weights(seed=1)
    inputs, outputs = np.asarray(base["0.weight"]).shape
    random = np.random.default_rng(5)
    down = random.standard_normal((2, inputs)).astype(np.float32)
    up = random.standard_normal((outputs, 2)).astype(np.float32)
    weights = net.add_weights({"0.lora_A.weight": down, "0.lora_B.weight": up})
    turn = {"op": "transpose", "perm": [1, 0]}
    rule = {
        "parameter": r"0\.weight",
        "tensors": ["0.weight", "0.lora_A.weight", "0.lora_B.weight"],
        "transforms": [{"op": "each", "transforms": [[turn], [], []]}, {"op": "merge_lora", "scale": 0.5}, turn],
    }
    unmerged = net.post("/bindings/check", {"definition": 1, "weights": weights})
    assert not unmerged["ok"]
    assert "ignore" not in str(unmerged["problems"])
    result = net.result("/refits", {"engine": 1, "weights": weights, "rules": [rule]})
    merged = {**base, "0.weight": np.asarray(base["0.weight"]) + 0.5 * (up @ down).T}
    np.testing.assert_allclose(net.run(result["engine"], x), computed(merged, x), rtol=1e-4, atol=1e-5)
