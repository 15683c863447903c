import pytest

from app.sweeps.ranking import Measured, best_of, error_of, ranks

ENGINES = [Measured(3.0, 1e-6), Measured(1.0, 5e-2), Measured(None, None), Measured(2.0, None), Measured(2.5, 1e-3)]


def test_the_fastest_has_rank_one_and_what_was_not_measured_has_none() -> None:
    assert ranks(ENGINES) == [5 - 1, 1, None, 2, 3]


@pytest.mark.parametrize(("tolerance", "best"), [(None, 1), (0.1, 1), (1e-2, 4), (1e-3, 4), (1e-4, 0), (0.0, None)])
def test_the_best_is_the_fastest_within_the_tolerance(tolerance: float | None, best: int | None) -> None:
    assert best_of(ENGINES, tolerance) == best


def test_the_error_is_that_of_the_worst_output_and_unknown_if_one_is() -> None:
    assert error_of({"outputs": {"a": {"relative_l2": 1e-6}, "b": {"relative_l2": 1e-3}}}) == 1e-3
    assert error_of({"outputs": {"a": {"relative_l2": 1e-6}, "b": {"relative_l2": None}}}) is None
    assert error_of({"ok": None, "against": "none"}) is None
