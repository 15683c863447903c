"""The backends of this installation, found by entry points and package metadata: no runtime is imported for that.

A backend is an entry point of the group `enginesmith.backends`. The entry point has the backend's name. It leads to a
`BackendEntry` in a module that is quick to import.
"""

import shlex
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, version
from importlib.util import find_spec

from app.plugins import find_entry_points

GROUP = "enginesmith.backends"
UNKNOWN_VERSION = "unknown"  # the version is found only when the backend is opened


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """What is known of a backend before its runtime is imported.

    `package` is the name under which its runtime is imported. Any of the `distributions` brings the runtime, and a
    runtime may also be there without metadata. `devices` are the kinds of device it works on ("cpu", "cuda").
    `factory` is "module:function", which an engine host imports and calls as `workers.engine_host.backends.catalog`
    says. `requirement` is the requirement by which pip installs the runtime. `preflight` is "module:function", which
    says of a definition what a build would make of it (`workers.engine_host.preflight.verdict.Preflight`). It works
    without the device. It is "" if the backend tells nothing before a build.
    """

    package: str
    distributions: tuple[str, ...]
    devices: tuple[str, ...]
    factory: str
    requirement: str
    preflight: str = ""

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
        """Whether the backend works on a device ("cpu", "cuda:0") or kind of device ("cuda")."""
        return device.partition(":")[0] in self.devices


def backend_names() -> tuple[str, ...]:
    """Return the names of all backends that this installation knows, whether or not their runtimes are installed.

    Raises PluginConflict if one name stands for two backends.
    """
    return tuple(_points())


def backend_entry(name: str) -> BackendEntry:
    """Return the entry of a backend.

    Raises:
        KeyError: no entry point has this name.
        ImportError: the entry point cannot be loaded, or does not lead to a BackendEntry.
    """
    point = _points()[name]
    try:
        found = point.load()
    except Exception as error:  # an error in another project's module must not take other backends with it
        raise ImportError(f"the entry point {point.value!r} cannot be loaded: {error!r}") from error
    if not isinstance(found, BackendEntry):
        what = f"the entry point {point.value!r} leads to {type(found).__name__}, not to a BackendEntry"
        raise ImportError(what)  # noqa: TRY004 - one error for every fault of an entry point
    return found


def installed_version(name: str) -> str | None:
    """Return the version of a backend's runtime, for whatever device; None if no runtime is installed."""
    return backend_entry(name).version if name in _points() else None


def installed_backends(device: str) -> dict[str, str]:
    """Return the version of each backend that is installed for a device ("cpu", "cuda:0", "cuda"), by name.

    A backend whose entry cannot be imported is included, so that its worker can say why it cannot be used.
    """
    return {name: found for name in backend_names() if (found := _version_for(name, device))}


def remedies(device: str) -> str:
    """Return the pip commands, joined by "or", that install the missing backends for a device."""
    there = installed_backends(device)
    missing = (backend_entry(name) for name in backend_names() if name not in there)
    return " or ".join(f"pip install {shlex.quote(entry.requirement)}" for entry in missing if entry.fits(device))


def has_code(package: str) -> bool:
    """Whether a package has code to import; type stubs alone leave a folder that is no package."""
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
