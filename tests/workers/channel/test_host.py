import errno
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from structlog.testing import capture_logs

from app.definitions.parameter import InputSpec
from tests.workers.hosting import Hosting
from tests.workers.networks import Network, bound, checkpoint, network_of, perceptron
from workers.channel.hearing import read_frame
from workers.channel.host import EngineHost, EngineHostDied, EngineHostNotStarted
from workers.channel.messages import (
    BackendError,
    Build,
    Check,
    EngineFile,
    LogLine,
    Progress,
    Request,
    Residency,
    Run,
    Verify,
)
from workers.channel.process import EngineHostProcess
from workers.channel.replies import Reply
from workers.engine_host import child
from workers.engine_host.memory_limit import memory_limit
from workers.engine_host.run_inputs import fixed_inputs

Tick = Callable[[], None]
NOTHING = Run(EngineFile("none", "", "", "", (), ()), "", "")


class Canceled(Exception):
    """What a tick may raise."""


@pytest.fixture
def engine(hosting: Hosting, tmp_path: Path) -> EngineFile:
    network = perceptron(tmp_path / "definition.onnx")
    return hosting.build(network, bound(network, checkpoint(tmp_path / "a.safetensors", network.weights(1))))[1]


@pytest.fixture
def endless(engine: EngineFile, tmp_path: Path) -> Run:
    """A run that never ends: its inputs are a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    return Run(engine, str(tmp_path / "pipe"), str(tmp_path / "never"))


def call(hosting: Hosting, request: Request, tick: Tick) -> None:
    hosting.host.call(request, on_message=hosting.messages.append, tick=tick, tick_s=0.05)


def runs(hosting: Hosting, engine: EngineFile) -> bool:
    outputs = hosting.run(engine, fixed_inputs(engine.inputs, ()))
    return bool(np.isfinite(outputs["y"]).all())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_child_that_dies_in_the_middle_is_reported_and_replaced(
    hosting: Hosting, engine: EngineFile, endless: Run, number: signal.Signals
) -> None:
    first = hosting.host.pid
    assert first is not None

    with pytest.raises(EngineHostDied, match=number.name) as caught:
        call(hosting, endless, lambda: os.kill(first, number))

    assert caught.value.code == "engine_host_died"
    assert ("out of memory" in caught.value.detail) == (number is signal.SIGKILL)
    assert hosting.host.pid is None
    assert runs(hosting, engine)
    assert hosting.host.pid != first


@pytest.mark.slow
@pytest.mark.parametrize("ask", ["greet", "describe"])
def test_a_child_that_is_killed_while_it_starts_is_no_fault_of_a_request(hosting: Hosting, ask: str) -> None:
    def kill() -> None:
        if (pid := hosting.host.pid) is not None:
            os.kill(pid, signal.SIGKILL)

    for _ in range(2):
        hosting.host.start()
        kill()
        with pytest.raises(EngineHostNotStarted, match="SIGKILL") as caught:
            hosting.host.call(
                NOTHING,
                on_message=hosting.messages.append,
                tick=kill,
                tick_s=0.01,
            )
        assert (caught.value.code, caught.value.status) == ("engine_host_not_started", -signal.SIGKILL)
    assert getattr(hosting.host, ask)().device


@pytest.mark.slow
def test_a_child_that_dies_between_calls_is_replaced(hosting: Hosting, engine: EngineFile) -> None:
    first = hosting.host.pid
    assert first is not None
    ended = os.pidfd_open(first)
    os.kill(first, signal.SIGKILL)
    assert select.select([ended], [], [], 10)[0]
    os.close(ended)

    assert runs(hosting, engine)
    assert hosting.host.pid != first


@pytest.mark.slow
def test_a_tick_that_raises_kills_the_child_and_passes_through(
    hosting: Hosting, engine: EngineFile, endless: Run, tmp_path: Path
) -> None:
    first = hosting.host.pid
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            raise Canceled

    with pytest.raises(Canceled):
        call(hosting, endless, tick)

    assert first is not None
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert not list((tmp_path / "scratch").iterdir())
    assert runs(hosting, engine)


@pytest.fixture
def stuck(engine: EngineFile, tmp_path: Path) -> EngineFile:
    """An engine that can be run, and whose compilation never ends: its definition is a pipe that can be read once."""
    pipe, content = tmp_path / "definition.pipe", Path(engine.definition).read_bytes()
    os.mkfifo(pipe)
    Thread(target=pipe.write_bytes, args=(content,), daemon=True).start()
    return replace(engine, definition=str(pipe))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["canceled", "killed"])
def test_what_is_built_to_compare_with_lies_in_the_childs_folder_and_goes_with_it(
    hosting: Hosting, stuck: EngineFile, tmp_path: Path, how: str
) -> None:
    child = hosting.host.pid
    assert child is not None

    def end_once_it_builds() -> None:
        if not list((tmp_path / "scratch").glob("engine-host-*/rebuild-*")):
            return
        if how == "canceled":
            raise Canceled
        os.kill(child, signal.SIGKILL)

    with pytest.raises(Canceled if how == "canceled" else EngineHostDied):
        call(hosting, Verify(stuck, Check("rebuild")), end_once_it_builds)
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.slow
def test_a_listener_that_raises_kills_the_child_too(hosting: Hosting, engine: EngineFile, tmp_path: Path) -> None:
    def refuse(_message: object) -> None:
        raise Canceled

    build = Build("onnxruntime", engine.definition, engine.parameters, engine.inputs, str(tmp_path / "again"))
    with pytest.raises(Canceled):
        hosting.host.call(build, on_message=refuse, tick=lambda: None)
    assert hosting.host.pid is None
    assert runs(hosting, engine)


def reshaping(path: Path) -> Network:
    """Runs with six elements only, which its inputs do not say."""
    nodes = [onnx.helper.make_node("Reshape", ["x", "shape"], ["r"]), onnx.helper.make_node("Mul", ["r", "w"], ["y"])]
    inputs = (InputSpec("x", "F32", ("n",)),)
    return network_of(path, nodes, {"w": ("F32", (3,))}, inputs, {"y": "F32"}, {"shape": np.array([2, 3])})


def test_what_native_code_writes_arrives_as_log_lines_before_the_answer(hosting: Hosting, tmp_path: Path) -> None:
    network = reshaping(tmp_path / "definition.onnx")
    _, engine = hosting.build(network, bound(network, checkpoint(tmp_path / "a.safetensors", network.weights(1))))
    first = hosting.host.pid

    with pytest.raises(BackendError) as caught:
        hosting.run(engine, {"x": np.zeros(5, np.float32)})

    assert caught.value.code == "run_failed"
    assert [line for line in hosting.log if "Reshape" in line and "onnxruntime" in line]
    assert hosting.run(engine, {"x": np.zeros(6, np.float32)})["y"].shape == (2, 3)
    assert hosting.host.pid == first


@pytest.mark.slow
def test_the_log_of_a_child_that_died_is_kept(hosting: Hosting, endless: Run, tmp_path: Path) -> None:
    network = reshaping(tmp_path / "reshaping.onnx")
    _, engine = hosting.build(network, bound(network, checkpoint(tmp_path / "b.safetensors", network.weights(1))))
    with pytest.raises(BackendError):
        hosting.run(engine, {"x": np.zeros(5, np.float32)})
    child = hosting.host.pid
    assert child is not None

    with pytest.raises(EngineHostDied) as caught:
        call(hosting, endless, lambda: os.kill(child, signal.SIGKILL))

    assert [line for line in caught.value.log if "Reshape" in line]


def test_phases_are_told_in_order(hosting: Hosting, engine: EngineFile) -> None:
    phases = [one.phase for one in hosting.messages if isinstance(one, Progress)]
    assert phases == ["transform", "compile", "load", "write"]
    assert runs(hosting, engine)


def test_an_unknown_backend_is_refused_and_the_child_goes_on(hosting: Hosting, engine: EngineFile) -> None:
    first = hosting.host.pid
    with pytest.raises(BackendError, match="backend_not_installed"):
        hosting.host.call(Build("abacus", "", (), (), ""), on_message=hosting.messages.append, tick=lambda: None)
    assert runs(hosting, engine)
    assert hosting.host.pid == first


PARENT = """
import sys
from pathlib import Path
from workers.channel.host import EngineHost
host = EngineHost("cpu", 0, Path(sys.argv[1]))
host.start()
print(host.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_the_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        try:
            assert select.select([child], [], [], 30)[0]
        finally:
            os.close(child)


def test_describing_waits_for_the_childs_own_words_and_imports_no_backend_here(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from workers.channel.host import EngineHost
host = EngineHost("cpu", 5, Path(sys.argv[1]))
said = host.describe()
assert said.device["kind"] == "cpu" and said.device["memory_total"] > 0, said
offer = said.backends["onnxruntime"]
assert offer.makes == offer.loads == ("cpu",) and offer.to_json()["capabilities"]["refit"] is True, offer
assert (said.resident.engines, said.resident.nbytes, said.resident_limit) == (0, 0, 5), said
host.close()
assert host.describe() == said and host.pid is None
print(sorted({"onnxruntime", "onnx", "tensorrt", "tensorrt_rtx", "cuda"} & sys.modules.keys()))
"""
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert said.stdout.splitlines()[-1] == "[]"


def test_without_a_setting_the_child_keeps_four_gibibytes_of_engines_on_a_cpu(tmp_path: Path) -> None:
    host = EngineHost("cpu", None, tmp_path)
    assert host.describe().resident_limit == 4 << 30
    host.close()


def test_free_memory_is_told_anew_with_every_answer(
    hosting: Hosting, engine: EngineFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    outdated = replace(hosting.host._hello, device={"memory_free": -1})  # type: ignore[type-var]  # there has been one
    monkeypatch.setattr(hosting.host, "_hello", outdated)
    assert runs(hosting, engine)
    assert hosting.host.describe().device["memory_free"] > 0


@pytest.mark.parametrize("device", ["tpu:0", "cuda", "cuda:x"])
def test_a_device_nothing_runs_on_is_refused(tmp_path: Path, device: str) -> None:
    with pytest.raises(BackendError, match="unknown_device"):
        EngineHost(device, 0, tmp_path).describe()


def test_a_gpu_that_is_not_there_is_told_by_the_child_and_ends_it(tmp_path: Path) -> None:
    host = EngineHost("cuda:99", 0, tmp_path)
    with pytest.raises(BackendError, match="cuda:99: ") as caught:
        host.describe()
    assert caught.value.code in {"no_driver", "no_gpu"}
    assert host.pid is None


@pytest.mark.slow
def test_after_a_failure_of_the_device_the_child_is_replaced(
    hosting: Hosting, engine: EngineFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Reply(BackendError("device_failed", "CUDA failed."), Residency(), memory_free=0)
    first = hosting.host.pid
    with monkeypatch.context() as patched:
        patched.setattr("workers.channel.host._Conversation.ask", lambda *_: failed)
        with pytest.raises(BackendError, match="device_failed"):
            hosting.host.call(Run(engine, "", ""), on_message=hosting.messages.append, tick=lambda: None)
    assert hosting.host.pid is None
    assert runs(hosting, engine)
    assert hosting.host.pid != first


def test_a_failure_of_the_device_is_told_though_the_device_answers_nothing_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed = BackendError("device_failed", "CUDA failed (cudaErrorIllegalAddress).")
    sent: list[Any] = []
    engines: Any = SimpleNamespace(do=Mock(side_effect=failed), residency=Residency())
    request: Any = None
    monkeypatch.setattr(child, "memory_free", Mock(side_effect=failed))

    child._answer(request, sent.append, engines, memory_limit({"kind": "cuda", "memory_total": 0}, None), "cuda:0")

    assert sent == [Reply(failed, Residency(), memory_free=0)]


@pytest.mark.parametrize(
    ("device", "tensorrt", "library", "warned"),
    [
        ("cuda:0", "8.6.1", None, 1),
        ("cuda:0", "8.6.1", "it.so", 0),
        ("cuda:0", "10.1", None, 0),
        ("cpu", "8.6.1", None, 0),
    ],
)
def test_a_gpu_whose_attributes_are_not_remembered_is_told_of_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, tensorrt: str, library: str | None, warned: int
) -> None:
    monkeypatch.setattr("workers.channel.device_environment.installed_version", {"tensorrt": tensorrt}.get)
    monkeypatch.setattr("workers.channel.host.device_attributes_library", lambda: library)
    monkeypatch.setattr("workers.channel.host.EngineHostProcess", Mock())
    with capture_logs() as lines:
        EngineHost(device, None, tmp_path).start()
    assert ["install a C compiler" in line["remedy"] for line in lines] == [True] * warned


def test_what_several_threads_send_at_once_arrives_whole() -> None:
    ours, theirs = Pipe()
    send = child.one_at_a_time(theirs)
    messages = [LogLine("info", str(number) * 100_000) for number in range(4)]  # more than a pipe takes at once
    with ThreadPoolExecutor(len(messages)) as pool:
        for message in messages:
            pool.submit(lambda one: [send(one) for _ in range(20)], message)
        arrived = Counter(read_frame(ours.recv_bytes()) for _ in range(20 * len(messages)))
    assert arrived == dict.fromkeys(messages, 20)


@pytest.mark.slow
def test_a_child_that_ends_before_it_has_said_anything_is_an_error(hosting: Hosting) -> None:
    child = stopped(hosting)
    with pytest.raises(EngineHostDied, match="SIGKILL"):
        hosting.host.describe(tick=lambda: os.kill(child, signal.SIGKILL))
    assert hosting.host.pid is None


@pytest.mark.slow
def test_a_child_that_says_nothing_in_time_is_killed(hosting: Hosting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.channel.host.HELLO_S", 0.0)
    child = stopped(hosting)
    with pytest.raises(EngineHostDied, match="did not start within 0 s"):
        hosting.host.describe()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.slow
def test_a_request_that_a_stuck_child_does_not_read_can_be_canceled(hosting: Hosting, engine: EngineFile) -> None:
    os.kill(hosting.host.start().pid, signal.SIGSTOP)
    huge = replace(engine, options={"padding": "x" * (16 << 20)})  # no socket buffers that much

    def cancel() -> None:
        raise Canceled

    with pytest.raises(Canceled):
        call(hosting, Run(huge, "", ""), cancel)
    assert hosting.host.pid is None
    assert runs(hosting, engine)


def stopped(hosting: Hosting) -> int:
    """Start a child and stop it before it has come to say anything."""
    child = hosting.host.start().pid
    os.kill(child, signal.SIGSTOP)
    return child


def test_the_child_reports_nothing_to_the_runtimes_makers(hosting: Hosting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    hosting.host.describe()  # once it has spoken it is past its exec, until when /proc may show nothing
    environment = Path(f"/proc/{hosting.host.pid}/environ")
    assert b"ORT_DISABLE_TELEMETRY=1" in environment.read_bytes().split(b"\0")


def test_a_child_that_cannot_be_started_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", no_memory)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="Cannot allocate"):
        EngineHostProcess("cpu", None, tmp_path / "scratch")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert list((tmp_path / "scratch").iterdir()) == []
