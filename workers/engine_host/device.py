"""What the engine host says of the device that it runs on."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.json_digest import json_digest
from app.processes.memory import meminfo
from workers.engine_host.processor import processor_facts, processor_name

GIB = 1 << 30
CPU_RESIDENT_BYTES = 4 * GIB
DEVICE_ATTRIBUTES = "/accelerate/device_attributes."


def describe_device(device: str) -> dict[str, Any]:
    """Return {"kind", "name", "memory_total", "memory_free"}, memory in bytes.

    "fingerprint" is what decides which plans it loads and how fast it runs them: {"digest", "facts"}. Devices of equal
    digests are alike. A GPU also has "compute_capability" ("9.0"), "driver" (the newest CUDA version that it takes,
    "12.8") and "device_attributes_remembered". Only the GPU's own engine host may ask. Raises BackendError "no_driver",
    "no_gpu" or "cuda_not_installed".
    """
    described = _describe_gpu(device) if device.startswith("cuda") else _describe_cpu()
    facts = described.pop("facts")
    return described | {"fingerprint": {"digest": json_digest(facts), "facts": facts}}


def memory_free(device: str) -> int:
    """Return the free memory of this process's device, in bytes."""
    if device.startswith("cuda"):
        from workers.engine_host.cuda import memory_info  # noqa: PLC0415 - CUDA is loaded in the engine host of a GPU only

        return memory_info().free
    return meminfo().get("MemAvailable", 0)


def resident_limit(device: Mapping[str, Any]) -> int:
    """Return the bytes that resident engines may take if no setting says so: 4 GiB, or half of a GPU's memory."""
    return CPU_RESIDENT_BYTES if device["kind"] == "cpu" else int(device["memory_total"]) // 2


def _describe_gpu(device: str) -> dict[str, Any]:
    from workers.engine_host.cuda import device_facts  # noqa: PLC0415 - CUDA is loaded in the engine host of a GPU only

    return device_facts(device) | {"device_attributes_remembered": _remembers_attributes()}


def _remembers_attributes() -> bool:
    """Whether `accelerate/device_attributes.c` is in this process; LD_PRELOAD may name it without it being loaded."""
    return DEVICE_ATTRIBUTES in Path("/proc/self/maps").read_text()


def _describe_cpu() -> dict[str, Any]:
    memory = meminfo()
    return {
        "kind": "cpu",
        "name": f"{processor_name()} ({len(os.sched_getaffinity(0))} cores)",
        "memory_total": memory.get("MemTotal", 0),
        "memory_free": memory.get("MemAvailable", 0),
        "facts": processor_facts(),
    }
