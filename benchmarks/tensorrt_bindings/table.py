"""The committed table: what each release has of the classes that the adapter uses, and what the adapter finds there."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.tensorrt_bindings.spans import spans
from benchmarks.tensorrt_bindings.uses import Use
from benchmarks.tensorrt_bindings.wheels import Release

TABLE: Final = Path(__file__).parents[1] / "results" / "tensorrt-releases.json"
Looks = Mapping[Release, Mapping[str, Any]]


def table(looks: Looks, uses: Sequence[Use]) -> dict[str, Any]:
    """Return the table, as JSON; `looks` is what the bindings of each release have.

    "members" says in which releases a member of a class or enum is there, "signatures" how those that the adapter calls
    may be called, with which releases, "callbacks" in which releases a method of ours is called.
    """
    labels = [release.label for release in looks]
    names = {use.owner or use.member for use in uses}
    called = {_callee(use) for use in uses if use.positional >= 0}
    return {
        "releases": [_release(release, look) for release, look in looks.items()],
        "members": _having(looks, labels, lambda look: _members(look, names)),
        "callbacks": _having(looks, labels, lambda look: look["callbacks"]),
        "signatures": {name: _having(looks, labels, _overloads(name)) for name in sorted(called)},
    }


def written() -> dict[str, Any]:
    """Return the table as it is committed."""
    found: dict[str, Any] = json.loads(TABLE.read_text())
    return found


def _release(release: Release, look: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "release": release.label,
        "library": release.library,
        "bindings": release.requirement,
        "capabilities": look["capabilities"],
    }


def _having(looks: Looks, labels: Sequence[str], names: Any) -> dict[str, str]:  # noqa: ANN401 - of a look, its names
    by_name: dict[str, list[str]] = {}
    for release, look in looks.items():
        for name in names(look):
            by_name.setdefault(name, []).append(release.label)
    return {name: spans(having, labels) for name, having in sorted(by_name.items())}


def _members(look: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Return all members of these classes and enums, and the names themselves."""
    found = []
    for name in names:
        members = {**look["classes"], **look["enums"]}.get(name)
        if members is not None or name in look["values"]:
            found.append(name)
        found += [f"{name}.{member}" for member in members or ()]
    return found


def _overloads(name: str) -> Any:  # noqa: ANN401 - a function of a look
    owner, _, member = name.rpartition(".")
    return lambda look: look["classes"].get(owner, {}).get(member, ())


def _callee(use: Use) -> str:
    return use.name if use.owner else f"{use.member}.__init__"
