import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from onnx import ModelProto

from app.definitions import sandbox
from app.definitions.limits import ChildLimits, child_limits
from app.errors import Invalid, Unavailable

Make = Callable[..., ModelProto]


@pytest.fixture
def upload(tmp_path: Path, tiny_model: Make) -> Path:
    path = tmp_path / "upload.onnx"
    path.write_bytes(tiny_model().SerializeToString())
    return path


def limit(monkeypatch: pytest.MonkeyPatch, **changed: float) -> None:
    def limits(file_bytes: int) -> ChildLimits:
        return replace(child_limits(file_bytes), **changed)  # type: ignore[arg-type]

    monkeypatch.setattr(sandbox, "child_limits", limits)


def fault(upload: Path) -> Invalid:
    with pytest.raises(Invalid) as raised, sandbox.construct_from_file(upload, upload.parent / "scratch"):
        pass
    return raised.value


def test_files_live_as_long_as_the_block(upload: Path) -> None:
    scratch = upload.parent / "scratch"
    with sandbox.construct_from_file(upload, scratch) as made:
        assert made.graph.exists()
        assert made.weights is None
    assert list(scratch.iterdir()) == []


def test_a_child_out_of_time_is_killed_and_reported(upload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, wall_s=0.01)
    assert fault(upload).code == "parsing_timeout"


def test_a_child_out_of_memory_is_reported(upload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, address_space=64 * 1024 * 1024)
    assert fault(upload).code in {"parser_crashed", "too_much_memory"}


def test_an_answer_that_is_too_long_is_refused(upload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_ANSWER_BYTES", 50)
    assert fault(upload).code == "too_large_graph"


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_is_reported(upload: Path, monkeypatch: pytest.MonkeyPatch, ending: signal.Signals) -> None:
    program = f"import os; os.kill(os.getpid(), {int(ending)})"
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda _command, **options: popen([sys.executable, "-c", program], **options)
    )
    assert fault(upload).code == "parser_crashed"


def test_a_child_that_cannot_be_started_is_unavailable(upload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Unavailable) as raised, sandbox.construct_from_file(upload, upload.parent / "scratch"):
        pass
    assert raised.value.code == "parser_unavailable"


def test_the_child_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINESMITH_SIGNING_KEY", "11" * 32)
    assert not any(name.startswith("ENGINESMITH") for name in sandbox._environment())


def test_the_child_stops_when_its_parent_is_another() -> None:
    request = {"parent": os.getpid() + 1, "limits": {}, "task": {}}
    command = [sys.executable, "-m", "app.definitions.child"]
    done = subprocess.run(
        command, input=json.dumps(request).encode(), capture_output=True, check=False, env=sandbox._environment()
    )
    assert done.returncode == 1
    assert done.stdout == b""
