"""The environment in which an engine host sees its device, and no other."""

import os
from collections.abc import Mapping
from pathlib import Path
from sysconfig import get_config_var

from app.backends import UNKNOWN_VERSION, installed_version
from app.processes.gpus import listed_gpus
from workers.channel.messages import BackendError

SYSTEM_PRELOAD = Path("/etc/ld.so.preload")
PRELOAD_SEPARATORS = {" ", ":"}  # of LD_PRELOAD, which has no way to write them (man 8 ld.so)
LARGE_PAGES = "glibc.malloc.hugetlb"


def device_environment(device: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables with which a child sees `device` ("cpu", "cuda:N") and no other GPU, as its device 0.

    N counts within CUDA_VISIBLE_DEVICES where that is set, else all GPUs in the order of their PCI addresses. CUDA
    loads kernels when they are first used, as it does by itself from 12.2 on: a compiler brings more of them than a
    build uses. The C library asks the system for large pages, so that a plan is not put into fresh memory 4 KiB at a
    time. If the TensorRT here asks for the same attributes of the device again and again, these are answered from
    memory. Raises BackendError "unknown_device".
    """
    kind, _, number = device.partition(":")
    if device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    if kind != "cuda" or not number.isdecimal():
        raise BackendError("unknown_device", f"No backend runs on {device!r}. Use cpu, or cuda:0 for the first GPU.")
    library = device_attributes_library() if asks_again_and_again() else None
    return {
        "CUDA_DEVICE_ORDER": environment.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        "CUDA_VISIBLE_DEVICES": _visible(device, int(number), listed_gpus(environment)),
        "CUDA_MODULE_LOADING": environment.get("CUDA_MODULE_LOADING", "LAZY"),
        "GLIBC_TUNABLES": _with_large_pages(environment.get("GLIBC_TUNABLES", "")),
        "LD_PRELOAD": ":".join(filter(None, [environment.get("LD_PRELOAD"), library])),
    }


def asks_again_and_again() -> bool:
    """Whether the TensorRT that is installed asks the driver for each attribute anew, as the releases 8 do.

    One that is installed without metadata may be one of these.
    """
    found = installed_version("tensorrt") or ""
    return found == UNKNOWN_VERSION or found.startswith("8.")


def device_attributes_library() -> str | None:
    """Return the path of what `accelerate/device_attributes.c` was compiled to when Enginesmith was installed.

    It is None if no C compiler was at hand then, and if LD_PRELOAD cannot express the path. It is None as well if the
    system preloads something into every process: what shares a GPU among containers answers the same calls, and would
    not be asked any more.
    """
    if SYSTEM_PRELOAD.exists() and SYSTEM_PRELOAD.read_text().strip():
        return None
    path = Path(__file__).parents[1] / "engine_host" / "accelerate" / f"device_attributes{get_config_var('EXT_SUFFIX')}"
    return str(path) if path.exists() and not set(str(path)) & PRELOAD_SEPARATORS else None


def _with_large_pages(tunables: str) -> str:
    return tunables if LARGE_PAGES in tunables else ":".join(filter(None, [tunables, f"{LARGE_PAGES}=1"]))


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
