"""Build options that ask for another engine than the default: it is refitted and computes the same."""

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from tests.gpu.card import Card
from tests.gpu.samples import rows, weights_of
from tests.workers.networks import bound, perceptron
from workers.engine_host.backends.tensorrt.capabilities import capabilities, options_schema

OPTIONS = [
    ("version_compatible", True),
    ("hardware_compatibility", "ampere_plus"),
    ("profiling_verbosity", "detailed"),
    ("tactic_sources", []),
    ("workspace_bytes", 64 << 20),
    ("timing_cache", False),
]


@pytest.mark.parametrize(("name", "value"), OPTIONS, ids=[name for name, _ in OPTIONS])
def test_an_engine_built_with_an_option_agrees_built_and_refitted(
    card: Card, tmp_path: Path, name: str, value: object
) -> None:
    schema = options_schema(capabilities(), refit=True).get(name)
    if schema is None or not Draft202012Validator(schema).is_valid(value):
        pytest.skip("this release does not have the option")
    network = perceptron(tmp_path / "net.onnx", width=64)
    first, second = (bound(network, weights_of(network, tmp_path, seed)) for seed in (1, 2))

    _, engine = card.build(network, first, (rows(network),), **{name: value})
    _, child = card.refit(engine, second)
    card.restart()  # so that both come from their plans

    for one in (child, engine):
        found = card.verify(one)
        assert found.ok, found.detail
