"""The environment in which an engine host sees its device, and no other."""

import os
from collections.abc import Mapping
from pathlib import Path
from sysconfig import get_config_var

from app.backends import UNKNOWN_VERSION, installed_version
from app.processes.gpus import listed_gpus
from workers.channel.messages import BackendError

SYSTEM_PRELOAD = Path("/etc/ld.so.preload")
PRELOAD_SEPARATORS = {" ", ":"}  # of LD_PRELOAD; a path in it cannot contain them (man 8 ld.so)
LARGE_PAGES = "glibc.malloc.hugetlb"


def device_environment(device: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables with which a child sees `device` ("cpu", "cuda:N") and no other GPU, as its device 0.

    N counts the GPUs that CUDA_VISIBLE_DEVICES lists. If that is not set, N counts all GPUs in the order of their PCI
    addresses. CUDA loads each kernel when it is first used, because a compiler brings more kernels than a build uses;
    from 12.2 on this is CUDA's default. The C library asks the system for large pages, so that a plan is not put into
    fresh memory 4 KiB at a time. If the installed TensorRT asks for the same attributes of the device again and again,
    a preloaded library answers it from memory. Raises BackendError "unknown_device".
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
    """Whether the installed TensorRT asks the driver for each attribute anew, as the releases 8 do.

    A TensorRT that is installed without metadata may be one of these, so it counts as one.
    """
    found = installed_version("tensorrt") or ""
    return found == UNKNOWN_VERSION or found.startswith("8.")


def device_attributes_library() -> str | None:
    """Return the path of what `accelerate/device_attributes.c` was compiled to when Enginesmith was installed.

    It is None if no C compiler was at hand then, or if LD_PRELOAD cannot express the path. It is also None if the
    system preloads a library into every process. Such a library may share a GPU among containers and answer the same
    calls; with ours in front it would not be asked any more.
    """
    if SYSTEM_PRELOAD.exists() and SYSTEM_PRELOAD.read_text().strip():
        return None
    path = Path(__file__).parents[1] / "engine_host" / "accelerate" / f"device_attributes{get_config_var('EXT_SUFFIX')}"
    return str(path) if path.exists() and not set(str(path)) & PRELOAD_SEPARATORS else None


def _with_large_pages(tunables: str) -> str:
    return tunables if LARGE_PAGES in tunables else ":".join(filter(None, [tunables, f"{LARGE_PAGES}=1"]))


def _visible(device: str, number: int, listed: list[str] | None) -> str:
    """Return the index or UUID of GPU `number`; `listed` is what CUDA_VISIBLE_DEVICES lists, None if it is not set."""
    if listed is None:
        return str(number)
    if number >= len(listed):
        raise BackendError(
            "unknown_device",
            f"{device} does not exist: CUDA_VISIBLE_DEVICES shows {len(listed)} GPUs ({', '.join(listed) or 'none'}), "
            "counted from 0. Name one of them, or change the variable.",
        )
    return listed[number]
