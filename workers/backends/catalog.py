"""Which backends this installation has, told from package metadata alone: nothing is imported to find out."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from workers.backends.base import Backend, BackendError
from workers.tensors import ParameterFiles


@dataclass(frozen=True, slots=True)
class Entry:
    """A backend this code can drive.

    `distributions` are the packages any of which brings the runtime; `module` has a function
    `open_backend(device, scratch, files)`; `devices` are kinds ("cpu", "cuda").
    """

    name: str
    distributions: tuple[str, ...]
    module: str
    devices: tuple[str, ...]
    capabilities: Mapping[str, Any]


CATALOG = (
    Entry(
        name="onnxruntime",
        distributions=("onnxruntime", "onnxruntime-gpu"),
        module="workers.backends.onnxruntime",
        devices=("cpu",),
        capabilities={
            "build": True,
            "refit": True,
            "run": True,
            "profiles": "checked",
            "plan_holds_weights": False,
            "options": {"optimization": ["extended", "basic", "none"]},
        },
    ),
)


def installed(device: str) -> dict[str, dict[str, Any]]:
    """Return version and capabilities of each backend installed for `device` ("cpu", "cuda:0"), by name."""
    kind = device.partition(":")[0]
    return {
        entry.name: {"version": found, "capabilities": dict(entry.capabilities)}
        for entry in CATALOG
        if kind in entry.devices and (found := _installed_version(entry.distributions)) is not None
    }


def open_backend(name: str, device: str, scratch: Path, files: ParameterFiles) -> Backend:
    """Import a backend and open it on `device`; BackendError "backend_not_installed" where there is none."""
    offered = installed(device)
    if name not in offered:
        raise BackendError(
            "backend_not_installed",
            f"{name} is not installed for {device}; this worker offers {', '.join(offered) or 'no backend'}. "
            "Install it there, or choose another backend.",
        )
    entry = next(entry for entry in CATALOG if entry.name == name)
    backend: Backend = import_module(entry.module).open_backend(device, scratch, files)
    return backend


@cache
def _installed_version(distributions: tuple[str, ...]) -> str | None:
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None
