"""Which GPUs this machine has, told without starting CUDA."""

import os
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from app.backends import installed_backends

HIDING = {"", "-1", "NoDevFiles"}  # entries of CUDA_VISIBLE_DEVICES that hide themselves and all behind them
NODES = Path("/dev")


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


def all_devices() -> list[str]:
    """Return the CPU, and each GPU if a backend is installed that works on GPUs."""
    return ["cpu", *(f"cuda:{number}" for number in range(visible_gpus() if installed_backends("cuda") else 0))]
