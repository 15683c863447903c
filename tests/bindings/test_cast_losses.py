from typing import Any

import numpy as np
import pytest

from app.bindings.arithmetic import AddScaled, MergeLora
from app.bindings.cast_losses import PIECE, counting_losses
from app.bindings.transforms import Cast, Each
from app.weights.dtypes import numpy_dtype


@pytest.mark.parametrize(
    ("source", "target", "values", "overflowed", "vanished"),
    [
        ("F32", "F16", [0, 1, 65504, 65519, 65520, -7e4, 1e-8, -1e-8, 6e-8, np.inf, np.nan], 2, 2),
        ("F32", "BF16", [3.4e38, -3.4e38, 1e-45, 1], 2, 1),
        ("F64", "F32", [1e39, 1e-50, 0, np.inf], 1, 1),
        ("F32", "F8_E4M3", [448, 500, 1e-5, np.nan], 1, 1),
        ("F32", "F8_E5M2", [57344, 7e4, 1e-9], 1, 1),
        ("BF16", "F16", [1e5, 1e-9, 1], 1, 1),
        ("I64", "I32", [2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**32, 0], 3, 0),
        ("I32", "F16", [70_000, 1], 1, 0),
        ("F32", "I8", [127.4, 128, -128, -129, 0.5, np.nan, 0], 3, 1),
        ("U8", "I8", [127, 128], 1, 0),
        ("F16", "F32", [65504, 1e-7], 0, 0),
        ("F32", "BOOL", [1e9, 1e-9], 0, 0),
    ],
)
def test_values_that_overflow_or_vanish_are_counted(
    source: str, target: str, values: list[Any], overflowed: int, vanished: int
) -> None:
    array = np.array(values, np.float64 if "F" in source else np.int64).astype(numpy_dtype(source))
    with counting_losses() as losses:
        Cast(target).apply([array])
    assert (losses.overflowed, losses.vanished) == (overflowed, vanished)
    assert bool(losses) == (overflowed + vanished > 0)


def test_all_pieces_of_a_strided_tensor_count_and_casts_within_other_transforms() -> None:
    array = np.zeros((3, PIECE), np.float32).T
    array[[0, PIECE // 2, -1]] = 1e6
    with counting_losses() as losses:
        Each(((Cast("F16"),), ())).apply([array, array])
        Cast("F16").apply([np.array(1e6, np.float32)])
    assert losses.overflowed == 10
    Cast("F16").apply([array])
    assert losses.overflowed == 10


def test_what_adapters_lose_when_they_are_rounded_to_the_weight_counts() -> None:
    weight = np.array([[60000, 1], [0, -60000]], np.float16)
    with counting_losses() as losses:
        (added,) = AddScaled(2.0).apply([weight, np.full((2, 2), 20000, np.float16)])
    assert losses.overflowed == np.count_nonzero(np.isinf(added)) == 1

    down, up = np.array([[1e-4, 3]], np.float16), np.array([[1e-5], [-20000]], np.float16)
    with counting_losses() as losses:
        (merged,) = MergeLora(1.0).apply([np.zeros((2, 2), np.float16), down, up])
    assert merged[0, 0] == 0
    assert losses.vanished == 1
