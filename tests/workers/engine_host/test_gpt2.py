import json
from pathlib import Path

import numpy as np
import pytest

from tests.workers.hosting import Hosting, direct
from tests.workers.networks import Network, bound, checkpoint, from_config
from workers.engine_host.run_inputs import fixed_inputs

CONFIG = {"model_type": "gpt2", "vocab_size": 97, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}


@pytest.fixture
def network(tmp_path: Path) -> Network:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return from_config(tmp_path, tmp_path / "definition.onnx")


def test_an_engine_and_its_refit_compute_the_definition(hosting: Hosting, network: Network, tmp_path: Path) -> None:
    a = network.weights(1)
    b = a | {"wte.weight": network.weights(2)["wte.weight"]}
    built, engine = hosting.build(network, bound(network, checkpoint(tmp_path / "a.safetensors", a)))

    refitted, child = hosting.refit(network, engine, bound(network, checkpoint(tmp_path / "b.safetensors", b)))

    assert built.facts["optimization"] == "extended"
    assert refitted.changed == 1
    inputs = fixed_inputs(network.inputs, ())
    for one, weights in ((engine, a), (child, b)):
        outputs = hosting.run(one, inputs)
        expected = direct(network, weights, inputs)
        np.testing.assert_allclose(outputs["logits"], expected["logits"], rtol=1e-3, atol=1e-4)
        assert hosting.verify(one).ok
