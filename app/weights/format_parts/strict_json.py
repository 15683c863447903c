"""JSON objects in files that nobody vouches for."""

import json
from collections import Counter
from typing import Any, Final, NoReturn

from app.weights.checkpoint import CheckpointError

MAX_JSON_PARTS: Final = 2_000_000


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """Return the object that `raw` is, which starts with "{"; `what` is its name in errors, as in "The header".

    Raises CheckpointError for what is no object, for a key that comes twice, and for more than MAX_JSON_PARTS parts.
    """
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_JSON_PARTS:
        raise CheckpointError("header_too_large", f"{what} has more than {MAX_JSON_PARTS} parts. Split the file.")
    try:
        value: dict[str, Any] = json.loads(raw, object_pairs_hook=_unique, parse_constant=_refuse)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError("bad_header", f"{what} is not JSON: {error}. Write the file again.") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
    raise CheckpointError("bad_header", f"The file has the key {repeated!r:.200} twice. Write it again.")


def _refuse(constant: str) -> NoReturn:
    raise CheckpointError("bad_header", f"The file holds {constant}, which is not JSON. Write it again.")
