"""Finds plugins: the modules of one of this project's folders, and the entry points of installed packages."""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from operator import attrgetter
from pkgutil import iter_modules


class PluginConflict(Exception):
    """Two packages give the same name to different plugins; the text names both, and the remedy."""


def find_plugins(package: str, group: str) -> dict[str, EntryPoint]:
    """Return by name the modules of a package ("app.definitions.families"), then the entry points of a group.

    Nothing is imported here: `load()` of an entry point imports it. An entry point of the group names a module like
    those of the package, or an object with the same attributes. Raises PluginConflict if two plugins have one name.
    """
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    modules = iter_modules(folders) if folders else ()
    own = [EntryPoint(module.name, f"{package}.{module.name}", group) for module in modules]
    return _by_name([*own, *find_entry_points(group).values()])


def find_entry_points(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name; raises PluginConflict if two of them have one name."""
    return _by_name(sorted(entry_points(group=group), key=attrgetter("name")))


def _by_name(plugins: Iterable[EntryPoint]) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for plugin in plugins:
        first = found.setdefault(plugin.name, plugin)
        if first.value != plugin.value:
            raise PluginConflict(
                f"'{plugin.name}' of {plugin.group} is given by {first.value} and by {plugin.value}. "
                "Uninstall one of the two packages, or rename its entry point."
            )
    return found
