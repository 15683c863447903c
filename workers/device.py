"""The device of a worker: which one it is, and what its engine host says of it."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from sysconfig import get_config_var
from typing import Any

from app.serve.gpus import listed_gpus
from workers.backends.base import BackendError

GIB = 1 << 30
CPU_RESIDENT_BYTES = 4 * GIB
DEVICE_FAILED = "device_failed"  # the code of an error after which a device's engine host is replaced
DEVICE_OUT_OF_MEMORY = "device_out_of_memory"
SYSTEM_PRELOAD = Path("/etc/ld.so.preload")
PRELOAD_SEPARATORS = {" ", ":"}  # of LD_PRELOAD, which has no way to write them (man 8 ld.so)
LARGE_PAGES = "glibc.malloc.hugetlb"


def device_environment(device: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables with which a child sees `device` ("cpu", "cuda:N") and no other GPU, as its device 0.

    N counts within CUDA_VISIBLE_DEVICES where that is set, else all GPUs in the order of their PCI addresses. CUDA
    loads kernels when they are first used, as it does by itself from 12.2 on: a compiler brings more of them than a
    build uses. The C library asks the system for large pages, so that a plan is not put into fresh memory 4 KiB at a
    time, and what is asked of the device again and again is answered from memory (`cuda/device_attributes.c`). Raises
    BackendError "unknown_device".
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
        "GLIBC_TUNABLES": _with_large_pages(environment.get("GLIBC_TUNABLES", "")),
        "LD_PRELOAD": ":".join(filter(None, [environment.get("LD_PRELOAD"), device_attributes_library()])),
    }


def device_attributes_library() -> str | None:
    """Return the path of what `cuda/device_attributes.c` becomes where a C compiler is at hand at installation.

    None as well where its path cannot be told to the loader, and where the system preloads something into every
    process: what shares a GPU among containers answers the same calls, and would not be asked any more.
    """
    if SYSTEM_PRELOAD.exists() and SYSTEM_PRELOAD.read_text().strip():
        return None
    path = Path(__file__).with_name("cuda") / f"device_attributes{get_config_var('EXT_SUFFIX')}"
    return str(path) if path.exists() and not set(str(path)) & PRELOAD_SEPARATORS else None


def _with_large_pages(tunables: str) -> str:
    return tunables if LARGE_PAGES in tunables else ":".join(filter(None, [tunables, f"{LARGE_PAGES}=1"]))


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
