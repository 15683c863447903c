"""Finds what is added by being there: the modules of one of our folders, and the entry points of installed packages."""

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
    found: dict[str, EntryPoint] = {}
    for plugin in [*own, *sorted(entry_points(group=group), key=attrgetter("name"))]:
        first = found.setdefault(plugin.name, plugin)
        if first.value != plugin.value:
            raise PluginConflict(
                f"'{plugin.name}' of {group} is given by {first.value} and by {plugin.value}. "
                "Uninstall one of the two packages, or rename its entry point."
            )
    return found
