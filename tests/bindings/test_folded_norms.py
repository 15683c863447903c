"""Batch normalisations that an exporter folded into convolutions: nothing leads to an engine without them."""

from dataclasses import dataclass

from app.bindings.binding import bind
from app.bindings.report import BindingReport
from app.bindings.rules import parse_rules
from app.definitions.parameter import Parameter

Shapes = dict[str, tuple[int, ...]]

CONVOLUTION: Shapes = {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,)}
NORM: Shapes = {f"bn.{leaf}": (8,) for leaf in ("weight", "bias", "running_mean", "running_var")}


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"


def report(parameters: Shapes, tensors: Shapes, *rules: object) -> BindingReport:
    wanted = [Parameter(name, shape, "F32") for name, shape in parameters.items()]
    return bind(wanted, {name: Tensor(name, shape) for name, shape in tensors.items()}, parse_rules(rules))


def test_tells_of_a_layer_that_was_folded_into_a_convolution_of_the_same_name() -> None:
    made = report(CONVOLUTION, CONVOLUTION | NORM)
    assert not made.ok
    assert {one.tensors[0] for one in made.problems} == set(NORM)
    for one in made.problems:
        assert "batch normalisation bn" in one.detail
        assert '"ignore"' not in one.detail
        assert "fuse_linear_bn_eval" in one.detail  # exporters fold it into a linear layer as well


def test_proposes_nothing_for_a_convolution_that_the_exporter_renamed_as_it_folded() -> None:
    parameters: Shapes = {"onnx::Conv_25": (8, 3, 3, 3), "onnx::Conv_26": (8,)}
    made = report(parameters, {"conv.weight": (8, 3, 3, 3), **NORM})
    assert made.proposed.proposals == ()
    assert [one.parameters for one in made.proposed.unclear] == [("onnx::Conv_25", "onnx::Conv_26")]
    assert "fuse_conv_bn_eval" in made.proposed.unclear[0].detail
    assert "TrainingMode.PRESERVE" in made.proposed.unclear[0].detail


def test_proposes_a_convolution_that_was_folded_before_it_was_saved() -> None:
    parameters: Shapes = {"onnx::Conv_25": (8, 3, 3, 3), "onnx::Conv_26": (8,)}
    made = report(parameters, CONVOLUTION)
    assert {name for one in made.proposed.proposals for name in one.parameters} == set(parameters)


def test_warns_of_a_rule_that_ignores_a_folded_layer() -> None:
    made = report(CONVOLUTION, CONVOLUTION | NORM, {"ignore": r"bn\..*"})
    assert made.ok
    assert [one.rule for one in made.warnings] == [0]
    assert "gives other outputs" in made.warnings[0].detail


def test_takes_a_layer_that_the_definition_has_under_other_names_for_none_that_was_folded() -> None:
    renamed: Shapes = {f"p{number}": (8,) for number in range(4)}
    made = report(CONVOLUTION | renamed, CONVOLUTION | NORM)
    assert not any("batch normalisation" in one.detail for one in made.problems)


def test_says_nothing_of_a_layer_that_the_definition_has() -> None:
    made = report(CONVOLUTION | NORM, CONVOLUTION | NORM)
    assert made.ok
    assert made.warnings == ()
