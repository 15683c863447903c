"""Which backends this installation has, told by entry points and package metadata: no runtime is imported to find out.

A backend is an entry point of the group `enginesmith.backends`. Its name is the backend's, and it leads to a
`BackendEntry` in a module that is quick to import.
"""

import shlex
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, version
from importlib.util import find_spec

from app.plugins import find_entry_points

GROUP = "enginesmith.backends"
UNKNOWN_VERSION = "unknown"  # until the backend is opened


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """What is known of a backend before anything of it is imported.

    `package` is the name under which its runtime is imported, and any of the `distributions` brings it; a runtime may
    also be there without metadata. `devices` are the kinds it works on ("cpu", "cuda"). `factory` is "module:function",
    which an engine host imports and calls as `workers.engine_host.backends.catalog` says. `requirement` is what pip
    installs to have the runtime.
    """

    package: str
    distributions: tuple[str, ...]
    devices: tuple[str, ...]
    factory: str
    requirement: str

    @property
    def version(self) -> str | None:
        """The version of the runtime; None if it is not installed, "unknown" if only its code is there."""
        for distribution in self.distributions:
            try:
                return version(distribution)
            except PackageNotFoundError:
                continue
        return UNKNOWN_VERSION if has_code(self.package) else None

    def fits(self, device: str) -> bool:
        """Whether it works on a device ("cpu", "cuda:0") or kind of device ("cuda")."""
        return device.partition(":")[0] in self.devices


def backend_names() -> tuple[str, ...]:
    """Return the names of all backends that this installation knows, with their runtimes installed or not.

    Raises PluginConflict if one name stands for two backends.
    """
    return tuple(_points())


def backend_entry(name: str) -> BackendEntry:
    """Return what is known of a backend.

    Raises:
        KeyError: no entry point has this name.
        ImportError: the entry point leads nowhere, or to something else.
    """
    point = _points()[name]
    try:
        found = point.load()
    except Exception as error:  # whatever somebody else's module raises must not take other backends with it
        raise ImportError(f"the entry point {point.value!r} cannot be loaded: {error!r}") from error
    if not isinstance(found, BackendEntry):
        what = f"the entry point {point.value!r} leads to {type(found).__name__}, not to a BackendEntry"
        raise ImportError(what)  # noqa: TRY004 - one error, whatever is wrong with it
    return found


def installed_version(name: str) -> str | None:
    """Return the version of a backend's runtime, for whatever device; None if there is none."""
    return backend_entry(name).version if name in _points() else None


def installed_backends(device: str) -> dict[str, str]:
    """Return the version of each backend that is installed for a device ("cpu", "cuda:0", "cuda"), by name.

    A backend whose entry cannot be imported is among them, so that its worker can say why it is of no use.
    """
    return {name: found for name in backend_names() if (found := _version_for(name, device))}


def remedies(device: str) -> str:
    """Say what can be installed for a device that is not."""
    there = installed_backends(device)
    missing = (backend_entry(name) for name in backend_names() if name not in there)
    return " or ".join(f"pip install {shlex.quote(entry.requirement)}" for entry in missing if entry.fits(device))


def has_code(package: str) -> bool:
    """Whether there is something to import; type stubs alone leave a folder that is no package."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def _version_for(name: str, device: str) -> str | None:
    try:
        entry = backend_entry(name)
    except ImportError:
        return _distribution_version(_points()[name])
    return entry.version if entry.fits(device) else None


def _distribution_version(point: EntryPoint) -> str:
    return point.dist.version if point.dist is not None else UNKNOWN_VERSION


@cache
def _points() -> dict[str, EntryPoint]:
    return find_entry_points(GROUP)
