import json
from typing import Any

import numpy as np

from app.errors import NotFound
from tests.bindings.checkpoints import Array, Bench

RANDOM = np.random.default_rng(3)


def matrix(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


TABLE, TRAINED, WEIGHT = matrix(20, 6), matrix(20, 6), matrix(6, 6)
HEAD = "onnx::MatMul_40"
FIRST = {"emb.weight": TABLE, HEAD: np.ascontiguousarray(TABLE.T), "fc.weight": WEIGHT}


def rule_in(detail: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads(detail[detail.index("{") : detail.rindex("}") + 1])


def test_a_head_that_a_checkpoint_leaves_out_is_proposed_to_be_the_table_transposed() -> None:
    bench = Bench(FIRST, {"emb.weight": TRAINED, "fc.weight": WEIGHT}, embedded=True)
    (problem,) = bench.check().problems
    assert problem.parameter == HEAD
    assert "was emb.weight transposed in the definition's own weights" in problem.detail
    tied = bench.check(rule_in(problem.detail))
    assert (tied.ok, tied.warnings) == (True, ())
    np.testing.assert_array_equal(bench.bound(tied)[HEAD], TRAINED.T)
    assert bench.pair.propose([], bench.read)[0] == [rule_in(problem.detail)]


def test_a_head_that_is_the_table_as_it_lies_is_proposed_to_be_it() -> None:
    first = {"emb.weight": TABLE, "lm_head.weight": TABLE}
    bench = Bench(first, {"emb.weight": TRAINED}, embedded=True)
    (problem,) = bench.check().problems
    tied = bench.check(rule_in(problem.detail))
    np.testing.assert_array_equal(bench.bound(tied)["lm_head.weight"], TRAINED)


def test_the_table_of_a_tied_head_may_have_another_name_itself() -> None:
    bench = Bench(FIRST, {"module.emb.weight": TRAINED, "module.fc.weight": WEIGHT}, embedded=True)
    rules, proposed, report = bench.pair.propose([], bench.read)
    assert report.ok
    assert not proposed.unclear
    assert len(rules) == 2
    np.testing.assert_array_equal(bench.bound(report)[HEAD], TRAINED.T)


def test_a_table_that_is_kept_transposed_is_turned_back_for_the_head() -> None:
    rule = {"parameter": "emb.weight", "tensors": ["table"], "transforms": [{"op": "transpose", "perm": [1, 0]}]}
    kept = {"table": np.ascontiguousarray(TRAINED.T), "fc.weight": WEIGHT}
    bench = Bench(FIRST, kept, embedded=True)
    (problem,) = bench.check(rule).problems
    head = rule_in(problem.detail)
    assert "transforms" not in head
    np.testing.assert_array_equal(bench.bound(bench.check(head, rule))[HEAD], TRAINED.T)


def test_a_head_of_its_own_is_never_proposed_to_be_the_table() -> None:
    first = {**FIRST, HEAD: matrix(6, 20)}
    (problem,) = Bench(first, {"emb.weight": TRAINED, "fc.weight": WEIGHT}, embedded=True).check().problems
    assert "{" not in problem.detail


def test_matrices_of_zeros_are_not_tied() -> None:
    first = {"down": np.zeros((20, 6), np.float32), "up": np.zeros((6, 20), np.float32)}
    (problem,) = Bench(first, {"down": TRAINED}, embedded=True).check().problems
    assert "{" not in problem.detail


def test_a_head_that_is_stale_beside_a_new_table_is_warned_of_whatever_it_was_before() -> None:
    checkpoint = {"emb.weight": TRAINED, HEAD: matrix(6, 20), "fc.weight": WEIGHT}
    bench = Bench(FIRST, checkpoint, embedded=True)
    (warning,) = bench.check().warnings
    assert f"{HEAD} is out of date" in warning.detail
    tied = bench.check(rule_in(warning.detail), {"ignore": ".*"})
    assert tied.warnings == ()
    np.testing.assert_array_equal(bench.bound(tied)[HEAD], TRAINED.T)


def test_a_head_and_a_table_that_follow_each_other_are_not_warned_of() -> None:
    checkpoint = {"emb.weight": TRAINED, HEAD: np.ascontiguousarray(TRAINED.T), "fc.weight": WEIGHT}
    assert Bench(FIRST, checkpoint, embedded=True).check().warnings == ()


def test_a_head_is_looked_at_however_many_layers_look_like_each_other_transposed() -> None:
    layers = {f"{number}.{way}": matrix(*shape) for number in range(20) for way, shape in WAYS.items()}
    first = {**layers, **FIRST}
    bench = Bench(first, {**first, "emb.weight": TRAINED}, embedded=True)
    (warning,) = bench.check().warnings
    assert "emb.weight" in warning.detail


WAYS = {"up": (5, 7), "down": (7, 5)}


def test_values_that_cannot_be_read_are_not_compared() -> None:
    def gone(_digest: str, _offset: int, _length: int) -> bytes:
        raise NotFound("There is no such blob.", code="blob_not_found")

    bench = Bench(FIRST, {**FIRST, "emb.weight": TRAINED}, embedded=True)
    assert bench.pair.check([], gone).warnings == ()
    assert bench.pair.check([], lambda *_: b"").warnings == ()
