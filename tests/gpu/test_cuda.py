import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from workers.channel.device_environment import asks_again_and_again, device_attributes_library
from workers.channel.host import EngineHost
from workers.channel.process import Reach
from workers.engine_host.cuda import (
    CudaError,
    CudaEvent,
    DeviceBuffer,
    Staging,
    Stream,
    copy_to_device,
    copy_to_host,
    memory_info,
)
from workers.engine_host.device import describe_device

GIB = 1 << 30
PROPERTIES = """
from cuda.bindings import runtime
for _ in range(2):
    status, found = runtime.cudaGetDeviceProperties(0)
    assert int(status) == 0
    print({name: str(getattr(found, name)) for name in dir(found) if isinstance(getattr(found, name), (int, bytes))})
print("preloaded:", "device_attributes" in open("/proc/self/maps").read())
"""


def properties(preload: str) -> list[str]:
    """What a process is told that asks for the device's properties twice."""
    environment = os.environ | {"LD_PRELOAD": preload}
    command = [sys.executable, "-c", PROPERTIES]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_gpu_is_described() -> None:
    device = describe_device("cuda:0")
    assert device["kind"] == "cuda"
    assert device["name"].strip() == device["name"] != ""
    assert 0 < device["memory_free"] <= device["memory_total"]
    assert [int(part) for part in device["compute_capability"].split(".")] >= [5, 0]
    assert int(device["driver"].split(".")[0]) >= 12
    facts = device["fingerprint"]["facts"]
    assert facts["name"] == device["name"]
    assert facts["compute_capability"] == device["compute_capability"]
    assert facts["multiprocessors"] > 0
    assert facts["l2_bytes"] > 1 << 10
    assert facts["ecc"] in {True, False}
    assert facts["clock_mhz"] > 100


def test_what_is_remembered_of_the_gpu_is_what_the_driver_says() -> None:
    library = device_attributes_library()
    assert library is not None
    (plain, again, there), remembered = properties(""), properties(library)
    assert (plain, there) == (again, "preloaded: False")
    assert remembered == [plain, plain, "preloaded: True"]
    assert "warpSize" in plain


def test_arrays_come_back_from_the_device_as_they_were() -> None:
    sent = np.random.default_rng(0).standard_normal((257, 1031)).astype(np.float32)
    received = np.zeros_like(sent)
    with Stream() as stream, DeviceBuffer(sent.nbytes) as buffer:
        copy_to_device(buffer.pointer, sent, stream)
        copy_to_host(received, buffer.pointer, stream)
        stream.synchronize()
    assert np.array_equal(sent, received)


def test_arrays_come_through_page_locked_memory_as_they_were() -> None:
    staging = Staging()
    sent = [np.random.default_rng(seed).integers(0, 256, (GIB >> 3) + seed, np.uint8) for seed in range(3)]
    received = [np.zeros_like(one) for one in sent]
    with Stream() as stream, DeviceBuffer(GIB) as buffer:
        for number, one in enumerate(sent):
            staging.copy_to_device(buffer.pointer + number * GIB // 4, one, stream)
        for number, one in enumerate(received):
            copy_to_host(one, buffer.pointer + number * GIB // 4, stream)
        stream.synchronize()
    assert all(np.array_equal(*pair) for pair in zip(sent, received, strict=True))


def test_memory_is_given_back_when_a_buffer_is_closed() -> None:
    with DeviceBuffer(1):  # so that the context is there
        free = memory_info().free
    with DeviceBuffer(GIB):
        assert memory_info().free < free - GIB * 3 // 4  # the driver keeps some room of its own
    assert memory_info().free >= free - GIB // 16


def test_more_than_the_device_has_is_an_error_after_which_it_works_as_before() -> None:
    with pytest.raises(CudaError) as caught:
        DeviceBuffer(memory_info().total * 2)
    assert caught.value.code == "device_out_of_memory"
    with DeviceBuffer(GIB) as buffer:
        assert buffer.pointer


def test_the_time_between_two_events_is_that_of_the_work_between_them() -> None:
    little, much = np.zeros(1, np.uint8), np.zeros(GIB, np.uint8)
    with Stream() as stream, DeviceBuffer(GIB) as buffer:
        start, small, large = CudaEvent(), CudaEvent(), CudaEvent()
        start.record(stream)
        copy_to_device(buffer.pointer, little, stream)
        small.record(stream)
        copy_to_device(buffer.pointer, much, stream)
        large.record(stream)
        assert 0 < small.seconds_since(start) < large.seconds_since(small)


def test_an_engine_host_sees_one_gpu_and_says_what_it_can_do(tmp_path: Path) -> None:
    host = EngineHost("cuda:0", None, tmp_path, Reach(writable=(tmp_path,)))
    described = host.describe()
    assert described.device["kind"] == "cuda"
    assert described.resident_limit == described.device["memory_total"] // 2
    assert host.pid is not None
    environment = Path(f"/proc/{host.pid}/environ").read_bytes().split(b"\0")
    (visible,) = [entry for entry in environment if entry.startswith(b"CUDA_VISIBLE_DEVICES=")]
    assert b"," not in visible
    is_there = "device_attributes" in Path(f"/proc/{host.pid}/maps").read_text()
    assert is_there == described.device["device_attributes_remembered"] == asks_again_and_again()
    host.close()


def test_the_memory_of_a_killed_engine_host_is_free_again(tmp_path: Path) -> None:
    free = memory_info().free
    host = EngineHost("cuda:0", None, tmp_path, Reach(writable=(tmp_path,)))
    host.describe()
    assert host.pid is not None
    os.kill(host.pid, signal.SIGKILL)
    host.close()
    assert memory_info().free >= free - GIB // 16
