"""How what an engine host says comes to the worker."""

import json
import math
import os
import pickle
import socket
import struct
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.channel.hearing import MAX_FRAME_BYTES, BadReply, Frames, read_frame
from workers.channel.messages import (
    BackendError,
    Benchmarked,
    Build,
    Built,
    Computing,
    DamagedFile,
    Latency,
    LogLine,
    OutputDifference,
    PlanWritten,
    Progress,
    Ran,
    Refit,
    Refitted,
    Residency,
    Sight,
    Spent,
    Verified,
)
from workers.channel.paths import check_paths
from workers.channel.replies import Hello, Reply, Said, frame_of

VERIFIED = Verified(
    ok=True,
    against="reference",
    outputs={"y": OutputDifference(math.inf, 0.5, None, finite=False)},
    tolerance={"relative_l2": 1e-4},
    inputs="digest",
    detail="",
    stages={"verify": Spent(0.5, 7)},
    made_up={"shapes": {"x": [1, 2]}},
    sees=Sight(1, 2, 2, ("a",), (), (), (), 0.5),
)
BUILT = Built("/job/plan", "sha256:0", 5, "cpu", {"levels": [1, {"a": None}]}, {}, "1.0", verification=VERIFIED)
MEASURED = Latency(0.1, 0.2, 0.1, 10.0)


def reply(result: Any) -> Reply:  # noqa: ANN401 - an outcome or an error
    return Reply(result, Residency(1, 5), 7)


@pytest.mark.parametrize(
    "said",
    [
        Hello({"kind": "cpu"}, {"onnxruntime": {"version": "1"}}, 5, "", {"network": {"holds": True, "detail": "x"}}),
        Progress("build", 1, 2),
        LogLine("info", "ü\n"),
        PlanWritten("/job/plan", "sha256:0"),
        Computing("run"),
        Computing(None),
        reply(BUILT),
        reply(Refitted(None, None, 5, 1, warm=True, facts={}, stages={}, backend_version="1", verification=VERIFIED)),
        reply(Benchmarked(MEASURED, None, (("layer", 0.1),), {"x": (1, 2)}, "/job/report", {})),
    ],
)
def test_what_is_read_is_what_was_said(said: Said) -> None:
    assert read_frame(frame_of(said)) == said


def test_errors_stay_what_they_are() -> None:
    error = read_frame(frame_of(BackendError("no_gpu", "There is none.")))
    assert isinstance(error, BackendError)
    assert (error.code, error.detail, type(error)) == ("no_gpu", "There is none.", BackendError)
    ended = read_frame(frame_of(reply(DamagedFile("weights_damaged", "It is.", "/blobs/1"))))
    assert isinstance(ended, Reply)
    assert isinstance(ended.result, DamagedFile)
    assert (ended.result.code, ended.result.path) == ("weights_damaged", "/blobs/1")


def test_numbers_of_numpys_are_numbers() -> None:
    ended = read_frame(frame_of(reply(Ran("/job/outputs", np.float64(0.5), {"run": Spent(np.float32(0.5), 1)}))))  # type: ignore[arg-type]  # as an adapter might
    assert isinstance(ended, Reply)
    assert ended.result == Ran("/job/outputs", 0.5, {"run": Spent(0.5, 1)})


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (pickle.dumps(Progress("build")), "no message"),
        (b"", "no message"),
        (b"[" * 100_000, "no message"),
        (b'{"Progress": {"phase": "build"}, "LogLine": {}}', "no message"),
        (b'{"Build": {}}', "'Build', which is none of its kinds"),
        (b'{"Ran": {"outputs": "/etc/passwd", "seconds": 1, "stages": {}}}', "'Ran'"),
        (b'{"Progress": {"phase": 5}}', r"Progress with phase that it cannot have \(.*string"),
        (b'{"Progress": {"phase": "build", "step": "many"}}', "Progress with step"),
        (b'{"Progress": {}}', "Progress with phase"),
        (b'{"Ended": {"result": {"Progress": {"phase": "b"}}, "residency": {}, "memory_free": 1}}', "'Progress'"),
    ],
)
def test_what_a_host_may_not_say_is_refused(frame: bytes, says: str) -> None:
    with pytest.raises(BadReply, match=says):
        read_frame(frame)


class Wire:
    """The socket of a child, and what the parent reads of it."""

    def __init__(self) -> None:
        self.theirs, ours = socket.socketpair()
        self.ours = ours
        self.frames = Frames(ours.fileno())


def test_frames_are_read_as_they_come_and_never_waited_for() -> None:
    wire = Wire()
    first, second = frame_of(Progress("build")), frame_of(LogLine("info", "x" * 10_000))
    with Connection(os.dup(wire.theirs.fileno())) as connection:
        connection.send_bytes(first)
        connection.send_bytes(second)
    assert (wire.frames.next(), wire.frames.waiting, wire.frames.next(), wire.frames.waiting) == (
        first,
        True,
        second,
        False,
    )
    whole = struct.pack("!i", len(first)) + first
    wire.theirs.sendall(whole[:7])
    assert wire.frames.next() is None
    wire.theirs.sendall(whole[7:])
    assert wire.frames.next() == first
    wire.theirs.close()
    with pytest.raises(EOFError):
        wire.frames.next()


@pytest.mark.parametrize("length", [MAX_FRAME_BYTES + 1, -1])
def test_a_frame_that_would_be_too_long_is_refused_before_it_comes(length: int) -> None:
    wire = Wire()
    wire.theirs.sendall(struct.pack("!i", length))
    with pytest.raises(BadReply, match="64 MiB"):
        wire.frames.next()


def building(folder: Path) -> Build:
    return Build("onnxruntime", "/blobs/1", (), (), str(folder / "plan"))


@pytest.mark.parametrize("path", ["/data/signing.key", "{job}/other", "{job}/plan.x/../../signing.key", ""])
def test_a_path_that_the_worker_did_not_name_is_refused(tmp_path: Path, path: str) -> None:
    named = path.format(job=tmp_path)
    for said in (PlanWritten(named, "sha256:0"), reply(Built(named, "", 1, "cpu", {}, {}, "1"))):
        with pytest.raises(BadReply, match="did not name"):
            check_paths(said, building(tmp_path))


def test_the_paths_that_a_request_names_are_taken(tmp_path: Path) -> None:
    build = building(tmp_path)
    built = Built(build.plan, "", 1, "cpu", {}, {}, "1", timing_cache=f"{build.plan}.timings")
    check_paths(reply(built), build)
    parent = build.engine(Built("/blobs/plan", "sha256:0", 1, "cpu", {}, {}, "1"))
    kept = Refitted("/blobs/plan", "sha256:0", 1, 1, warm=True, facts={}, stages={}, backend_version="1")
    check_paths(reply(kept), Refit(parent, (), None))


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "plan").symlink_to("/etc/passwd")
    with pytest.raises(BadReply, match="is a link"):
        check_paths(PlanWritten(str(tmp_path / "plan"), "sha256:0"), building(tmp_path))


def test_what_has_no_form_is_a_fault_of_the_host() -> None:
    with pytest.raises(TypeError, match="object has no form"):
        frame_of(LogLine("info", object()))  # type: ignore[arg-type]  # on purpose
    assert json.loads(frame_of(Progress("p"))) == {"Progress": {"phase": "p", "step": 0, "total": 0}}
