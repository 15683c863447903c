"""The first step of a decoder, whose caches are empty, on an engine whose profile has a minimum of 0."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from app.definitions.parameter import InputSpec
from app.definitions.profiles import parse_profiles
from tests.workers.hosting import Hosting
from tests.workers.networks import bound, checkpoint, network_of
from workers.channel.messages import BackendError


def test_a_profile_with_a_minimum_of_0_runs_empty_and_filled(hosting: Hosting, tmp_path: Path) -> None:
    inputs = (
        InputSpec("token", "F32", ("batch", 1, 4)),
        InputSpec("keys", "F32", ("batch", "past", 4)),
        InputSpec("values", "F32", ("batch", "past", 4)),
    )
    nodes = [
        helper.make_node("MatMul", ["token", "w"], ["new"]),
        helper.make_node("Concat", ["keys", "new"], ["k"], axis=1),
        helper.make_node("Concat", ["values", "new"], ["v"], axis=1),
        helper.make_node("Mul", ["k", "v"], ["y"]),
    ]
    network = network_of(tmp_path / "net.onnx", nodes, {"w": ("F32", (4, 4))}, inputs, {"y": "F32"})
    sources = bound(network, checkpoint(tmp_path / "w", {"w": np.eye(4, dtype=np.float32)}))
    profiles = parse_profiles([{"keys": {"min": [1, 0, 4], "opt": [1, 8, 4], "max": [2, 16, 4]}}], inputs)
    _, engine = hosting.build(network, sources, profiles=profiles)
    assert hosting.verify(engine).ok

    token = np.full((1, 1, 4), 3, np.float32)
    for past, rows in ((0, 1), (16, 17)):
        cache = np.ones((1, past, 4), np.float32)
        y = hosting.run(engine, {"token": token, "keys": cache, "values": cache})["y"]
        np.testing.assert_array_equal(y, np.concatenate([cache, token * token], axis=1))
        assert y.shape == (1, rows, 4)
    cache = np.ones((1, 17, 4), np.float32)
    with pytest.raises(BackendError, match="is not between"):
        hosting.run(engine, {"token": token, "keys": cache, "values": cache})
