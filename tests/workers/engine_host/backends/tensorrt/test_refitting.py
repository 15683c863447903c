"""A refit with a refitter that notes what it is told, and answers as a test wants; CUDA is a stand-in as well.

Most of it goes for weights on the host, as TensorRT 8.6 takes them, and on the device alike.
"""

import ctypes
import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.weights.dtypes import numpy_dtype
from tests.workers.engine_host.backends.tensorrt.releases import release_8, release_10
from tests.workers.engine_host.cuda.conftest import ILLEGAL_ADDRESS, OUT_OF_MEMORY, FakeCudart
from workers.channel.messages import BackendError, LogLine
from workers.engine_host.backends.tensorrt import refitting, weights_read_back
from workers.engine_host.backends.tensorrt import tensor_location as placement
from workers.engine_host.backends.tensorrt.capabilities import Capabilities, capabilities
from workers.engine_host.backends.tensorrt.library import trt
from workers.engine_host.backends.tensorrt.log import Log
from workers.engine_host.backends.tensorrt.refitting import check_weight, refit, refittable_weights
from workers.engine_host.backends.tensorrt.weight_values import Expected, Named
from workers.engine_host.cuda import CudaError
from workers.engine_host.tensors import Array

F16 = Expected(np.dtype(np.float16), (4, 6))
TYPES = {  # of TensorRT, by the names that safetensors has for them
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "fp8",
    "I8": "int8",
    "U8": "uint8",
    "I32": "int32",
    "I64": "int64",
    "BOOL": "bool",
}
DEVICE, HOST = trt.TensorLocation.DEVICE, trt.TensorLocation.HOST
ON_HOST, ON_DEVICE = capabilities(release_8()), capabilities(release_10())
ENGINE: Any = SimpleNamespace(refittable=True)  # in place of a `trt.ICudaEngine`


class Weights(trt.Weights):
    """Weights that tell where they lie."""

    def __init__(self, *given: Any) -> None:  # noqa: ANN401 - an array, or type, address and count
        super().__init__(*given)
        self.address: int = given[1] if len(given) == 3 else given[0].ctypes.data


@dataclass
class Refitter:
    """In place of `trt.Refitter`. What it is given it reads when the refit is done, by address, into `read`."""

    cuda: FakeCudart
    names: tuple[str, ...] = ("a", "b", "c")
    refuses: tuple[str, ...] = ()
    combined: dict[str, tuple[str, ...]] = field(default_factory=dict)  # what a weight cannot be set without
    succeeds: bool = True
    at_refit: Callable[[], None] = lambda: None
    holds: Mapping[str, trt.Weights | None] = field(default_factory=dict)  # other weights than it was given, or none
    elsewhere: tuple[str, ...] = ()  # weights that it takes to be on the other side
    max_threads: int = 1
    given: dict[str, Weights] = field(default_factory=dict)
    locations: dict[str, trt.TensorLocation] = field(default_factory=dict)
    read: dict[str, bytes] = field(default_factory=dict)
    refits: int = 0

    def set_named_weights(self, name: str, weights: Weights, location: trt.TensorLocation = HOST) -> bool:
        if name in self.refuses or name not in self.names:
            return False
        self.given[name], self.locations[name] = weights, location
        return True

    def unset_named_weights(self, name: str) -> bool:
        assert self.cuda.holds(self.given[name].address)
        del self.given[name]
        return True

    def get_named_weights(self, weights_name: str) -> trt.Weights:
        held = self.holds.get(weights_name, self.given.get(weights_name))
        return trt.Weights() if held is None else held

    def get_weights_location(self, weights_name: str) -> trt.TensorLocation:
        location = self.locations[weights_name]
        return {DEVICE: HOST, HOST: DEVICE}[location] if weights_name in self.elsewhere else location

    def get_missing_weights(self) -> list[str]:
        needed = {other for name in self.given for other in self.combined.get(name, ())}
        return sorted(needed - self.given.keys())

    def get_all_weights(self) -> list[str]:
        return list(self.names)

    def refit_cuda_engine(self) -> bool:
        self._refit()
        return self.succeeds

    def refit_cuda_engine_async(self, stream: int) -> bool:
        assert stream in self.cuda.streams
        self.cuda.queue.append(self._refit)
        return self.succeeds

    def _refit(self) -> None:
        self.at_refit()
        self.refits += 1
        self.read = {name: ctypes.string_at(one.address, one.nbytes) for name, one in self.given.items()}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCudart]:
    """The stand-in for CUDA, in which nothing may be left."""
    fake = FakeCudart()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    placement.process_staging.cache_clear()
    yield fake
    fake.fails.clear()
    placement.process_staging.cache_clear()
    gc.collect()
    assert (fake.memory, fake.page_locked, fake.streams, fake.events) == ({}, {}, set(), {})


@pytest.fixture(params=[ON_HOST, ON_DEVICE], ids=["host", "device"])
def can(request: pytest.FixtureRequest) -> Capabilities:
    found: Capabilities = request.param
    return found


@pytest.fixture
def refitter(cuda: FakeCudart, monkeypatch: pytest.MonkeyPatch) -> Refitter:
    refitter = Refitter(cuda)
    types = {dtype: getattr(trt, dtype) for dtype in TYPES.values()}
    for module in (refitting, placement, weights_read_back):
        names = {"Refitter": lambda _engine, _log: refitter, "Weights": Weights, "TensorLocation": trt.TensorLocation}
        monkeypatch.setattr(module, "trt", SimpleNamespace(**names, **types))
    return refitter


@dataclass
class Known:
    """Weights that nobody changed; `asked` are the names that were looked up."""

    weights: Sequence[Named] = ()
    asked: list[Sequence[str]] = field(default_factory=list)

    def named(self, names: Sequence[str]) -> Sequence[Named]:
        self.asked.append(names)
        return self.weights


def put(can: Capabilities, weights: Sequence[tuple[str, Array, Expected]], log: Log | None = None) -> set[str]:
    return refit(ENGINE, weights, can, log or Log(), Known())


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
def test_a_weight_that_does_not_fit_is_refused_before_tensorrt_sees_it(
    refitter: Refitter, can: Capabilities, misfit: str
) -> None:
    array, fault = MISFITS[misfit]
    with pytest.raises(BackendError, match=fault) as error:
        put(can, [("a", array, F16)])
    assert error.value.code == "wrong_weights"
    assert "Check the binding" in error.value.detail
    assert (refitter.given, refitter.refits) == ({}, 0)


def test_a_weight_that_fits_passes() -> None:
    check_weight("a", numbers(4, 6), F16)
    check_weight("scalar", np.array(3.0, np.float32), Expected(np.dtype(np.float32), ()))
    check_weight("none", np.empty((0, 6), np.float16), Expected(np.dtype(np.float16), (0, 6)))


def test_every_weight_is_checked_before_the_first_one_goes_anywhere(refitter: Refitter, can: Capabilities) -> None:
    with pytest.raises(BackendError, match="The weight b"):
        put(can, [("a", numbers(4, 6), F16), ("b", numbers(6, 4), F16)])
    assert (refitter.given, refitter.refits, refitter.cuda.queue) == ({}, 0, [])


def test_every_weight_is_given_by_its_name_and_counted(refitter: Refitter, can: Capabilities) -> None:
    a, b, c = numbers(4, 6), numbers(3, dtype="F32"), np.array(7, np.int32)
    assert put(can, [("a", a, exactly(a)), ("b", b, exactly(b)), ("c", c, exactly(c))]) == {"a", "b", "c"}
    assert refitter.read == {"a": a.tobytes(), "b": b.tobytes(), "c": c.tobytes()}
    assert set(refitter.locations.values()) == {DEVICE if can.async_refit else HOST}
    assert refitter.refits == 1
    assert refitter.max_threads == can.refit_threads


@pytest.mark.parametrize("dtype", TYPES)
def test_weights_of_every_type_arrive(refitter: Refitter, can: Capabilities, dtype: str) -> None:
    array = numbers(2, 3, dtype=dtype)

    def look() -> None:
        weights = refitter.given["a"]
        assert (weights.dtype, weights.size) == (getattr(trt, TYPES[dtype]), array.size)

    refitter.at_refit = look
    assert put(can, [("a", array, exactly(array))]) == {"a"}
    assert refitter.read["a"] == array.tobytes()


def alive_at_refit(refitter: Refitter, born: Sequence[weakref.ref[Array]]) -> list[bool]:
    """Return a list that says, once there was a refit, which of these arrays were still there."""
    alive: list[bool] = []

    def look() -> None:
        gc.collect()
        alive.extend(one() is not None for one in born)

    refitter.at_refit = look
    return alive


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_arrays_live_until_the_refit_is_done_and_no_longer(refitter: Refitter, dtype: str) -> None:
    born: list[weakref.ref[Array]] = []
    alive = alive_at_refit(refitter, born)
    refit(ENGINE, made_one_by_one(refitter.names, dtype, born), ON_HOST, Log(), Known())
    refitter.given.clear()
    gc.collect()

    assert alive == [True, True, True]
    assert [one() for one in born] == [None, None, None]


def made_one_by_one(
    names: Sequence[str], dtype: str, born: list["weakref.ref[Array]"]
) -> Iterator[tuple[str, Array, Expected]]:
    """Weights that nobody else keeps."""
    for name in names:
        array = numbers(4, 6, dtype=dtype)
        born.append(weakref.ref(array))
        yield name, array, exactly(array)


def test_a_name_the_engine_does_not_have_is_told_with_the_remedy(refitter: Refitter, can: Capabilities) -> None:
    with pytest.raises(BackendError, match=r"no weight nobody that could be replaced \(it has 3\)") as error:
        put(can, [("nobody", numbers(4, 6), F16)])
    assert error.value.code == "not_refittable"
    assert "Build an engine for these weights" in error.value.detail
    assert refitter.refits == 0


def test_a_known_weight_that_is_refused_is_told_in_tensorrts_words(refitter: Refitter, can: Capabilities) -> None:
    refitter.refuses = ("b",)
    log = Log()
    log.log(trt.ILogger.Severity.ERROR, "count mismatch")
    with pytest.raises(BackendError, match="refused the weight b: count mismatch") as error:
        put(can, [("a", numbers(4, 6), F16), ("b", numbers(4, 6), F16)], log)
    assert error.value.code == "not_refittable"
    assert refitter.refits == 0


def test_weights_that_are_combined_with_a_changed_one_are_given_too(refitter: Refitter, can: Capabilities) -> None:
    refitter.combined = {"a": ("b",)}
    a, b = numbers(4, 6), numbers(3)
    known = Known([("b", b, exactly(b))])
    assert refit(ENGINE, [("a", a, F16)], can, Log(), known) == {"a", "b"}
    assert (known.asked, refitter.refits) == ([["b"]], 1)
    assert refitter.read == {"a": a.tobytes(), "b": b.tobytes()}
    assert refitter.locations["a"] == refitter.locations["b"]


def test_a_weight_that_stays_missing_though_it_was_given_stops_the_refit(
    refitter: Refitter, can: Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refitter, "get_missing_weights", lambda: ["a"])
    a = numbers(4, 6)
    with pytest.raises(BackendError, match="wants more weights than were given: a"):
        refit(ENGINE, [("a", a, F16)], can, Log(), Known([("a", a, F16)]))


def test_weights_that_are_still_missing_stop_the_refit(refitter: Refitter, can: Capabilities) -> None:
    refitter.combined = {"a": ("b", "(Unnamed Layer* 3)")}
    with pytest.raises(BackendError, match=r"wants more weights than were given: \(Unnamed Layer\* 3\), b") as error:
        put(can, [("a", numbers(4, 6), F16)])
    assert error.value.code == "refit_failed"
    assert "Build an engine for these weights" in error.value.detail
    assert refitter.refits == 0


def test_a_refit_that_fails_is_never_taken_for_done(refitter: Refitter, can: Capabilities) -> None:
    refitter.succeeds = False
    with pytest.raises(BackendError, match="could not refit the engine: TensorRT gave no reason") as error:
        put(can, [("a", numbers(4, 6), F16)])
    assert error.value.code == "refit_failed"


def test_a_device_that_is_full_is_told_as_that(refitter: Refitter, can: Capabilities) -> None:
    refitter.succeeds = False
    log = Log()
    lines: list[Any] = []
    log.attach(lines.append)
    log.log(trt.ILogger.Severity.ERROR, "Cuda Runtime (out of memory)")
    with pytest.raises(BackendError) as error:
        put(can, [("a", numbers(4, 6), F16)], log)
    assert error.value.code == "device_out_of_memory"
    assert "ENGINESMITH_RESIDENT_BYTES" in error.value.detail
    assert lines == [LogLine("error", "Cuda Runtime (out of memory)")]


def test_only_a_refittable_engine_is_asked_for_its_weights(refitter: Refitter) -> None:
    fixed: Any = SimpleNamespace(refittable=False)
    assert refittable_weights(ENGINE, Log()) == set(refitter.names)
    assert refittable_weights(fixed, Log()) == frozenset()


# What the refitter says that it holds

HOLDS_ON_HOST = replace(ON_HOST, reads_weights=True)
READING = pytest.mark.parametrize("reading", [HOLDS_ON_HOST, ON_DEVICE], ids=["host", "device"])
OTHERS: Mapping[str, Callable[[Weights], trt.Weights | None]] = {
    "nothing": lambda _given: None,
    "those of an earlier refit": lambda given: trt.Weights(given.dtype, given.address + 256, given.size),
    "too few": lambda given: trt.Weights(given.dtype, given.address, given.size - 1),
    "of another type": lambda given: trt.Weights(trt.bfloat16, given.address, given.size),
}


@READING
@pytest.mark.parametrize("other", OTHERS)
def test_a_refitter_that_holds_other_weights_than_it_was_given_refits_nothing(
    refitter: Refitter, monkeypatch: pytest.MonkeyPatch, reading: Capabilities, other: str
) -> None:
    take = refitter.set_named_weights

    def set_named_weights(name: str, weights: Weights, location: trt.TensorLocation = HOST) -> bool:
        if name == "b":
            refitter.holds = {"b": OTHERS[other](weights)}
        return take(name, weights, location)

    monkeypatch.setattr(refitter, "set_named_weights", set_named_weights)
    with pytest.raises(BackendError, match="does not hold what it was given for b, so the engine was not") as error:
        put(reading, [(name, numbers(4, 6), F16) for name in refitter.names])
    assert error.value.code == "refit_failed"
    assert "Build an engine for these weights" in error.value.detail
    assert refitter.refits == 0


@READING
def test_weights_that_the_refitter_takes_to_be_elsewhere_are_not_refitted(
    refitter: Refitter, reading: Capabilities
) -> None:
    refitter.elsewhere = ("c",)
    with pytest.raises(BackendError, match="what it was given for c"):
        put(reading, [(name, numbers(4, 6), F16) for name in refitter.names])
    assert refitter.refits == 0


def test_weights_that_stayed_on_the_host_are_read_back_as_well(refitter: Refitter) -> None:
    refitter.cuda.fails["cudaMalloc"] = OUT_OF_MEMORY[0]
    refitter.holds = {"b": None}
    with pytest.raises(BackendError, match="what it was given for b"):
        put(ON_DEVICE, [(name, numbers(4, 6), F16) for name in refitter.names])


def test_a_release_that_does_not_say_what_it_holds_is_not_asked(refitter: Refitter) -> None:
    refitter.holds = dict.fromkeys(refitter.names)
    assert put(ON_HOST, [("a", numbers(4, 6), F16)]) == {"a"}


# Weights on the device


def test_weights_on_the_host_take_no_cuda_at_all(refitter: Refitter) -> None:
    put(ON_HOST, [("a", numbers(4, 6), F16)])
    assert refitter.cuda.calls == []


def test_a_refit_follows_the_copies_and_only_then_is_it_waited_for(refitter: Refitter) -> None:
    pending: list[tuple[int, int]] = []

    def look() -> None:
        pending.append((refitter.cuda.done, refitter.cuda.calls.count("cudaStreamSynchronize")))

    refitter.at_refit = look
    put(ON_DEVICE, [("a", numbers(4, 6), F16), ("b", numbers(4, 6), F16)])
    assert pending == [(2, 1)]
    assert refitter.refits == 1


def test_each_weight_lies_as_cuda_would_have_it_all_in_one_piece_of_memory(refitter: Refitter) -> None:
    addresses: dict[str, int] = {}
    refitter.at_refit = lambda: addresses.update({name: one.address for name, one in refitter.given.items()})
    sizes = {"a": 3, "b": 0, "c": 300}
    put(ON_DEVICE, [(name, array, exactly(array)) for name, array in arrays_of(sizes).items()])
    assert [addresses[name] - addresses["a"] for name in sizes] == [0, 256, 256]
    assert refitter.cuda.calls.count("cudaMalloc") == 1
    assert refitter.read == {name: array.tobytes() for name, array in arrays_of(sizes).items()}


def arrays_of(sizes: Mapping[str, int]) -> dict[str, Array]:
    return {name: numbers(size, dtype="U8") for name, size in sizes.items()}


def test_arrays_may_go_once_they_have_been_copied(refitter: Refitter) -> None:
    born: list[weakref.ref[Array]] = []
    alive = alive_at_refit(refitter, born)
    refit(ENGINE, made_one_by_one(refitter.names, "F16", born), ON_DEVICE, Log(), Known())

    assert alive == [False, False, False]
    assert refitter.read == dict.fromkeys(refitter.names, numbers(4, 6).tobytes())


def test_the_devices_memory_is_given_back_after_a_refit_and_tensorrt_told_before(refitter: Refitter) -> None:
    held: list[int] = []
    refitter.at_refit = lambda: held.append(len(refitter.cuda.memory))
    put(ON_DEVICE, [("a", numbers(4, 6), F16)])
    assert held == [1]
    assert (refitter.cuda.memory, refitter.given) == ({}, {})


def test_the_devices_memory_is_given_back_by_a_refit_that_fails_though_its_error_is_kept(refitter: Refitter) -> None:
    refitter.succeeds = False
    with pytest.raises(BackendError) as error:
        put(ON_DEVICE, [("a", numbers(4, 6), F16)])
    assert (refitter.cuda.memory, refitter.given) == ({}, {})
    assert error.value.code == "refit_failed"


@pytest.mark.parametrize("failing", [("cudaMalloc",), ("cudaHostRegister", "cudaHostAlloc"), ()])
def test_weights_stay_on_the_host_where_there_is_no_room_for_them_beside_the_engine(
    refitter: Refitter, monkeypatch: pytest.MonkeyPatch, failing: tuple[str, ...]
) -> None:
    """Without a failure there is too little room for TensorRT itself."""
    if failing:
        refitter.cuda.fails |= dict.fromkeys(failing, OUT_OF_MEMORY[0])
    else:
        monkeypatch.setattr(refitter.cuda, "_cudaMemGetInfo", lambda: (2 * 3 * 256 - 1, 80 << 30))
    log, lines = Log(), list[Any]()
    log.attach(lines.append)
    born: list[weakref.ref[Array]] = []

    assert refit(ENGINE, made_one_by_one(refitter.names, "F16", born), ON_DEVICE, log, Known()) == set(refitter.names)

    assert refitter.read == dict.fromkeys(refitter.names, numbers(4, 6).tobytes())
    assert set(refitter.locations.values()) == {HOST}
    assert refitter.refits == 1
    assert [(line.level, "read from the host" in line.text) for line in lines] == [("info", True)]
    assert log.errors == []


def test_what_is_combined_with_weights_on_the_host_may_have_room_on_the_device(refitter: Refitter) -> None:
    refitter.combined = {"a": ("b",)}
    refitter.cuda.fails["cudaMalloc"] = OUT_OF_MEMORY[0]
    a, b = numbers(4, 6), numbers(3)

    class RoomMeanwhile(Known):
        def named(self, names: Sequence[str]) -> Sequence[Named]:
            refitter.cuda.fails.clear()
            return super().named(names)

    known = RoomMeanwhile([("b", b, exactly(b))])
    assert refit(ENGINE, [("a", a, F16)], ON_DEVICE, Log(), known) == {"a", "b"}
    assert refitter.locations == {"a": HOST, "b": DEVICE}
    assert refitter.read == {"a": a.tobytes(), "b": b.tobytes()}


@pytest.mark.parametrize("failing", ["cudaMalloc", "cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_a_device_that_fails_is_told_as_that_and_nothing_is_kept(refitter: Refitter, failing: str) -> None:
    refitter.cuda.fails[failing] = ILLEGAL_ADDRESS[0]
    with pytest.raises(CudaError, match="cudaErrorIllegalAddress") as error:
        put(ON_DEVICE, [("a", numbers(4, 6), F16)])
    assert error.value.code == "device_failed"
    assert refitter.cuda.memory == {}
