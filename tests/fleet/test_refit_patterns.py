from collections.abc import Hashable, Sequence

import pytest

from app.bindings.binding import bind
from app.bindings.rules import parse_rules
from app.definitions.parameter import Parameter
from app.engines.refit_reach import beyond, parameter_contents
from app.fleet.refit_patterns import MAX_PATTERNS, RefitPatternError, RefitPatterns
from app.weights.manifest import Manifest, TensorEntry
from tests.engines.workbench import tensor

PARAMETERS = (Parameter("w", (4, 8), "F32"), Parameter("b", (4,), "F32"))
TRANSPOSED = {"parameter": "w", "tensors": ["w"], "transforms": [{"op": "transpose", "perm": [1, 0]}]}
RESHAPED = {"parameter": "w", "tensors": ["w"], "transforms": [{"op": "reshape", "shape": [4, 8]}]}


def contents(*tensors: TensorEntry, rules: Sequence[object] = ()) -> dict[str, Hashable]:
    manifest = Manifest.of(tensors)
    report = bind(PARAMETERS, manifest.tensors, parse_rules(rules))
    assert report.ok, report.problems
    return parameter_contents(report, manifest.tensors)


W, B = tensor("w", (4, 8), "w"), tensor("b", (4,), "b")
NONE = RefitPatterns.parse(["nothing"])


@pytest.mark.parametrize(
    ("pattern", "parameter", "matches"),
    [
        ("encoder.0.weight", "encoder.0.weight", True),
        ("encoder.*", "encoder.0.weight", True),
        ("coder.*", "encoder.0.weight", False),
        ("encoder", "encoder.0.weight", False),
        ("onnx::MatMul_[1]", "onnx::MatMul_[1]", True),  # a name, though as a pattern it matches another one
    ],
)
def test_a_pattern_is_a_name_or_matches_all_of_one(pattern: str, parameter: str, *, matches: bool) -> None:
    assert RefitPatterns.parse(["other", pattern]).match(parameter) is matches


def test_a_pattern_that_matches_no_parameter_is_idle() -> None:
    patterns = RefitPatterns.parse(["w", "[a-c]", "weight", "(w|b).+"])
    assert patterns.idle(["w", "b"]) == ["weight", "(w|b).+"]


def test_only_a_list_has_patterns() -> None:
    assert RefitPatterns.of({}) is None
    assert RefitPatterns.of({"refit": "none"}) is None
    patterns = RefitPatterns.of({"refit": ["w"]})
    assert patterns is not None
    assert patterns.match("w")


@pytest.mark.parametrize(
    ("values", "index"), [(["w", "(b"], 1), ([""], 0), (["w", 7], 1), (["w"] * (MAX_PATTERNS + 1), MAX_PATTERNS)]
)
def test_a_pattern_that_cannot_be_used_is_named(values: list[object], index: int) -> None:
    with pytest.raises(RefitPatternError) as caught:
        RefitPatterns.parse(values)
    assert caught.value.index == index


def test_equal_values_differ_in_nothing_wherever_they_lie() -> None:
    moved = TensorEntry("w", W.dtype, W.shape, W.blake3, "sha256:" + "00" * 32, 64, W.nbytes)
    assert beyond(contents(W, B), contents(moved, B), NONE) == []


def test_other_values_differ() -> None:
    other = contents(tensor("w", (4, 8), "other"), tensor("b", (4,), "other"))
    assert beyond(contents(W, B), other, NONE) == ["b", "w"]
    assert beyond(contents(W, B), other, RefitPatterns.parse(["w"])) == ["b"]


def test_the_same_tensor_through_another_transform_differs() -> None:
    tall = tensor("w", (8, 4), "w")
    reshaped, transposed = (contents(tall, B, rules=[rule]) for rule in (RESHAPED, TRANSPOSED))
    assert beyond(reshaped, transposed, NONE) == ["w"]


def test_a_renamed_tensor_of_the_same_values_does_not_differ() -> None:
    rule = {"parameter": "w", "tensors": ["model.w"]}
    assert beyond(contents(W, B), contents(tensor("model.w", (4, 8), "w"), B, rules=[rule]), NONE) == []
