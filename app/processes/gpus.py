"""Which GPUs this machine has, told without starting CUDA."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

HIDING = {"", "-1", "NoDevFiles"}  # entries of CUDA_VISIBLE_DEVICES that hide themselves and all behind them
NODES = Path("/dev")
TENSORRT = ("tensorrt", "tensorrt_rtx")


def listed_gpus(environment: Mapping[str, str] = os.environ) -> list[str] | None:
    """Return the entries of CUDA_VISIBLE_DEVICES, indices or UUIDs; None where it is not set and hides none."""
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    return list(takewhile(lambda entry: entry not in HIDING, (entry.strip() for entry in value.split(","))))


def visible_gpus(environment: Mapping[str, str] = os.environ) -> int:
    """Count the GPUs that this machine, or container, has and CUDA_VISIBLE_DEVICES shows."""
    nodes = len(list(NODES.glob("nvidia[0-9]*")))
    listed = listed_gpus(environment)
    return nodes if listed is None or not nodes else len(listed)


def has_tensorrt() -> bool:
    """Whether a TensorRT can be imported; type stubs alone, a folder without code, are none."""
    return any((spec := find_spec(name)) is not None and spec.origin is not None for name in TENSORRT)


def all_devices() -> list[str]:
    """Return the CPU, and each GPU where there is a TensorRT to use it."""
    return ["cpu", *(f"cuda:{number}" for number in range(visible_gpus() if has_tensorrt() else 0))]
