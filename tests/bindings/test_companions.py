import json
import re
from typing import Any

import numpy as np
import pytest

from app.bindings.companions import companion
from app.bindings.service import TensorOutline
from tests.bindings.checkpoints import Array, Bench

RANDOM = np.random.default_rng(7)
ZEROS = np.zeros((4, 4), np.float32)


def known(name: str, **beside: str) -> tuple[str, str] | None:
    """Role and owner of a tensor, beside others of these dtypes."""
    tensors = {other: TensorOutline(other, dtype, (4, 4)) for other, dtype in beside.items()}
    found = companion(name, {name: TensorOutline(name, "F32", ()), **tensors})
    return None if found is None else (found.role, found.of)


@pytest.mark.parametrize(
    ("name", "beside", "role"),
    [
        ("fc.weight_scale", {"fc.weight": "F8_E4M3"}, "scale"),
        ("fc.weight_scale_inv", {"fc.weight": "F8_E5M2"}, "scale"),
        ("fc.weight_scale_2", {"fc.weight": "U8"}, "scale"),
        ("fc.scale_weight", {"fc.weight": "F8_E4M3"}, "scale"),
        ("fc.SCB", {"fc.weight": "I8"}, "absolute maximum"),
        ("fc.scales", {"fc.qweight": "I32"}, "scale"),
        ("fc.qzeros", {"fc.qweight": "I32"}, "zero point"),
        ("fc.weight_zero_point", {"fc.weight": "I8"}, "zero point"),
        ("fc.g_idx", {"fc.qweight": "I32"}, "quantisation data"),
        ("fc.weight.absmax", {"fc.weight": "U8"}, "absolute maximum"),
        ("fc.weight.quant_state.bitsandbytes__nf4", {"fc.weight": "U8"}, "quantisation data"),
        ("fc.input_scale", {"fc.weight": "F8_E4M3"}, "activation scale"),
        ("w_scale", {"w": "I8"}, "scale"),
        ("fc.weight.descale", {"fc.weight": "F8_E4M3"}, "scale"),
        ("fc.weight.amax", {"fc.weight": "F8_E4M3"}, "absolute maximum"),
        ("fc.weight_codebook", {"fc.weight": "I8"}, "quantisation data"),
    ],
)
def test_what_belongs_to_quantised_numbers_is_known_by_its_name(name: str, beside: dict[str, str], role: str) -> None:
    assert known(name, **beside) == (role, next(iter(beside)))


@pytest.mark.parametrize("name", ["norm.scale", "logit_scale", "w_scale", "conv.zeros", "alpha", "rezero.alpha"])
def test_a_scale_beside_no_quantised_numbers_is_a_tensor_like_any_other(name: str) -> None:
    assert known(name, w="F32", **{"norm.weight": "F32", "conv.weight": "F16"}) is None


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight", "q.lora_A.default.weight",
        "base_model.model.q.lora_magnitude_vector.default.weight", "lora_unet_q.lora_down.weight", "q.lora_up.weight",
        "q.lora_linear_layer.up.weight", "q_lora.down.weight", "q_lora1.up.weight",
        "q.lora_embedding_A", "q.dora_scale", "q.hada_w1_a",
        "q.lokr_w2", "q.diff", "q.diff_b", "q.oft_blocks", "q.vera_lambda_b",
    ],
)  # fmt: skip
def test_the_factors_of_an_adapter_are_known_with_their_module(name: str) -> None:
    assert known(name) == ("adapter", "q")


def test_alpha_is_an_adapters_beside_its_factors_only() -> None:
    assert known("lora_te_q.alpha", **{"lora_te_q.lora_down.weight": "F32"}) == ("adapter", "q")
    assert known("fc.alpha", **{"fc.oft_blocks": "F32"}) == ("adapter", "fc")
    assert known("fc.alpha", **{"fc.hada_w1_a": "F32"}) == ("adapter", "fc")
    assert known("q.alpha") is None


def test_an_adapter_that_is_no_low_rank_one_is_not_said_to_be_merged_as_one() -> None:
    saved = {"fc.weight": ZEROS, "fc.oft_blocks": ZEROS, "fc.alpha": ZEROS[0, 0]}
    details = [problem.detail for problem in Bench({"fc.weight": ZEROS}, saved).check().problems]
    assert len(details) == 2
    assert all("with the tool that has made it" in one and "ignore" not in one for one in details)


@pytest.mark.parametrize(("scale", "numbers"), [("scales.fc", "fc.weight"), ("scale.fc.weight", "fc.weight")])
def test_scales_may_be_kept_apart_under_the_names_of_what_they_scale(scale: str, numbers: str) -> None:
    quantised, scales = RANDOM.integers(-9, 9, (4, 6)).astype(np.int8), np.array([1, 2, 3, 4], np.float32)
    bench = Bench({"fc.weight": np.zeros((4, 6), np.float32)}, {numbers: quantised, scale: scales})

    rules, _, report = bench.pair.propose([], bench.read)

    assert report.ok, report.problems
    assert rules[0]["tensors"] == [numbers, scale]
    np.testing.assert_array_equal(bench.bound(report)["fc.weight"], quantised * scales[:, None])


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("c.weight_g", "c.weight_v"),
        ("c.parametrizations.weight.original0", "c.parametrizations.weight.original1"),
        ("c.weight_mask", "c.weight_orig"),
        ("c.weight_u", "c.weight_orig"),
    ],
)
def test_the_parts_of_a_weight_are_known_beside_each_other(name: str, other: str) -> None:
    assert known(name, **{other: "F32"}) == ("weight part", "c")
    assert known(name) is None


COMPANIONS: dict[str, dict[str, Array]] = {
    "scale": {"w": np.zeros((4, 4), np.int8), "w_scale": np.ones((3,), np.float32)},
    "adapter": {"w": ZEROS, "w.lora_A.weight": ZEROS[:2], "w.lora_B.weight": ZEROS[:, :2]},
    "packed": {"w": ZEROS, "w.qweight": np.zeros((4, 4), np.int32)},
    "part": {"w": ZEROS, "w.weight_g": ZEROS, "w.weight_v": ZEROS},
    "spectral norm": {
        "w.parametrizations.weight.original": ZEROS,
        "w.parametrizations.weight.0._u": ZEROS[0],
        "w.parametrizations.weight.0._v": ZEROS[0],
    },
    "absolute maximum": {"w": np.zeros((4, 4), np.int8), "w.SCB": ZEROS[0]},
    "recurrent part": {"rnn.weight_ih_l0": ZEROS},
}


@pytest.mark.parametrize("kind", COMPANIONS)
def test_no_companion_is_advised_to_be_ignored(kind: str) -> None:
    report = Bench({"w": ZEROS}, COMPANIONS[kind]).check()
    assert not report.ok
    assert all("ignore" not in problem.detail for problem in report.problems)


@pytest.mark.parametrize(
    ("parameter", "shape", "saved"),
    [
        ("fc.weight", (4, 4), {"fc.parametrizations.weight.original": ZEROS}),
        ("fc.weight", (4, 4), {"fc.weight": ZEROS.astype(np.int8), "fc.SCB": ZEROS[0]}),
        ("onnx::LSTM_1", (1, 4, 4), {"lstm.weight_ih_l0": ZEROS, "lstm.weight_hh_l0": ZEROS}),
    ],
)
def test_what_would_compute_something_else_is_not_proposed(
    parameter: str, shape: tuple[int, ...], saved: dict[str, Array]
) -> None:
    bench = Bench({parameter: np.zeros(shape, np.float32)}, saved)
    assert bench.pair.propose([], bench.read)[0] == []
    details = [problem.detail for problem in bench.check().problems]
    assert not any("Add the rule" in detail or '"ignore"' in detail for detail in details)


def test_largest_magnitudes_are_told_from_scales() -> None:
    details = [problem.detail for problem in Bench({"w": ZEROS}, COMPANIONS["absolute maximum"]).check().problems]
    assert "127 times the scale" in details[0]


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_the_rules_that_are_proposed_make_onnxs_weights_of_pytorchs_recurrent_layer(kind: str, gates: int) -> None:
    random, order = np.random.default_rng(0), {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2]}[kind]
    rows = {name: random.standard_normal((gates * 3, width)).astype(np.float32) for name, width in SIZES.items()}
    saved = {f"rnn.{name}_l0": value if value.shape[1] > 1 else value[:, 0] for name, value in rows.items()}
    ours = {name: np.concatenate([np.split(one, gates)[at] for at in order]) for name, one in rows.items()}
    expected = {"W": ours["weight_ih"][None], "R": ours["weight_hh"][None]}
    expected["B"] = np.concatenate([ours["bias_ih"], ours["bias_hh"]])[:, 0][None]
    bench = Bench({name: np.zeros_like(value) for name, value in expected.items()}, saved)
    told = [one.detail for one in bench.check().problems if one.kind == "unexpected"]
    assert all('Add the rule {"parameter"' in detail for detail in told)
    _, proposed, report = bench.pair.propose([], bench.read)
    assert (report.ok, proposed.unclear) == (True, ())
    for name, value in bench.bound(report).items():
        np.testing.assert_array_equal(value, expected[name])


def test_a_layer_that_runs_both_ways_is_told_with_both_directions_whatever_the_problem_is() -> None:
    """Source: the shapes of W, R and B in the ONNX operator LSTM, whose first axis is the directions."""
    random, order = np.random.default_rng(1), [0, 3, 1, 2]
    saved: dict[str, Array] = {}
    parts: dict[str, list[Array]] = {"weight_ih": [], "weight_hh": [], "bias": []}
    for end in ("", "_reverse"):
        rows = {name: random.standard_normal((4 * 3, width)).astype(np.float32) for name, width in SIZES.items()}
        saved |= {f"rnn.{name}_l0{end}": one if one.shape[1] > 1 else one[:, 0] for name, one in rows.items()}
        ours = {name: np.concatenate([np.split(one, 4)[at] for at in order]) for name, one in rows.items()}
        parts["weight_ih"].append(ours["weight_ih"])
        parts["weight_hh"].append(ours["weight_hh"])
        parts["bias"].append(np.concatenate([ours["bias_ih"], ours["bias_hh"]])[:, 0])
    expected = {name: np.stack(both) for name, both in parts.items()}
    feeding = {"weight_ih": ["rnn.weight_ih_l0"], "weight_hh": ["rnn.weight_hh_l0_reverse"], "bias": ["rnn.bias_hh_l0"]}
    guesses = [{"parameter": name, "tensors": tensors} for name, tensors in feeding.items()]
    bench = Bench({name: np.zeros_like(value) for name, value in expected.items()}, saved)

    told = {one.parameter: one.detail for one in bench.check(*guesses).problems if one.kind == "wrong_shape"}

    report = bench.check(*({"parameter": name, **_steps(detail)} for name, detail in told.items()))
    assert report.ok, report.problems
    for name, value in bench.bound(report).items():
        np.testing.assert_array_equal(value, expected[name])


SIZES = {"weight_ih": 4, "weight_hh": 3, "bias_ih": 1, "bias_hh": 1}


def _steps(detail: str) -> dict[str, Any]:
    """Read the tensors and the transforms out of a remedy."""
    tensors, transforms = re.findall(r"(?:with|transforms) (\[.*?\])(?= as|, which)", detail)
    return {"tensors": json.loads(tensors), "transforms": json.loads(transforms)}


def test_a_learnt_tensor_beside_a_weight_is_not_said_to_be_needless() -> None:
    saved: dict[str, Array] = {"fc.weight": ZEROS, "fc.adapter_down": ZEROS, "fc.steps": np.zeros(1, np.int64)}
    learnt, steps = [problem.detail for problem in Bench({"fc.weight": ZEROS}, saved).check().problems]
    assert "kept beside fc.weight" in learnt
    assert "gives other outputs" in learnt
    assert steps.startswith("fc.steps feeds no parameter. If it is not needed, add the rule")


def test_an_adapter_is_to_be_merged_and_the_rule_says_how() -> None:
    report = Bench(
        {"q.weight": ZEROS}, {"q.weight": ZEROS, "q.lora_A.weight": ZEROS[:2], "q.lora_B.weight": ZEROS[:, :2]}
    )
    (down, _) = report.check().problems
    assert '["q.weight", "q.lora_A.weight", "q.lora_B.weight"]' in down.detail
    assert "S = alpha / 2" in down.detail


def test_merging_by_the_rule_that_is_told_gives_the_merged_weight() -> None:
    random = np.random.default_rng(0)
    weight, down, up = (random.integers(-4, 4, shape).astype(np.float32) for shape in ((4, 6), (2, 6), (4, 2)))
    bench = Bench({"q.weight": weight}, {"q.weight": weight, "q.lora_A.weight": down, "q.lora_B.weight": up})
    merge = {"op": "merge_lora", "scale": 16 / 2}
    tensors = ["q.weight", "q.lora_A.weight", "q.lora_B.weight"]
    report = bench.check({"parameter": r"q\.weight", "tensors": tensors, "transforms": [merge]})
    assert (report.ok, report.warnings) == (True, ())
    np.testing.assert_array_equal(bench.bound(report)["q.weight"], weight + 8 * up @ down)


@pytest.mark.parametrize(("kind", "pattern"), [("adapter", r".*lora.*"), ("part", r"w\.weight_.")])
def test_ignoring_a_companion_is_possible_and_warned_of(kind: str, pattern: str) -> None:
    report = Bench({"w": ZEROS}, COMPANIONS[kind]).check({"ignore": pattern})
    assert report.ok
    assert {warning.rule for warning in report.warnings} == {0}
    assert "computes as if there were none" in report.warnings[0].detail


def test_ignoring_a_scale_and_casting_its_numbers_is_possible_and_warned_of() -> None:
    cast = {"parameter": "w", "tensors": ["w"], "transforms": [{"op": "cast", "dtype": "F32"}]}
    report = Bench({"w": ZEROS}, COMPANIONS["scale"]).check({"ignore": "w_scale"}, cast)
    assert report.ok
    assert "the scale of w" in report.warnings[0].detail


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bit_floats_without_a_scale_are_refused_as_integers_are(dtype: str) -> None:
    import ml_dtypes  # noqa: PLC0415

    report = Bench({"w": ZEROS}, {"w": ZEROS.astype(getattr(ml_dtypes, dtype))}).check()
    (problem,) = report.problems
    assert problem.kind == "wrong_dtype"
    assert "want a scale first" in problem.detail


def test_a_constant_of_the_definition_is_not_to_be_ignored() -> None:
    one, other = np.ones((), np.float32), np.zeros((), np.float32)
    bench = Bench({"w": ZEROS}, {"w": ZEROS, "logit_scale": other}, constants={"logit_scale": one})
    (problem,) = bench.check().problems
    assert "constant of the definition" in problem.detail
    assert "ignore" not in problem.detail


def test_a_tensor_that_is_named_as_a_learnt_one_is_not_said_to_be_needless() -> None:
    saved = {"ln1.weight": ZEROS[0], "ln2.weight": ZEROS[0]}
    (problem,) = Bench({"ln1.weight": ZEROS[0]}, saved).check().problems
    assert "parameters that are equal then, as norms are, become one" in problem.detail
    assert "If it is not needed" not in problem.detail


def test_a_tensor_whose_name_is_that_of_a_wrapper_is_told_of() -> None:
    (problem,) = Bench({}, {"module": ZEROS}).check().problems
    assert "If it is not needed" in problem.detail


@pytest.mark.parametrize("beside", ["w.amax", "w.codebook"])
def test_what_is_no_scale_is_not_advised_as_one(beside: str) -> None:
    saved = {"w": np.zeros((4, 4), np.int8), beside: ZEROS[0]}
    details = [one.detail for one in Bench({"w": ZEROS}, saved).check().problems]
    assert len(details) == 2
    assert all(beside in one and "equantise before the upload" in one for one in details)
    assert not any("`dequantize`" in one for one in details)


@pytest.mark.parametrize("kept", ["base_layer.weight", "weight"])
def test_the_rule_that_merges_names_the_weight_that_peft_has_wrapped(kept: str) -> None:
    module = "base_model.model.q."
    saved = {
        f"{module}{kept}": ZEROS, f"{module}lora_A.x.weight": ZEROS[:2], f"{module}lora_B.x.weight": ZEROS[:, :2],
    }  # fmt: skip
    details = [one.detail for one in Bench({"q.weight": ZEROS}, saved).check().problems if "low-rank" in one.detail]
    assert len(details) == 2
    assert all(json.dumps(list(saved)) in one for one in details)


def test_no_rule_is_advised_for_an_adapter_without_the_weight_that_it_adapts() -> None:
    saved = {"p.weight": ZEROS, "q.lora_A.weight": ZEROS[:2], "q.lora_B.weight": ZEROS[:, :2]}
    details = [one.detail for one in Bench({"p.weight": ZEROS}, saved).check().problems]
    assert len(details) == 2
    assert not any("merge_lora" in one for one in details)


def test_no_rule_is_advised_for_an_adapter_that_scales_rows_as_well() -> None:
    bench = Bench(
        {"fc.weight": ZEROS},
        {
            "fc.weight": ZEROS,
            "fc.lora_A.weight": np.zeros((2, 4), np.float32),
            "fc.lora_B.weight": np.zeros((4, 2), np.float32),
            "fc.lora_magnitude_vector": np.zeros(4, np.float32),
        },
    )
    details = [one.detail for one in bench.check().problems]
    assert len(details) == 3
    assert not any("merge_lora" in detail for detail in details)
