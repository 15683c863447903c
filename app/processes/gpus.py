"""The GPUs that this machine has, found without starting CUDA."""

import os
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from app.backends import installed_backends

HIDING = {"", "-1", "NoDevFiles"}  # such an entry of CUDA_VISIBLE_DEVICES hides all GPUs from there on
NODES = Path("/dev")


def listed_gpus(environment: Mapping[str, str] = os.environ) -> list[str] | None:
    """Return the entries of CUDA_VISIBLE_DEVICES, indices or UUIDs; None if it is not set, so that it hides no GPU."""
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    return list(takewhile(lambda entry: entry not in HIDING, (entry.strip() for entry in value.split(","))))


def visible_gpus(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of GPUs that this machine or container has and that CUDA_VISIBLE_DEVICES does not hide."""
    nodes = len(list(NODES.glob("nvidia[0-9]*")))
    listed = listed_gpus(environment)
    return nodes if listed is None or not nodes else len(listed)


def all_devices() -> list[str]:
    """Return "cpu", and "cuda:N" for each GPU if a backend that works on GPUs is installed."""
    return ["cpu", *(f"cuda:{number}" for number in range(visible_gpus() if installed_backends("cuda") else 0))]
