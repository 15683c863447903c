import json

import numpy as np

from tests.bindings.checkpoints import Bench

WEIGHT = np.ones((2, 3), np.float32)
TABLE, OTHER = np.arange(6), np.arange(1, 7)


def test_an_integer_table_that_the_definition_has_of_other_values_is_never_to_be_ignored() -> None:
    bench = Bench({"w": WEIGHT}, {"w": WEIGHT, "relative_index": OTHER}, constants={"relative_index": TABLE})
    (problem,) = bench.check().problems
    assert "export the model so that it is a parameter" in problem.detail
    assert "ignore" not in problem.detail


def test_a_constant_of_the_very_values_may_be_ignored_until_they_differ() -> None:
    constants = {"relative_index": TABLE}
    same = Bench({"w": WEIGHT}, {"w": WEIGHT, "relative_index": TABLE}, constants=constants)
    (problem,) = same.check().problems
    rule = json.loads(problem.detail[problem.detail.index("{") : problem.detail.rindex("}") + 1])
    assert same.check(rule).ok
    assert same.check(rule).warnings == ()

    other = Bench({"w": WEIGHT}, {"w": WEIGHT, "relative_index": OTHER}, constants=constants).check(rule)
    assert other.ok
    (warning,) = other.warnings
    assert "relative_index is ignored, and the definition has constants" in warning.detail
