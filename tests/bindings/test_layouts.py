import json
from typing import Any

import numpy as np

from tests.bindings.checkpoints import Array, Bench

RANDOM = np.random.default_rng(5)
TURN = {"op": "transpose", "perm": [1, 0]}


def matrix(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


FIRST = {f"layer.{number}.weight": matrix(16, 16) for number in range(3)}


def trained(array: Array) -> Array:
    return array + 0.1 * matrix(*array.shape)


def turned(arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: np.ascontiguousarray(trained(array).T) for name, array in arrays.items()}


def rule_in(detail: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads(detail[detail.index("{") : detail.rindex("}") + 1])


def test_square_matrices_that_are_kept_transposed_are_warned_of_by_their_values() -> None:
    bench = Bench(FIRST, turned(FIRST), embedded=True)
    report = bench.check()
    assert report.ok
    (warning,) = report.warnings
    assert all(name in warning.detail for name in FIRST)
    assert rule_in(warning.detail) == {
        "parameter": r"layer\.0\.weight",
        "tensors": ["layer.0.weight"],
        "transforms": [TURN],
    }
    rules, _, proposed = bench.pair.propose([], bench.read)
    assert (proposed.ok, proposed.warnings) == (True, ())
    assert len(rules) == 1
    for name, array in bench.bound(proposed).items():
        assert np.corrcoef(array.ravel(), FIRST[name].ravel())[0, 1] > 0.9


def test_a_rule_that_turns_a_square_matrix_the_wrong_way_is_warned_of_as_well() -> None:
    rule = {"parameter": "(.+)", "tensors": [r"\1"], "transforms": [TURN]}
    upright = {name: trained(array) for name, array in FIRST.items()}
    (warning,) = Bench(FIRST, upright, embedded=True).check(rule).warnings
    assert rule_in(warning.detail)["transforms"] == []


def test_square_matrices_that_lie_as_they_did_are_not_warned_of() -> None:
    upright = {name: trained(array) for name, array in FIRST.items()}
    assert Bench(FIRST, upright, embedded=True).check().warnings == ()
    assert Bench(FIRST, FIRST, embedded=True).check().warnings == ()


def test_what_was_trained_from_something_else_tells_nothing() -> None:
    other = {name: matrix(16, 16) for name in FIRST}
    assert Bench(FIRST, other, embedded=True).check().warnings == ()
