import itertools

import numpy as np
import pytest

from app.weights.dtypes import DTYPES, is_lossless_cast, is_widening, numpy_dtype

SMALL = [name for name, dtype in DTYPES.items() if dtype.bits <= 16]


@pytest.mark.parametrize("name", DTYPES)
def test_numpy_agrees_on_the_size_of_every_dtype(name: str) -> None:
    assert numpy_dtype(name).itemsize == DTYPES[name].itemsize


@pytest.mark.parametrize(("source", "target"), list(itertools.product(SMALL, DTYPES)))
def test_lossless_is_what_a_round_trip_of_every_value_says(source: str, target: str) -> None:
    bits = np.arange(2 ** DTYPES[source].bits, dtype=f"u{DTYPES[source].itemsize}")
    values = (bits % 2).astype(bool) if source == "BOOL" else bits.view(numpy_dtype(source))
    with np.errstate(all="ignore"):
        exact = values.astype(np.float64)  # float64 holds every 16-bit value
        values, exact = values[np.isfinite(exact)], exact[np.isfinite(exact)]
        arrived = values.astype(numpy_dtype(target)).astype(np.float64)
    assert is_lossless_cast(source, target) == bool(np.array_equal(exact, arrived))


@pytest.mark.parametrize(
    ("source", "target", "lossless"),
    [
        ("F32", "F64", True),
        ("F64", "F32", False),
        ("I32", "F64", True),
        ("I32", "F32", False),
        ("I64", "F64", False),
        ("U32", "I64", True),
        ("I64", "U64", False),
        ("U64", "I64", False),
        ("F32", "I64", False),
    ],
)
def test_wide_dtypes(source: str, target: str, lossless: bool) -> None:  # noqa: FBT001 - a parameter of the table
    assert is_lossless_cast(source, target) is lossless


def test_widening_keeps_the_kind_of_number() -> None:
    assert is_widening("BF16", "F32")
    assert is_widening("F8_E4M3", "F8_E4M3")
    assert not is_widening("F8_E4M3", "F16")
    assert not is_widening("F8_E5M2", "F32")
    assert is_widening("I32", "I64")
    assert is_widening("U8", "I16")
    assert not is_widening("I8", "F32")
    assert not is_widening("BOOL", "U8")
    assert not is_widening("F32", "F16")
