"""Pickles of a hostile writer. None may run, change or import anything, or take more memory than its own bytes."""

import io
import os
import pickle
import struct
import tracemalloc
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.weights.checkpoint import CheckpointError
from app.weights.format_parts import pickle_machine, torch_pickle
from app.weights.format_parts.pickle_machine import INERT, run
from app.weights.format_parts.seekable import RangeStream
from app.weights.format_parts.torch_pickle import load
from tests.weights.formats.reading import name, number, program, sizes, storage, tensor, text

HUGE = 60 * 10**9
TUPLES = b"".join(b"\x86q\x01h\x01h\x01" for _ in range(200))  # each of two of the last: 2**200 to whoever looks inside


class Ours:
    """A class that a pickle must not find."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, ("touch /tmp/run-by-a-pickle",)


class Evaluated:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return eval, ("1 + 1",)


class Plain:
    pass


def stream(raw: bytes) -> RangeStream:
    return RangeStream(lambda offset, length: raw[offset : offset + length], len(raw))


def value(raw: bytes) -> object:
    return load(stream(raw)).value


def refused(raw: bytes) -> CheckpointError:
    with pytest.raises(CheckpointError) as error:
        load(stream(raw))
    return error.value


def read_or_refused(raw: bytes) -> None:
    try:
        load(stream(raw))
    except CheckpointError as error:
        detail = error.detail
    else:
        detail = ""
    assert len(detail) < 1000


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "plain",
    [
        None, True, [1, -5, 300, 70_000, 2**40, -(2**70)], 1.5, "text é" * 100, b"data" * 100, (1,), (1, 2), (1, 2, 3),
        (1, 2, 3, 4), {"a": {"b": []}}, ["x"] * 3, [[], [[]]], {str(n): n for n in range(2000)},
    ],
    ids=lambda plain: f"{plain!r:.20}",
)  # fmt: skip
def test_plain_values_are_read(plain: object, protocol: int) -> None:
    if isinstance(plain, bytes) and protocol == 2:
        plain = "bytes are calls there"
    assert value(pickle.dumps(plain, protocol)) == plain


def test_of_a_dictionary_the_entries_under_text_are_kept() -> None:
    assert value(pickle.dumps({"a": 1, 2: 3, (4, 5): 6, None: 7}, 2)) == {"a": 1}
    assert value(pickle.dumps(OrderedDict(a=1), 2)) == {"a": 1}
    assert value(pickle.dumps(defaultdict(None, {"a": 1}), 2)) == {"a": 1}


@pytest.mark.parametrize(
    "inert",
    [
        {1, 2}, frozenset({1}), np.float64(1.5), np.arange(3), datetime(2026, 1, 1), timedelta(1), slice(1), 1j,  # noqa: DTZ001
        Counter("aab"), bytearray(b"x"),
    ],
    ids=lambda inert: type(inert).__name__,
)  # fmt: skip
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_says_nothing_of_tensors_is_let_go(inert: object, protocol: int) -> None:
    found = value(pickle.dumps({"kept": 1, "inert": inert}, protocol))
    assert isinstance(found, dict)
    assert found["kept"] == 1
    assert found["inert"] in (INERT, b"x")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "hostile", [Ours(), Evaluated(), Plain(), Plain, os.system, PurePosixPath("a")], ids=lambda one: repr(one)[:20]
)
def test_what_is_not_in_the_list_is_neither_imported_nor_called(hostile: object, protocol: int) -> None:
    error = refused(pickle.dumps({"x": hostile}, protocol))
    assert error.code == "forbidden_pickle"
    assert "torch.save(model.state_dict(), ...)" in error.detail


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("numpy", "load"), ("torch", "load"), ("torch._utils", "_rebuild_tensor_v2.__globals__"), ("torch", "Storage"),
        ("collections", "OrderedDict.fromkeys"), ("app.settings", "Settings"), ("", ""), ("x" * 400, "y"),
    ],
)  # fmt: skip
def test_names_are_taken_whole_and_from_the_list_alone(module: str, attribute: str) -> None:
    assert refused(program(name(module, attribute))).code == "forbidden_pickle"
    assert refused(program(text(module), text(attribute), b"\x93")).code == "forbidden_pickle"
    assert len(refused(program(name(module, attribute))).detail) < 700


TENSOR = tensor()
FUNCTION = name("torch._utils", "_rebuild_tensor_v2")
STATE = b"}(" + text("__code__") + number(1) + text("shape") + number(2) + b"u"


@pytest.mark.parametrize(
    "steps",
    [
        (TENSOR, STATE, b"b"),  # the attributes of what stands for a tensor
        (storage(), STATE, b"b"),
        (name("torch", "float32"), STATE, b"b"),
        (FUNCTION, STATE, b"b"),
        (FUNCTION, b"N", STATE, b"\x86b"),
        (name("collections", "OrderedDict"), STATE, b"b"),
        (TENSOR, b"(", text("offset"), number(-1), b"u"),
        (FUNCTION, b"(", text("a"), number(1), b"u"),
        (TENSOR, text("offset"), number(1), b"s"),
        (b"]", text("a"), number(1), b"s"),
        (b"}", number(1), b"a"),
        (TENSOR, b"(", number(1), b"e"),
        (b"]", b"(", number(1), b"\x90"),
        (b"N)R",),
        (TENSOR, b")R"),
        (name("torch", "float32"), b")R"),
        (FUNCTION, b"]R"),
        (FUNCTION, b")R"),
        (FUNCTION, b"(" + b"N" * 40 + b"tR"),
        (b"}(", text("a"), b"u"),  # a key without a value
        (number(1), b"Q"),
        (text("0"), b"Q"),
        (b"R",), (b"b",), (b"e",), (b"t",), (b"0",), (b"2",), (b"h\x00",), (b"j\x00\x00\x00\x01",), (b"\x87",), (b"",),
        (b"q\x00",), (b"\x94",), (b"(\x94",), (b"(",), (b"1",), (b"\x93",), (b"\x90",), (b"(e",), (b"NNu",),
        (b"\x82\x01",), (b"i__main__\nPlain\n",), (b"(o",), (b"P0\n",), (b"I1\n",), (b"S'a'\n",), (b"\x92",),
        (b"\x97",), (b"\xff",), (b"cos",), (b"c" + b"x" * 1000,), (b"X\x01\x00\x00\x00\xff",), (b"T\xff\xff\xff\xff",),
    ],
    ids=lambda steps: repr(b"".join(steps))[-30:],
)  # fmt: skip
def test_instructions_that_fit_nothing_are_refused(steps: tuple[bytes, ...]) -> None:
    assert refused(program(*steps)).code in {"bad_header", "truncated_file", "bad_shape"}


def test_attributes_of_a_dictionary_are_let_go() -> None:
    ordered: Any = OrderedDict(a=1)
    ordered._metadata = {"": {"version": 1}}  # as a state dict has it
    assert value(pickle.dumps(ordered, 2)) == {"a": 1}


@pytest.mark.parametrize(
    "steps",
    [
        (b"\x8d" + struct.pack("<Q", HUGE),),
        (b"\x8e" + struct.pack("<Q", HUGE),),
        (b"\x96" + struct.pack("<Q", HUGE),),
        (b"\x8e" + struct.pack("<Q", 2**64 - 1),),
        (b"X" + struct.pack("<I", 2**32 - 1),),
        (b"X" + struct.pack("<I", 30 * 2**20),),
        (b"B" + struct.pack("<I", 2**32 - 1),),
        (b"T" + struct.pack("<i", 2**31 - 1),),
        (b"\x8b" + struct.pack("<i", 2**31 - 1),),
        (b"\x8b" + struct.pack("<i", -1),),
        (b"\x95" + struct.pack("<Q", HUGE), b"N"),
        (b"Nr" + struct.pack("<I", 2**32 - 1),),
        (b"N", TUPLES, b"}(", b"h\x01N", b"u"),  # as a key
        (b"NN", TUPLES, b"Q"),
        (b"NN", TUPLES, b"0", name("torch", "Size"), b"h\x01\x85R"),
        (b"NN", TUPLES, b"0", name("builtins", "set"), b"]h\x01a\x85R"),
        (b"(" + b"N" * 100_000 + b"t" + b"q\x010" + (name("torch", "Size") + b"h\x01\x85R0") * 1000,),
        (b"(" + b"N" * 100_000 + b"tq\x010" + (name("torch", "device") + b"h\x01R0") * 10,),
        (b"](" + b"N" * 50_000 + b"eq\x010" + (name("collections", "OrderedDict") + b"h\x01\x85R0") * 1000,),
        (b"](" * 20_000,),
        (b"]\x85" * 50_000,),
        (FUNCTION, b"(", storage(), number(0), b"(" + number(2**48) * 10_000 + b"t", sizes(1), b"\x89NtR"),
        (name("torch._tensor", "_rebuild_from_type_v2"), b"q\x01(h\x01N](h\x01NNNeNt" + b"R"),
    ],
    ids=lambda steps: repr(b"".join(steps)[:30]),
)
def test_memory_is_taken_for_what_is_there_alone(steps: tuple[bytes, ...]) -> None:
    raw = program(*steps)
    tracemalloc.start()
    try:
        load(stream(raw))
    except CheckpointError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2**21 + 100 * len(raw)


def test_instructions_and_bytes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "MAX_INSTRUCTIONS", 100)
    assert refused(program(b"N0" * 100)).code == "header_too_large"
    monkeypatch.setattr(pickle_machine, "MAX_BYTES", 100)
    assert refused(program(text("x" * 200))).code == "header_too_large"


def test_a_function_of_a_tensor_of_another_type_is_one_of_pytorchs() -> None:
    around = name("torch._tensor", "_rebuild_from_type_v2")
    arguments = tensor().split(FUNCTION)[1].removesuffix(b"R")
    kind = name("torch.nn.parameter", "Parameter")
    found = value(program(around, b"(", FUNCTION, kind, arguments, b"NtR"))
    assert isinstance(found, torch_pickle.TorchTensor)
    other = value(program(around, b"(", name("collections", "OrderedDict"), kind, b")NtR"))
    assert isinstance(other, torch_pickle.Unreadable)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    read_or_refused(raw)


INSTRUCTIONS = st.sampled_from(
    [bytes((code,)) for code in b"(012NK)tlad]}esuqhRbQ\x81\x85\x86\x87\x88\x8f\x90\x91\x94\x93"]
    + [TENSOR, FUNCTION, storage(), text("a"), number(3), name("collections", "OrderedDict"), name("builtins", "set")]
)


@given(st.lists(INSTRUCTIONS, max_size=40))
def test_any_instructions_are_run_or_refused(steps: list[bytes]) -> None:
    read_or_refused(program(*steps))


def test_nothing_but_what_is_given_is_found() -> None:
    asked: list[tuple[str, str]] = []
    run(io.BytesIO(program(name("a", "b"))), lambda module, one: asked.append((module, one)), lambda _: None)
    assert asked == [("a", "b")]
