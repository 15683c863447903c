"""A refit with a refitter that notes what it is told, and answers as a test wants."""

import ctypes
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from app.weights.dtypes import numpy_dtype
from tests.workers.tensorrt.releases import release_8, release_10
from workers.backends.base import BackendError, LogLine
from workers.backends.tensorrt import refitting
from workers.backends.tensorrt.capabilities import capabilities
from workers.backends.tensorrt.library import trt
from workers.backends.tensorrt.log import Log
from workers.backends.tensorrt.refitting import Expected, check_weight, refit, refittable_weights
from workers.tensors import Array

F16 = Expected(np.dtype(np.float16), (4, 6))
CAN = capabilities(release_10())
ENGINE: Any = SimpleNamespace(refittable=True)  # in place of a `trt.ICudaEngine`


@dataclass
class Refitter:
    """In place of `trt.Refitter`."""

    names: tuple[str, ...] = ("a", "b", "c")
    refuses: tuple[str, ...] = ()
    combined: dict[str, tuple[str, ...]] = field(default_factory=dict)  # what a weight cannot be set without
    succeeds: bool = True
    at_refit: Callable[[], None] = lambda: None
    max_threads: int = 1
    given: dict[str, Any] = field(default_factory=dict)
    refits: int = 0

    def set_named_weights(self, name: str, weights: Any) -> bool:  # noqa: ANN401 - trt.Weights
        if name in self.refuses or name not in self.names:
            return False
        self.given[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        needed = {other for name in self.given for other in self.combined.get(name, ())}
        return sorted(needed - self.given.keys())

    def get_all_weights(self) -> list[str]:
        return list(self.names)

    def refit_cuda_engine(self) -> bool:
        self.at_refit()
        self.refits += 1
        return self.succeeds


@pytest.fixture
def refitter(monkeypatch: pytest.MonkeyPatch) -> Refitter:
    refitter = Refitter()
    names = SimpleNamespace(
        Refitter=lambda _engine, _log: refitter, Weights=trt.Weights, bfloat16=trt.bfloat16, fp8=trt.fp8
    )
    monkeypatch.setattr(refitting, "trt", names)
    return refitter


def put(weights: Sequence[tuple[str, Array, Expected]], log: Log | None = None) -> int:
    return refit(ENGINE, weights, CAN, log or Log())


def exactly(array: Array) -> Expected:
    return Expected(array.dtype, array.shape)


def numbers(*shape: int, dtype: str = "F16") -> Array:
    return np.arange(np.prod(shape)).reshape(shape).astype(numpy_dtype(dtype))


MISFITS = {
    "transposed, same bytes": (np.asfortranarray(numbers(4, 6)), "not contiguous in row-major order"),
    "transposed, other shape": (numbers(6, 4), r"has shape \[6, 4\], not \[4, 6\]"),
    "a view with gaps": (numbers(4, 12)[:, ::2], "not contiguous"),
    "an element too few": (numbers(23), r"has shape \[23\].*has 46 bytes, not 48"),
    "flat": (numbers(24), r"has shape \[24\]"),
    "twice as wide": (numbers(4, 6, dtype="F32"), "is float32, not float16.*has 96 bytes, not 48"),
    "as wide, other type": (numbers(4, 6, dtype="BF16"), "is bfloat16, not float16"),
    "empty": (np.empty((0, 6), np.float16), "has 0 bytes"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_weight_that_does_not_fit_is_refused_before_tensorrt_sees_it(refitter: Refitter, misfit: str) -> None:
    array, fault = MISFITS[misfit]
    with pytest.raises(BackendError, match=fault) as error:
        put([("a", array, F16)])
    assert error.value.code == "wrong_weights"
    assert "Check the binding" in error.value.detail
    assert (refitter.given, refitter.refits) == ({}, 0)


def test_a_weight_that_fits_passes() -> None:
    check_weight("a", numbers(4, 6), F16)
    check_weight("scalar", np.array(3.0, np.float32), Expected(np.dtype(np.float32), ()))
    check_weight("none", np.empty((0, 6), np.float16), Expected(np.dtype(np.float16), (0, 6)))


def test_a_misfit_late_in_a_refit_keeps_the_engine_from_being_refitted(refitter: Refitter) -> None:
    with pytest.raises(BackendError, match="The weight b"):
        put([("a", numbers(4, 6), F16), ("b", numbers(6, 4), F16)])
    assert (set(refitter.given), refitter.refits) == ({"a"}, 0)


def test_every_weight_is_given_by_its_name_and_counted(refitter: Refitter) -> None:
    a, b = numbers(4, 6), numbers(3, dtype="F32")
    assert put([("a", a, exactly(a)), ("b", b, exactly(b))]) == 2
    np.testing.assert_array_equal(refitter.given["a"].numpy(), a.reshape(-1))
    np.testing.assert_array_equal(refitter.given["b"].numpy(), b)
    assert refitter.given["a"].dtype == trt.float16
    assert refitter.refits == 1


@pytest.mark.parametrize("release", [release_8, release_10])
def test_a_refit_has_the_threads_that_the_release_can_have(
    refitter: Refitter, release: Callable[[], SimpleNamespace]
) -> None:
    can = capabilities(release())
    refit(ENGINE, [("a", numbers(4, 6), F16)], can, Log())
    assert refitter.max_threads == can.refit_threads


@pytest.mark.parametrize(
    ("dtype", "name"), [(ml_dtypes.bfloat16, "BF16"), (ml_dtypes.float8_e4m3fn, "FP8")], ids=["bf16", "fp8"]
)
def test_types_that_numpy_has_not_are_passed_by_address(refitter: Refitter, dtype: type, name: str) -> None:
    array: Array = np.array([[1, -2, 0.5], [3, 4, -8]]).astype(dtype)

    def read() -> None:
        assert ctypes.string_at(array.ctypes.data, array.nbytes) == array.tobytes()
        weights = refitter.given["a"]
        assert (weights.dtype.name, weights.size, weights.nbytes) == (name, array.size, array.nbytes)

    refitter.at_refit = read
    assert put([("a", array, exactly(array))]) == 1


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_buffers_live_until_the_refit_is_done_and_no_longer(refitter: Refitter, dtype: str) -> None:
    born: list[weakref.ref[Array]] = []
    alive: list[bool] = []

    def made_one_by_one() -> Iterator[tuple[str, Array, Expected]]:
        for name in refitter.names:
            array = numbers(4, 6, dtype=dtype)
            born.append(weakref.ref(array))
            yield name, array, exactly(array)

    def look() -> None:
        gc.collect()
        alive.extend(one() is not None for one in born)

    refitter.at_refit = look
    refit(ENGINE, made_one_by_one(), CAN, Log())
    refitter.given.clear()
    gc.collect()

    assert alive == [True, True, True]
    assert [one() for one in born] == [None, None, None]


def test_a_name_the_engine_does_not_have_is_told_with_the_remedy(refitter: Refitter) -> None:
    with pytest.raises(BackendError, match=r"no weight nobody that could be replaced \(it has 3\)") as error:
        put([("nobody", numbers(4, 6), F16)])
    assert error.value.code == "not_refittable"
    assert "Build an engine for these weights" in error.value.detail
    assert refitter.refits == 0


def test_a_known_weight_that_is_refused_is_told_in_tensorrts_words(refitter: Refitter) -> None:
    refitter.refuses = ("b",)
    log = Log()
    log.log(trt.ILogger.Severity.ERROR, "count mismatch")
    with pytest.raises(BackendError, match="refused the weight b: count mismatch") as error:
        put([("b", numbers(4, 6), F16)], log)
    assert error.value.code == "not_refittable"
    assert refitter.refits == 0


def test_weights_that_are_combined_with_a_changed_one_are_given_too(refitter: Refitter) -> None:
    refitter.combined = {"a": ("b",)}
    a, b = numbers(4, 6), numbers(3)
    asked: list[Sequence[str]] = []

    def others(names: Sequence[str]) -> list[tuple[str, Array, Expected]]:
        asked.append(names)
        return [("b", b, exactly(b))]

    assert refit(ENGINE, [("a", a, F16)], CAN, Log(), others) == 2
    assert (asked, set(refitter.given), refitter.refits) == ([["b"]], {"a", "b"}, 1)


def test_a_weight_that_stays_missing_though_it_was_given_stops_the_refit(
    refitter: Refitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refitter, "get_missing_weights", lambda: ["a"])
    a = numbers(4, 6)
    with pytest.raises(BackendError, match="wants more weights than were given: a"):
        refit(ENGINE, [("a", a, F16)], CAN, Log(), lambda _names: [("a", a, F16)])


def test_weights_that_are_still_missing_stop_the_refit(refitter: Refitter) -> None:
    refitter.combined = {"a": ("b", "(Unnamed Layer* 3)")}
    with pytest.raises(BackendError, match=r"wants more weights than were given: \(Unnamed Layer\* 3\), b") as error:
        put([("a", numbers(4, 6), F16)])
    assert error.value.code == "refit_failed"
    assert "Build an engine for these weights" in error.value.detail
    assert refitter.refits == 0


def test_a_refit_that_fails_is_never_taken_for_done(refitter: Refitter) -> None:
    refitter.succeeds = False
    with pytest.raises(BackendError, match="could not refit the engine: TensorRT gave no reason") as error:
        put([("a", numbers(4, 6), F16)])
    assert error.value.code == "refit_failed"


def test_a_device_that_is_full_is_told_as_that(refitter: Refitter) -> None:
    refitter.succeeds = False
    log = Log()
    lines: list[Any] = []
    log.attach(lines.append)
    log.log(trt.ILogger.Severity.ERROR, "Cuda Runtime (out of memory)")
    with pytest.raises(BackendError) as error:
        put([("a", numbers(4, 6), F16)], log)
    assert error.value.code == "device_out_of_memory"
    assert "ENGINESMITH_RESIDENT_BYTES" in error.value.detail
    assert lines == [LogLine("error", "Cuda Runtime (out of memory)")]


def test_only_a_refittable_engine_is_asked_for_its_weights(refitter: Refitter) -> None:
    fixed: Any = SimpleNamespace(refittable=False)
    assert refittable_weights(ENGINE, Log()) == set(refitter.names)
    assert refittable_weights(fixed, Log()) == frozenset()
