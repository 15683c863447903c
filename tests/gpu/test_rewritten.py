"""Graphs that TensorRT 8.6 takes only because they are rewritten: built and refitted, they compute what they say."""

from pathlib import Path

import numpy as np
import pytest

from app.definitions.parameter import InputSpec
from tests.gpu.card import Array, Card
from tests.gpu.samples import rows
from tests.workers.engine_host.normaliser.graphs import graph
from tests.workers.networks import Network, bound, checkpoint, network_of

BRANCHES = """g (float[batch, 4] x) => (float[batch, 4] y, float[batch, 4] z) {
    top = ReduceMax <keepdims = 0> (x) zero = Constant <value = float {0.0}> () positive = Greater (top, zero)
    y, z = If (positive) <
        then_branch = t () => (c, d) { c = Mul (x, w) d = Sin (c) },
        else_branch = e () => (f, g) { g = Mul (x, w) f = Cos (g) }
    >
}"""
TRANSFORM = """g (float[batch, 100] x) => (float[batch, frames, 9, 2] y) {
    step = Constant <value = int64 {5}> () y = STFT (x, step, w)
}"""
BIAS = """g (float[batch, 4] x) => (float[batch, 4] y) {
    zero = Constant <value = int32 {0}> () b = DequantizeLinear <axis = 0> (q, w, zero) y = Add (x, b)
}"""


def network(path: Path, text: str, parameters: dict[str, tuple[str, tuple[int, ...]]], width: int = 4) -> Network:
    parsed = graph(text).graph
    inputs = (InputSpec("x", "F32", ("batch", width)),)
    return network_of(path, list(parsed.node), parameters, inputs, {one.name: "F32" for one in parsed.output})


def after_each(card: Card, net: Network, weights: list[dict[str, Array]], x: Array) -> list[dict[str, Array]]:
    """What the engine gives with each of two weight versions: built with the first, and refitted with the second."""
    first, second = (checkpoint(card.folder / f"{n}.safetensors", one) for n, one in enumerate(weights))
    _, engine = card.build(net, bound(net, first), (rows(net),))
    _, child = card.refit(engine, bound(net, second))
    return [card.run(engine, {"x": x}), card.run(child, {"x": x})]


@pytest.mark.parametrize("sign", [1, -1])
def test_each_output_of_an_if_is_the_one_that_it_is_named(card: Card, tmp_path: Path, sign: int) -> None:
    net = network(tmp_path / "net.onnx", BRANCHES, {"w": ("F32", (4,))})
    x = np.full((2, 4), 0.7 * sign, np.float32)
    weights = [np.arange(1, 5, dtype=np.float32), np.arange(5, 9, dtype=np.float32)]

    for w, found in zip(weights, after_each(card, net, [{"w": w} for w in weights], x), strict=True):
        y, z = (x * w, np.sin(x * w)) if sign > 0 else (np.cos(x * w), x * w)
        np.testing.assert_allclose(found["y"], y, atol=1e-5)
        np.testing.assert_allclose(found["z"], z, atol=1e-5)


def test_a_window_is_refitted_in_a_transform_that_is_multiplied_out(card: Card, tmp_path: Path) -> None:
    net = network(tmp_path / "net.onnx", TRANSFORM, {"w": ("F32", (16,))}, width=100)
    x = np.random.default_rng(1).standard_normal((2, 100)).astype(np.float32)
    windows = [np.hanning(16).astype(np.float32), np.hamming(16).astype(np.float32)]

    for w, found in zip(windows, after_each(card, net, [{"w": w} for w in windows], x), strict=True):
        exact = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(x, 16, axis=1)[:, ::5] * w)
        np.testing.assert_allclose(found["y"], np.stack([exact.real, exact.imag], -1), atol=1e-4)


def test_a_quantised_bias_is_refitted(card: Card, tmp_path: Path) -> None:
    net = network(tmp_path / "net.onnx", BIAS, {"q": ("I32", (4,)), "w": ("F32", (4,))})
    x, scale = np.ones((2, 4), np.float32), np.array([0.5, 0.25, 2, 1], np.float32)
    biases = [np.array([1, -2, 3, 40000], np.int32), np.array([-7, 0, 9, 5], np.int32)]
    found = after_each(card, net, [{"q": biases[0], "w": scale}, {"q": biases[1], "w": scale * 2}], x)

    np.testing.assert_allclose(found[0]["y"], x + biases[0] * scale)
    np.testing.assert_allclose(found[1]["y"], x + biases[1] * scale * 2)
