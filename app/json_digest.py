"""The digest of a JSON value, as databases hold it."""

import hashlib
import json


def json_digest(value: object) -> str:
    """Return "sha256:<64 hex>" over the value's JSON: keys sorted, no spaces, ASCII alone.

    Rows are found by such digests, those of earlier releases too: the JSON must stay the same to the byte.
    """
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
