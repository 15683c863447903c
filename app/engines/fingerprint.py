"""The digests that tell whether engines are equal, and whether they can be refitted into one another.

Both digests are "sha256:<64 hex>" over canonical JSON, with nulls left out and whole numbers written as integers.
Options that have their default value are left out. So a digest stays the same if a request names a default, or if a
later release adds an option.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from app.json_digest import json_digest


def fingerprint(
    *,
    definition_digest: str,
    weights_digest: str,
    binding_digest: str,
    backend: str,
    profiles: Sequence[Any],
    options: Mapping[str, Any],
) -> str:
    """Return a digest of everything that decides which values an engine computes.

    The backend's version and the device are left out. They decide how fast the engine is, and which workers can load
    it; the workers alive tell that.
    """
    return _digest(
        definition=definition_digest,
        weights=weights_digest,
        binding=binding_digest,
        backend=backend,
        profiles=profiles,
        options=options,
    )


def recipe(
    *,
    definition_digest: str,
    backend: str,
    profiles: Sequence[Any],
    options: Mapping[str, Any],
) -> str:
    """Return a digest of what is compiled: engines of one recipe can be refitted into one another.

    Neither weights nor binding rules are part of it.

    Earlier releases digested the rules as well. An empty list in their place keeps the recipes of engines without
    rules; a migration has digested the others again.
    """
    return _digest(definition=definition_digest, backend=backend, profiles=profiles, options=options, rules=[])


def _digest(**content: object) -> str:
    return json_digest(_plain(content))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
