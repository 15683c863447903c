import json
from typing import Any

import numpy as np

from tests.bindings.checkpoints import Array, Bench

RANDOM = np.random.default_rng(0)
HEAD = {"ignore": r"lm_head\.weight", "equal_to": "wte.weight"}


def matrix(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def rule_in(detail: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads(detail[detail.index("{") : detail.rindex("}") + 1])


TABLE, OTHER = matrix(9, 4), matrix(9, 4)


def test_a_tie_that_an_upload_breaks_is_warned_of_with_the_rule_that_keeps_it() -> None:
    bench = Bench({"wte": TABLE, "head": TABLE}, {"wte": OTHER, "head": TABLE}, embedded=True)
    report = bench.check()
    assert report.ok
    (warning,) = report.warnings
    assert "head is out of date" in warning.detail
    tied = bench.check(rule_in(warning.detail), {"ignore": "head"})
    assert (tied.ok, tied.warnings) == (True, ())
    np.testing.assert_array_equal(bench.bound(tied)["head"], OTHER)


def test_the_one_that_has_changed_is_taken_for_up_to_date() -> None:
    (warning,) = Bench({"wte": TABLE, "head": TABLE}, {"wte": TABLE, "head": OTHER}, embedded=True).check().warnings
    assert rule_in(warning.detail) == {"parameter": "wte", "tensors": ["head"], "transforms": []}


def test_a_tie_that_holds_is_not_warned_of() -> None:
    assert not Bench({"wte": TABLE, "head": TABLE}, {"wte": OTHER, "head": OTHER}, embedded=True).check().warnings


def test_matrices_without_a_value_of_their_own_are_equal_by_chance() -> None:
    zeros, ones = np.zeros((4, 4), np.float32), np.ones((3, 2), np.float32)
    first = {"a": zeros, "b": zeros, "c": ones, "d": ones, "e": matrix(4), "f": matrix(4)}
    trained = {name: matrix(*array.shape) for name, array in first.items()}
    assert not Bench(first, trained, embedded=True).check().warnings


def test_a_matrix_that_was_another_one_transposed_is_warned_of_if_one_alone_changes() -> None:
    first = {"wte": TABLE, "onnx::MatMul_7": np.ascontiguousarray(TABLE.T), "up": matrix(9, 4), "down": matrix(4, 9)}
    changed = {**first, "wte": OTHER, "up": matrix(9, 4)}
    bench = Bench(first, changed, embedded=True)
    (warning,) = bench.check().warnings
    assert "each other transposed" in warning.detail
    tied = bench.check(rule_in(warning.detail), {"ignore": ".*"})
    assert tied.warnings == ()
    np.testing.assert_array_equal(bench.bound(tied)["onnx::MatMul_7"], OTHER.T)


def test_a_head_that_is_ignored_for_the_table_is_warned_of_if_it_is_another() -> None:
    untied = Bench({"wte.weight": TABLE}, {"wte.weight": TABLE, "lm_head.weight": OTHER}, defaults=[HEAD]).check()
    assert untied.ok
    (warning,) = untied.warnings
    assert warning.rule == -1
    assert '"tie_word_embeddings": false' in warning.detail


def test_a_head_that_is_the_table_is_ignored_without_a_word() -> None:
    report = Bench({"wte.weight": TABLE}, {"wte.weight": TABLE, "lm_head.weight": TABLE}, defaults=[HEAD]).check()
    assert (report.ok, report.ignored, report.warnings) == (True, ("lm_head.weight",), ())


def test_a_client_may_say_what_an_ignored_tensor_is_equal_to() -> None:
    bench = Bench({"wte.weight": TABLE}, {"wte.weight": TABLE, "lm_head.weight": OTHER})
    assert [warning.rule for warning in bench.check(HEAD).warnings] == [0]


def test_the_warning_is_in_every_report_that_values_are_known_for() -> None:
    bench = Bench({"wte": TABLE, "head": TABLE}, {"wte": OTHER, "head": TABLE}, embedded=True)
    assert bench.pair.bind([]).warnings == bench.check().warnings


def test_layers_that_were_copied_from_one_another_are_told_apart_by_equal_values() -> None:
    first = matrix(32, 96)
    layers = [first, first + 0.1 * matrix(32, 96)]
    embedded = {f"onnx::MatMul_{number}": layer for number, layer in enumerate(layers)}
    state = {f"layers.{number}.in_proj": np.ascontiguousarray(layer.T) for number, layer in enumerate(layers)}
    bench = Bench(embedded, state, embedded=True)
    rules, proposed, report = bench.pair.propose([], bench.read)
    assert report.ok, proposed.unclear
    assert [(rule["parameter"], rule["tensors"]) for rule in rules] == [
        ("onnx::MatMul_0", ["layers.0.in_proj"]),
        ("onnx::MatMul_1", ["layers.1.in_proj"]),
    ]
    trained = {name: array + 0.01 * matrix(96, 32) for name, array in state.items()}
    bench = Bench(embedded, trained, embedded=True)
    assert not bench.pair.propose([], bench.read)[2].ok
