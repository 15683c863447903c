"""Finds what is added by being there: the modules of one of our folders, and the entry points of installed packages."""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from operator import attrgetter
from pkgutil import iter_modules


class PluginConflict(Exception):
    """Two packages give the same name; the text says which, and the remedy."""


def find_plugins(package: str, group: str) -> dict[str, EntryPoint]:
    """Return by name the modules of a package ("app.definitions.families"), then the entry points of a group.

    `load()` imports one. An entry point names a module such as those of the package, or an object with the same
    attributes. Nothing is imported here. Raises PluginConflict if one name stands for two things.
    """
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    own = [EntryPoint(one.name, f"{package}.{one.name}", group) for one in iter_modules(folders)] if folders else []
    return _by_name([*own, *find_entry_points(group).values()])


def find_entry_points(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name; PluginConflict if one name stands for two things."""
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
