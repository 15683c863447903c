"""What makes two engines equal, and what makes two engines relatives.

Both digests are "sha256:<64 hex>" over canonical JSON, with nulls left out and whole numbers written as integers.
Options are given without those that have their default value, so that naming a default, or a later release that adds
an option, changes nothing.
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
    """Digest everything that decides what an engine computes.

    The backend's version and the device are left out: they decide how fast it computes, and whether a
    worker can load it, which the fleet of the moment knows.
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
    rules: Sequence[Any],
) -> str:
    """Digest everything but the weights: engines of one recipe can be refitted into one another."""
    return _digest(definition=definition_digest, backend=backend, profiles=profiles, options=options, rules=rules)


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
