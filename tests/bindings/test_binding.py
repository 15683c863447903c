import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from app.bindings import binding
from app.bindings.binding import bind
from app.bindings.report import BindingReport
from app.bindings.rules import BindingRuleError, parse_rules
from app.bindings.steps import TensorType
from app.bindings.transforms import Cast
from app.definitions.parameter import Parameter
from app.weights.manifest import TensorEntry

TENSORS = {"w": ("F32", (2, 3)), "b": ("F32", (3,))}


def _bind(
    parameters: Mapping[str, tuple[str, tuple[int, ...]]],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    rules: Sequence[Any] = (),
    defaults: Sequence[Any] = (),
) -> BindingReport:
    entries = {
        name: TensorEntry(name, dtype, shape, "0" * 64, "sha256:0", 0, 0) for name, (dtype, shape) in tensors.items()
    }
    wanted = [Parameter(name, shape, dtype) for name, (dtype, shape) in parameters.items()]
    return bind(wanted, entries, parse_rules(rules), parse_rules(defaults))


def _kinds(report: BindingReport) -> list[tuple[str, str | None]]:
    return [(problem.kind, problem.parameter) for problem in report.problems]


def test_without_rules_a_tensor_feeds_the_parameter_of_its_name() -> None:
    report = _bind(TENSORS, TENSORS)
    assert report.ok
    assert [(one.parameter, one.tensors, one.transforms) for one in report.bindings] == [
        ("w", ("w",), ()),
        ("b", ("b",), ()),
    ]


def test_the_first_rule_that_matches_wins() -> None:
    rules = [{"parameter": "w", "tensors": ["x"]}, {"parameter": ".*", "tensors": [r"old.\g<0>"]}]
    report = _bind({"w": ("F32", (1,)), "v": ("F32", (1,))}, {"x": ("F32", (1,)), "old.v": ("F32", (1,))}, rules)
    assert report.ok
    assert [one.tensors for one in report.bindings] == [("x",), ("old.v",)]


def test_a_clients_rules_come_before_the_definitions_own() -> None:
    mine, own = [{"parameter": "w", "tensors": ["mine"]}], [{"parameter": "w", "tensors": ["own"]}, {"ignore": "own"}]
    report = _bind({"w": ("F32", (1,))}, {"mine": ("F32", (1,)), "own": ("F32", (1,))}, mine, own)
    assert report.ok
    assert report.bindings[0].tensors == ("mine",)


@pytest.mark.parametrize("saved", ["w", "old.w"])
def test_a_definitions_own_rules_may_name_alternatives(saved: str) -> None:
    own = [{"parameter": "(.*)", "tensors": [r"\1"]}, {"parameter": "(.*)", "tensors": [r"old.\1"]}]
    report = _bind({"w": ("F32", (1,))}, {saved: ("F32", (1,))}, defaults=own)
    assert report.ok
    assert report.bindings[0].tensors == (saved,)


def test_where_no_alternative_is_there_the_first_is_missing() -> None:
    own = [{"parameter": "w", "tensors": ["first"]}, {"parameter": "w", "tensors": ["second"]}]
    (problem,) = _bind({"w": ("F32", (1,))}, {}, defaults=own).problems
    assert (problem.kind, problem.tensors) == ("missing", ("first",))


def test_a_clients_rule_has_no_alternative() -> None:
    mine, own = [{"parameter": "w", "tensors": ["mine"]}], [{"parameter": "w", "tensors": ["own"]}]
    report = _bind({"w": ("F32", (1,))}, {"own": ("F32", (1,))}, mine, own)
    assert _kinds(report) == [("missing", "w"), ("unexpected", None)]


def test_tied_parameters_read_the_same_tensor() -> None:
    rules = [{"parameter": r"lm_head\.weight", "tensors": ["wte.weight"]}]
    shared = ("F16", (8, 4))
    report = _bind({"wte.weight": shared, "lm_head.weight": shared}, {"wte.weight": shared}, rules)
    assert report.ok
    assert {one.tensors for one in report.bindings} == {("wte.weight",)}


def test_concat_and_split_fit_fused_projections() -> None:
    part = ("F32", (4, 4))
    fuse = [{"parameter": "qkv", "tensors": ["q", "k", "v"], "transforms": [{"op": "concat", "axis": 0}]}]
    assert _bind({"qkv": ("F32", (12, 4))}, {"q": part, "k": part, "v": part}, fuse).ok
    cut = [
        {"parameter": name, "tensors": ["qkv"], "transforms": [{"op": "split", "axis": 0, "sections": 3, "index": i}]}
        for i, name in enumerate("qkv")
    ]
    assert _bind({"q": part, "k": part, "v": part}, {"qkv": ("F32", (12, 4))}, cut).ok


def test_a_widening_cast_is_added_and_recorded() -> None:
    report = _bind({"w": ("F32", (2,)), "i": ("I64", (2,))}, {"w": ("BF16", (2,)), "i": ("I32", (2,))})
    assert report.ok
    assert [one.transforms for one in report.bindings] == [(Cast("F32"),), (Cast("I64"),)]


def test_a_cast_to_the_dtype_there_is_needs_no_memory() -> None:
    cast = [{"op": "cast", "dtype": "F16"}]
    rules = [{"parameter": name, "tensors": [name], "transforms": cast} for name in "vw"]
    report = _bind({"v": ("F16", (2,)), "w": ("F16", (2,))}, {"v": ("F16", (2,)), "w": ("F32", (2,))}, rules)
    assert [one.transforms for one in report.bindings] == [(), (Cast("F16"),)]


def test_a_lossy_cast_is_refused_unless_asked_for() -> None:
    parameter, tensor = {"w": ("F16", (2,))}, {"w": ("F32", (2,))}
    report = _bind(parameter, tensor)
    assert _kinds(report) == [("lossy_cast", "w")]
    assert '{"op": "cast", "dtype": "F16"}' in report.problems[0].detail
    assert report.bindings == ()
    rule = {"parameter": "w", "tensors": ["w"], "transforms": [{"op": "cast", "dtype": "F16"}]}
    assert _bind(parameter, tensor, [rule]).ok


def test_an_integer_is_not_taken_for_a_float_unasked() -> None:
    report = _bind({"w": ("F32", (2,))}, {"w": ("I8", (2,))})
    assert _kinds(report) == [("wrong_dtype", "w")]
    assert "scale" in report.problems[0].detail


@pytest.mark.parametrize("dtype", ["C64", "F8_E8M0", "F4"])
def test_a_foreign_dtype_is_refused_only_where_it_is_used(dtype: str) -> None:
    tensors = {**TENSORS, "spectrum": (dtype, (2, 3))}
    assert _bind(TENSORS, tensors, [{"ignore": "spectrum"}]).ok
    cast = {"op": "cast", "dtype": "F32"}
    report = _bind(TENSORS, tensors, [{"parameter": "w", "tensors": ["spectrum"], "transforms": [cast]}])
    assert _kinds(report) == [("foreign_dtype", "w"), ("unexpected", None)]
    assert f"spectrum is {dtype}" in report.problems[0].detail
    assert "F32" in report.problems[0].detail


def test_every_problem_is_listed_at_once() -> None:
    parameters = dict.fromkeys(("absent", "turned", "narrow", "joined", "both", "fine"), ("F32", (2, 3)))
    tensors = {
        "turned": ("F32", (3, 2)),
        "narrow": ("F64", (2, 3)),
        "both": ("F64", (7,)),
        "part": ("F32", (1, 3)),
        "other": ("F32", (1, 4)),
        "fine": ("F32", (2, 3)),
        "left": ("F32", (1,)),
    }
    rules = [{"parameter": "joined", "tensors": ["part", "other"], "transforms": [{"op": "concat", "axis": 0}]}]
    report = _bind(parameters, tensors, rules)
    assert not report.ok
    assert _kinds(report) == [
        ("missing", "absent"),
        ("wrong_shape", "turned"),
        ("lossy_cast", "narrow"),
        ("bad_transform", "joined"),
        ("wrong_shape", "both"),
        ("lossy_cast", "both"),
        ("unexpected", None),
    ]
    assert [one.parameter for one in report.bindings] == ["fine"]


def test_a_wrong_shape_shows_both_and_the_transform_that_may_help() -> None:
    (turned,) = _bind({"w": ("F32", (2, 3))}, {"w": ("F32", (3, 2))}).problems
    assert (turned.expected, turned.actual) == (TensorType("F32", (2, 3)), TensorType("F32", (3, 2)))
    assert '{"op": "transpose", "perm": [1, 0]}' in turned.detail
    (flat,) = _bind({"w": ("F32", (2, 3))}, {"w": ("F32", (6,))}).problems
    assert '{"op": "reshape", "shape": [2, 3]}' in flat.detail
    (small,) = _bind({"w": ("F32", (2, 3))}, {"w": ("F32", (5,))}).problems
    assert "slice" in small.detail


def test_every_missing_source_of_a_concat_is_named() -> None:
    rules = [{"parameter": "qkv", "tensors": ["q", "k", "v"], "transforms": [{"op": "concat", "axis": 0}]}]
    (problem,) = _bind({"qkv": ("F32", (12,))}, {"q": ("F32", (4,))}, rules).problems
    assert problem.kind == "missing"
    assert "fed by k, v, which" in problem.detail


@pytest.mark.parametrize(
    ("parameter", "tensor", "rule"),
    [
        ("layer.0.weight", "bert.layer.0.weight", {"parameter": "(.+)", "tensors": [r"bert.\1"]}),
        ("bert.layer.0.weight", "layer.0.weight", {"parameter": r"bert\.(.+)", "tensors": [r"\1"]}),
    ],
)
def test_a_missing_prefix_is_answered_with_the_rule_that_works(
    parameter: str, tensor: str, rule: dict[str, Any]
) -> None:
    spec = ("F32", (1,))
    parameters = {parameter: spec, parameter.replace("0", "1"): spec}
    tensors = {tensor: spec, tensor.replace("0", "1"): spec}
    report = _bind(parameters, tensors)
    assert _kinds(report) == [("missing", name) for name in parameters] + [("unexpected", None)] * 2
    assert [proposal.rule for proposal in report.proposed.proposals] == [rule]
    assert all(json.dumps(rule) in problem.detail for problem in report.problems)
    assert _bind(parameters, tensors, [rule]).ok


def test_unexpected_tensors_can_be_ignored() -> None:
    tensors = {**TENSORS, "cls.bias": ("F32", (1,))}
    (problem,) = _bind(TENSORS, tensors).problems
    assert (problem.kind, problem.tensors) == ("unexpected", ("cls.bias",))
    report = _bind(TENSORS, tensors, [{"ignore": r"cls\..*"}])
    assert report.ok
    assert report.ignored == ("cls.bias",)


def test_an_ignore_rule_takes_nothing_from_a_parameter() -> None:
    report = _bind(TENSORS, TENSORS, [{"ignore": ".*"}])
    assert report.ok
    assert report.ignored == ()


def test_a_rule_that_applies_to_nothing_is_a_warning() -> None:
    rules = [{"parameter": "nobody", "tensors": ["x"]}, {"ignore": "nothing"}]
    report = _bind(TENSORS, TENSORS, rules)
    assert report.ok
    assert [unused.rule for unused in report.warnings] == [0, 1]


def test_a_definitions_own_rules_may_go_unused() -> None:
    assert _bind(TENSORS, TENSORS, [], [{"ignore": "nothing"}]).warnings == ()


def test_no_parameters_and_no_tensors_bind() -> None:
    assert _bind({}, {}).ok


def test_matching_stops_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "MATCHING_S", -1.0)
    with pytest.raises(BindingRuleError, match="simpler patterns"):
        _bind(TENSORS, TENSORS)
