"""How requests go to an engine host."""

import pickle
from dataclasses import replace
from typing import Any

import pytest

from app.bindings.report import ParameterBinding
from workers.channel.messages import EngineFile, ParameterSource, Refit, TensorFile
from workers.channel.wire import RequestReader, RequestWriter

COUNT = 300


def source(name: str, value: str) -> ParameterSource:
    tensor = TensorFile("/blobs/1", 0, 8, "F32", (2,), value * 64)
    return ParameterSource(ParameterBinding(name, "F32", (2,), (name,), ()), (tensor,))


FIRST = tuple(source(f"p{number}", "a") for number in range(COUNT))
SECOND = (source("p0", "b"), *FIRST[1:])


def refit(before: tuple[ParameterSource, ...], after: tuple[ParameterSource, ...]) -> Refit:
    return Refit(EngineFile("tensorrt", "/plan", "sha256:0", "/onnx", before, ()), after, "/new")


def test_what_is_read_is_what_was_written() -> None:
    writer, reader = RequestWriter(), RequestReader()
    for request in (refit(FIRST, SECOND), refit(SECOND, FIRST), refit(FIRST, FIRST)):
        assert reader.read(writer.write(request)) == request


def test_a_source_goes_over_once_and_stays_one_object() -> None:
    writer, reader = RequestWriter(), RequestReader()
    pickles = [writer.write(refit(FIRST, SECOND)), writer.write(refit(SECOND, FIRST))]
    first, second = map(reader.read, pickles)
    assert isinstance(first, Refit)
    assert isinstance(second, Refit)
    assert len(pickles[1]) < len(pickles[0]) / 5
    assert all(one is other for one, other in zip(first.parameters, second.parent.parameters, strict=True))
    assert first.parent.parameters[0] is second.parameters[0] is not first.parameters[0]


def test_sources_that_come_and_go_are_not_remembered_forever() -> None:
    writer, reader = RequestWriter(max_sources=10), RequestReader()
    for number in range(30):
        sources = tuple(source(f"{number}.{index}", "a") for index in range(4))
        request = refit(sources, (*sources, FIRST[0]))
        assert reader.read(writer.write(request)) == request
        assert len(writer._sent) <= 10 + 2 * 9
        assert len(reader._received) == len(writer._sent)


def test_a_request_larger_than_what_is_remembered_goes_over_once_as_well() -> None:
    writer, reader = RequestWriter(max_sources=10), RequestReader()
    sizes = []
    for request in (refit(FIRST, SECOND), refit(SECOND, FIRST), refit(FIRST, SECOND)):
        pickled = writer.write(request)
        sizes.append(len(pickled))
        assert reader.read(pickled) == request
    assert max(sizes[1:]) < sizes[0] / 5


def test_a_request_that_cannot_be_pickled_spoils_none_after_it() -> None:
    writer, reader = RequestWriter(), RequestReader()
    assert reader.read(writer.write(refit(FIRST, FIRST))) == refit(FIRST, FIRST)
    unpicklable: Any = lambda: None  # noqa: E731
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        writer.write(replace(refit(SECOND, FIRST), plan=unpicklable))
    assert reader.read(writer.write(refit(SECOND, FIRST))) == refit(SECOND, FIRST)
