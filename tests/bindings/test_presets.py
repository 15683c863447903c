from typing import Any

import numpy as np
import pytest

from app.bindings.presets import PRESETS
from app.bindings.rules import BindingRuleError, parse_rules
from tests.bindings.checkpoints import Array, Bench

RANDOM = np.random.default_rng(0)


def matrix(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


PARAMETERS = {"h.0.c_attn.weight": matrix(12, 4), "h.0.c_attn.bias": matrix(12), "h.0.ln.weight": matrix(4)}
SAVED: dict[str, dict[str, str]] = {
    "torch-wrappers@1": {name: f"module._orig_mod.{name}" for name in PARAMETERS},
    "peft-base@1": {
        "h.0.c_attn.weight": "base_model.model.h.0.c_attn.base_layer.weight",
        "h.0.c_attn.bias": "base_model.model.h.0.c_attn.base_layer.bias",
        "h.0.ln.weight": "base_model.model.h.0.ln.weight",
    },
    "layernorm-gamma-beta@1": {**{name: name for name in PARAMETERS}, "h.0.ln.weight": "h.0.ln.gamma"},
    "conv1d-linear@1": {name: name for name in PARAMETERS},
    "torch-buffers@1": {name: name for name in PARAMETERS},
}


def saved(preset: str) -> dict[str, Array]:
    """The checkpoint that a preset is for."""
    checkpoint = {SAVED[preset][name]: array for name, array in PARAMETERS.items()}
    if preset == "conv1d-linear@1":
        checkpoint["h.0.c_attn.weight"] = np.ascontiguousarray(checkpoint["h.0.c_attn.weight"].T)
    if preset == "torch-buffers@1":
        checkpoint |= {
            "bn.num_batches_tracked": np.array(3),
            "h.0.attn.bias": matrix(1, 1, 8, 8),
            "position_ids": matrix(2),
        }
    return checkpoint


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_binds_what_its_tool_has_saved(preset: str) -> None:
    bench = Bench(PARAMETERS, saved(preset))
    assert not bench.check().ok
    report = bench.check({"preset": preset})
    assert (report.ok, report.warnings) == (True, ())
    for name, value in bench.bound(report).items():
        np.testing.assert_array_equal(value, PARAMETERS[name])


def test_presets_go_together_and_with_other_rules() -> None:
    checkpoint = {"module.h.0.c_attn.weight": matrix(12, 4), "bias": matrix(12), "h.0.ln.gamma": matrix(4)}
    rules: list[Any] = [{"preset": "layernorm-gamma-beta@1"}, {"parameter": ".*bias", "tensors": ["bias"]}]
    report = Bench(PARAMETERS, checkpoint).check(*rules, {"preset": "torch-wrappers@1"})
    assert (report.ok, report.warnings) == (True, ())


def test_a_preset_that_finds_nothing_is_pointed_at_by_its_place() -> None:
    report = Bench(PARAMETERS, dict(PARAMETERS)).check({"preset": "peft-base@1"}, {"ignore": "none"})
    assert report.ok
    assert [warning.rule for warning in report.warnings] == [0, 1]
    assert "preset" in report.warnings[0].detail


@pytest.mark.parametrize("name", ["peft-base", "peft-base@2", 1, None])
def test_a_preset_there_is_not_is_refused_with_those_there_are(name: object) -> None:
    with pytest.raises(BindingRuleError, match="torch-wrappers@1") as error:
        parse_rules([{"ignore": "x"}, {"preset": name}])
    assert error.value.index == 1


def test_the_rules_of_a_version_stay_as_they_are() -> None:
    """Stored engines and clients name them."""
    assert {name: len(rules) for name, rules in PRESETS.items()} == {
        "torch-wrappers@1": 4,
        "peft-base@1": 2,
        "layernorm-gamma-beta@1": 2,
        "conv1d-linear@1": 1,
        "torch-buffers@1": 4,
    }
