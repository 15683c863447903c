"""Each way of verifying an engine, on a real GPU."""

from pathlib import Path

import numpy as np

from tests.gpu.card import Card
from tests.gpu.samples import rows, weights_of
from tests.workers.networks import bound, checkpoint, perceptron
from workers.channel.messages import OutputDifference, Verified


def assert_agrees(found: Verified | None) -> None:
    """Two engines were compared, and all figures lie within the tolerance."""
    assert found is not None
    assert found.ok, found.detail
    assert found.against == "rebuild"
    (output,) = found.outputs.values()
    assert output.finite
    assert output.max_abs is not None
    assert output.relative_l2 is not None
    assert output.relative_l2 <= found.tolerance["relative_l2"]
    assert output.cosine is not None
    assert output.cosine >= found.tolerance["cosine"]


def test_an_engine_and_what_a_refit_made_of_it_agree_with_engines_built_afresh(card: Card, tmp_path: Path) -> None:
    network = perceptron(tmp_path / "net.onnx", width=64)
    first, second = (bound(network, weights_of(network, tmp_path, seed)) for seed in (1, 2))
    _, engine = card.build(network, first, (rows(network),))

    refitted, child = card.refit(engine, second, against="rebuild")

    assert_agrees(refitted.verification)
    for one in (engine, child):
        assert_agrees(card.verify(one, "rebuild"))


def test_without_a_comparison_only_numbers_are_looked_for(card: Card, tmp_path: Path) -> None:
    network = perceptron(tmp_path / "net.onnx", width=64)
    first = weights_of(network, tmp_path, 1)
    _, engine = card.build(network, bound(network, first), (rows(network),))
    overflowing = {
        "0.weight": network.weights(1)["0.weight"] * np.float32(1e30),
        "1.weight": np.full((64, 64), 1e30, np.float32),
    }
    sources = bound(network, first | checkpoint(tmp_path / "overflowing.safetensors", overflowing))

    refitted, child = card.refit(engine, sources, against="finite")

    found = refitted.verification
    assert found is not None
    assert (found.ok, found.detail) == (False, "output y holds NaN or infinity")
    unseen, built = card.verify(child, "none"), card.verify(engine, "finite")
    assert (unseen.ok, unseen.outputs) == (True, {})
    assert (built.ok, built.outputs) == (True, {"y": OutputDifference(None, None, None, finite=True)})
