"""Opens backends. No other module imports one."""

from importlib import import_module
from pathlib import Path

from app.backends import backend_entry, installed_backends
from workers.channel.messages import BackendError
from workers.engine_host.backends.base import Backend, Room
from workers.engine_host.preflight.verdict import Preflight
from workers.engine_host.tensors import ParameterFiles


def open_preflight(name: str) -> Preflight | None:
    """Import a backend's preflight; None if it has none.

    Raises KeyError if there is no such backend, and ImportError if its entry or its preflight cannot be imported.
    """
    module, _, function = backend_entry(name).preflight.partition(":")
    if not module:
        return None
    preflight: Preflight = getattr(import_module(module), function)
    return preflight


def open_backend(name: str, device: str, scratch: Path, files: ParameterFiles, room: Room) -> Backend:
    """Import a backend's factory, and return the backend that it opens on `device` with these arguments.

    Raises BackendError "backend_not_installed" if the backend is not installed for this device, ImportError if it is
    installed and cannot be imported, and what the factory raises.
    """
    there = installed_backends(device)
    if name not in there:
        raise BackendError(
            "backend_not_installed",
            f"{name} is not installed for {device}; this worker has {', '.join(there) or 'no backend'}. "
            "Install it there, or choose another backend.",
        )
    module, _, function = backend_entry(name).factory.partition(":")
    backend: Backend = getattr(import_module(module), function)(name, device, scratch, files, room)
    return backend
