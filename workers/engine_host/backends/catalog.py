"""Which backends this installation has, told from what is installed: nothing is imported to find out."""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from workers.channel.messages import BackendError
from workers.engine_host.backends.base import Backend, Room
from workers.engine_host.tensors import ParameterFiles


@dataclass(frozen=True, slots=True)
class Entry:
    """A backend this code can drive.

    `distributions` are the packages any of which brings the runtime, which is imported as `package` and may also have
    come without metadata; `module` has a function
    `open_backend(name, device, scratch, files, room)`; `devices` are kinds ("cpu", "cuda"); `install` brings it.
    """

    name: str
    package: str
    distributions: tuple[str, ...]
    module: str
    devices: tuple[str, ...]
    install: str


UNKNOWN_VERSION = "unknown"  # until the backend is opened

CATALOG = (
    Entry(
        name="onnxruntime",
        package="onnxruntime",
        distributions=("onnxruntime", "onnxruntime-gpu"),
        module="workers.engine_host.backends.onnxruntime.backend",
        devices=("cpu",),
        install="pip install onnxruntime",
    ),
    Entry(
        name="tensorrt",
        package="tensorrt",
        distributions=(
            *("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11"),
            *("tensorrt-bindings", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings", "tensorrt-cu11-bindings"),
        ),
        module="workers.engine_host.backends.tensorrt",
        devices=("cuda",),
        install="pip install 'enginesmith[tensorrt]'",
    ),
    Entry(
        name="tensorrt_rtx",
        package="tensorrt_rtx",
        distributions=(
            *("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
            *("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
        ),
        module="workers.engine_host.backends.tensorrt",
        devices=("cpu", "cuda"),
        install="pip install 'enginesmith[tensorrt-rtx]'",
    ),
)


def installed(device: str) -> dict[str, str]:
    """Return the version of each backend installed for `device` ("cpu", "cuda:0"), by name."""
    return {entry.name: found for entry in _fitting(device) if (found := _installed_version(entry))}


def remedies(device: str) -> str:
    """Say what can be installed for `device` that is not."""
    there = installed(device)
    return " or ".join(entry.install for entry in _fitting(device) if entry.name not in there)


def open_backend(name: str, device: str, scratch: Path, files: ParameterFiles, room: Room) -> Backend:
    """Import a backend and open it on `device`; BackendError "backend_not_installed" where there is none."""
    there = installed(device)
    if name not in there:
        raise BackendError(
            "backend_not_installed",
            f"{name} is not installed for {device}; this worker has {', '.join(there) or 'no backend'}. "
            "Install it there, or choose another backend.",
        )
    entry = next(entry for entry in CATALOG if entry.name == name)
    backend: Backend = import_module(entry.module).open_backend(name, device, scratch, files, room)
    return backend


def _fitting(device: str) -> list[Entry]:
    kind = device.partition(":")[0]
    return [entry for entry in CATALOG if kind in entry.devices]


def is_installed(name: str) -> bool:
    """Tell whether a backend's runtime is installed, for whatever device."""
    return any(entry.name == name and _installed_version(entry) for entry in CATALOG)


@cache
def _installed_version(entry: Entry) -> str | None:
    for distribution in entry.distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return UNKNOWN_VERSION if _has_code(entry.package) else None


def _has_code(package: str) -> bool:
    """Tell whether there is something to import; type stubs alone leave a folder that is no package."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None
