"""The device of a worker: which one it is, and what its engine host says of it."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from app.serve.gpus import listed_gpus
from workers.backends.base import BackendError

GIB = 1 << 30
CPU_RESIDENT_BYTES = 4 * GIB
DEVICE_FAILED = "device_failed"  # the code of an error after which a device's engine host is replaced
DEVICE_OUT_OF_MEMORY = "device_out_of_memory"


def device_environment(device: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables with which a child sees `device` ("cpu", "cuda:N") and no other GPU, as its device 0.

    N counts within CUDA_VISIBLE_DEVICES where that is set, else all GPUs in the order of their PCI addresses. CUDA
    loads kernels when they are first used, as it does by itself from 12.2 on: a compiler brings more of them than a
    build uses. Raises BackendError "unknown_device".
    """
    kind, _, number = device.partition(":")
    if device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    if kind != "cuda" or not number.isdecimal():
        raise BackendError("unknown_device", f"No backend runs on {device!r}. Use cpu, or cuda:0 for the first GPU.")
    return {
        "CUDA_DEVICE_ORDER": environment.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        "CUDA_VISIBLE_DEVICES": _visible(device, int(number), listed_gpus(environment)),
        "CUDA_MODULE_LOADING": environment.get("CUDA_MODULE_LOADING", "LAZY"),
    }


def describe_device(device: str) -> dict[str, Any]:
    """Return {"kind", "name", "memory_total", "memory_free"}, memory in bytes; for a GPU its engine host only.

    A GPU has "compute_capability" ("9.0") and "driver" (the newest CUDA version it takes, "12.8") as well. Raises
    BackendError "no_driver", "no_gpu" or "cuda_not_installed".
    """
    return _describe_gpu(device) if device.startswith("cuda") else _describe_cpu()


def memory_free(device: str) -> int:
    """Return the bytes of memory free on the device of this process."""
    if device.startswith("cuda"):
        from workers.cuda import memory_info  # noqa: PLC0415 - CUDA is loaded in the engine host of a GPU only

        return memory_info().free
    return _memory().get("MemAvailable", 0)


def resident_limit(device: Mapping[str, Any]) -> int:
    """Return the memory that engines kept loaded may take where no setting says: 4 GiB, or half of a GPU's."""
    return CPU_RESIDENT_BYTES if device["kind"] == "cpu" else int(device["memory_total"]) // 2


def _visible(device: str, number: int, listed: list[str] | None) -> str:
    """Return the index or UUID of a visible GPU."""
    if listed is None:
        return str(number)
    if number >= len(listed):
        raise BackendError(
            "unknown_device",
            f"{device} does not exist: CUDA_VISIBLE_DEVICES shows {len(listed)} GPUs ({', '.join(listed) or 'none'}), "
            "counted from 0. Name one of them, or change the variable.",
        )
    return listed[number]


def _describe_gpu(device: str) -> dict[str, Any]:
    from workers.cuda import device_facts  # noqa: PLC0415 - CUDA is loaded in the engine host of a GPU only

    return device_facts(device)


def _describe_cpu() -> dict[str, Any]:
    memory = _memory()
    return {
        "kind": "cpu",
        "name": f"{_processor()} ({len(os.sched_getaffinity(0))} cores)",
        "memory_total": memory.get("MemTotal", 0),
        "memory_free": memory.get("MemAvailable", 0),
    }


def _memory() -> dict[str, int]:
    """Read /proc/meminfo, whose "kB" are 1024 bytes (man 5 proc_meminfo)."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {parts[0].rstrip(":"): int(parts[1]) * 1024 for parts in lines}


@cache
def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return os.uname().machine
