from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bindings import rules
from app.bindings.binding import bind
from app.bindings.rules import BindingRuleError, FeedRule, IgnoreRule, Pattern, parse_pattern, parse_rules
from app.bindings.service import TensorOutline
from app.bindings.transforms import Transpose
from app.definitions.parameter import Parameter


def _expanded(pattern: str, template: str, name: str) -> str:
    (rule,) = parse_rules([{"parameter": pattern, "tensors": [template]}])
    assert isinstance(rule, FeedRule)
    groups = rule.parameter.match(name)
    assert groups is not None
    return rule.tensors[0].expand(groups)


def test_reads_both_kinds_of_rule() -> None:
    transforms = [{"op": "transpose", "perm": [1, 0]}]
    feed, ignore = parse_rules(
        [{"parameter": "a", "tensors": ["b", "c"], "transforms": transforms}, {"ignore": r"cls\..*"}]
    )
    assert isinstance(feed, FeedRule)
    assert feed.transforms == (Transpose((1, 0)),)
    assert isinstance(ignore, IgnoreRule)
    assert ignore.tensors.match("cls.bias")


@pytest.mark.parametrize(
    ("pattern", "template", "expected"),
    [
        (r"layer\.(\d+)\.(.*)", r"h.\1.\2", "h.3.weight"),
        (r"layer\.(?P<number>\d+)\.(?P<rest>.*)", r"h.\g<number>.\g<rest>", "h.3.weight"),
        (r"(.*)", r"model.\g<1>", "model.layer.3.weight"),
        (r".*", r"\g<0>", "layer.3.weight"),
        (r".*", r"a\\1", r"a\1"),
        (r".*", "plain.name", "plain.name"),
        (r"(x)?layer\.(.*)", r"\1\2", "3.weight"),
    ],
)
def test_templates_put_the_groups_in(pattern: str, template: str, expected: str) -> None:
    assert _expanded(pattern, template, "layer.3.weight") == expected


def test_a_pattern_matches_whole_names_only() -> None:
    pattern = Pattern("weight")
    assert pattern.match("weight")
    assert pattern.match("weights") is None
    assert pattern.match("a.weight") is None


def test_names_need_not_be_ascii() -> None:
    assert _expanded(r"(.)\.(.*)", r"\2.\1", "é.вес") == "вес.é"


def test_a_pattern_that_would_hang_a_backtracking_engine_is_matched_at_once() -> None:
    assert Pattern("(a+)+(a+)+(a+)+b").match("a" * 500) is None


@given(st.text(max_size=40))
def test_any_text_is_a_rule_or_a_rule_error(text: str) -> None:
    for value in ({"ignore": text}, {"parameter": text, "tensors": [text]}):
        with suppress(BindingRuleError):
            assert len(parse_rules([value])) == 1


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (1, "a rule is"),
        ({}, "a rule is"),
        ({"parameter": "a"}, "a rule is"),
        ({"parameter": "a", "tensors": ["b"], "transfroms": []}, "a rule is"),
        ({"ignore": "a", "parameter": "b"}, "a rule is"),
        ({"ignore": 1}, "printable characters"),
        ({"ignore": ""}, "printable characters"),
        ({"ignore": "a" * 513}, "1 to 512"),
        ({"ignore": "\ud800"}, "printable characters"),
        ({"ignore": "(a"}, "not a regular expression of RE2: missing"),
        ({"ignore": "(?=a)"}, "not a regular expression of RE2"),
        ({"ignore": r"((a{30}){30}){30}"}, "not a regular expression of RE2"),
        ({"parameter": "a", "tensors": []}, "1 to 128 templates"),
        ({"parameter": "a", "tensors": "b"}, "1 to 128 templates"),
        ({"parameter": "a", "tensors": [1]}, "printable characters"),
        ({"parameter": "(a)", "tensors": [r"\2"]}, "no group of the pattern"),
        ({"parameter": "(a)", "tensors": [r"\g<layer>"]}, "no group of the pattern"),
        ({"parameter": "(a)", "tensors": [r"\d"]}, "no group of the pattern"),
        ({"parameter": "a", "tensors": ["b"], "transforms": {}}, "at most 32 transforms"),
        ({"parameter": "a", "tensors": ["b"], "transforms": [{"op": "cast"}]}, "cast takes dtype"),
    ],
)
def test_a_wrong_rule_is_named_with_what_it_should_be(value: Any, match: str) -> None:  # noqa: ANN401 - JSON of any kind
    with pytest.raises(BindingRuleError, match=match) as error:
        parse_rules([{"ignore": "fine"}, value])
    assert error.value.index == 1


def test_there_may_be_only_so_many_rules() -> None:
    with pytest.raises(BindingRuleError, match="at most 4096"):
        parse_rules([{"ignore": "a"}] * (rules.MAX_RULES + 1))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("fc", "fc"),
        (r"a\.b", "a.b"),
        (r"onnx::MatMul_1", "onnx::MatMul_1"),
        (r"a\\b", r"a\b"),
        (r"\[x\]", "[x]"),
        ("a.b", None),
        ("(a)", None),
        (r"\d", None),
        ("a|b", None),
        ("a{2}", None),
    ],
)
def test_a_pattern_that_is_a_name_is_known_to_be_one(text: str, name: str | None) -> None:
    pattern = parse_pattern(text)
    assert pattern.literal == name
    assert name is None or pattern.match(name) == (name,)


def test_rules_for_one_name_and_for_many_apply_in_their_order() -> None:
    rules = parse_rules([{"parameter": "a.*", "tensors": ["x"]}, {"parameter": "ab", "tensors": ["y"]}])
    tensors = {name: TensorOutline(name, "F32", (1,)) for name in "xy"}
    report = bind([Parameter("ab", (1,), "F32")], tensors, rules)
    assert report.bindings[0].tensors == ("x",)
    assert bind([Parameter("ab", (1,), "F32")], tensors, rules[::-1]).bindings[0].tensors == ("y",)
