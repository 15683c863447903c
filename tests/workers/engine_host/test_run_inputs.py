import numpy as np
import pytest

from app.definitions.parameter import InputSpec
from workers.channel.messages import BackendError
from workers.engine_host.run_inputs import check_inputs, fixed_inputs

INDEX = InputSpec("i", "I64", ("n",), high=5, low=-5)
TOKENS = InputSpec("ids", "I64", ("n",), high=5)


def test_negative_indices_need_a_definition_and_a_backend_that_have_them() -> None:
    last = np.array([-1])
    check_inputs({"i": last}, [INDEX], ())
    for name, spec, negative_indices in (("i", INDEX, False), ("ids", TOKENS, True)):
        with pytest.raises(BackendError, match=rf"{name} holds -1; its values must lie in \[0, 5\)"):
            check_inputs({name: last}, [spec], (), negative_indices=negative_indices)


def test_an_input_of_an_earlier_release_takes_no_negative_index() -> None:
    stored = {"name": "i", "dtype": "I64", "shape": ["n"], "high": 5}
    assert InputSpec.from_json(stored) == InputSpec("i", "I64", ("n",), high=5, low=0)


@pytest.mark.parametrize(("count", "high"), [(32, 30_522), (32, 40), (64, 7), (1, 9), (0, 9)])
def test_made_up_indices_leave_no_large_part_of_a_table_out(count: int, high: int) -> None:
    spec = InputSpec("ids", "I64", (2, count // 2) if count > 1 else (count,), high=high)
    ids = fixed_inputs([spec], ())["ids"]
    assert ((ids >= 0) & (ids < high)).all()
    if count > 1:
        rows = np.sort(ids.ravel())
        assert (rows[0], rows[-1]) == (0, high - 1)
        assert np.diff(rows).max() <= max(1, 2 * high / count)
        assert (ids.ravel() != rows).any()


def test_made_up_floats_differ_in_size() -> None:
    spec = InputSpec("x", "F32", (1000,))
    made = {values: fixed_inputs([spec], (), values=values)["x"] for values in ("normal", "small", "unit", "positive")}
    assert np.abs(made["small"]).max() < 0.6 < np.abs(made["normal"]).max()
    assert (made["unit"] >= 0).all()
    assert made["unit"].max() < 1 < made["positive"].max()
