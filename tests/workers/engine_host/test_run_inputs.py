import numpy as np
import pytest

from app.definitions.parameter import InputSpec
from workers.channel.messages import BackendError
from workers.engine_host.run_inputs import check_inputs

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
