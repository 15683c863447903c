"""The digest of a JSON value, by which rows of the database are found."""

import hashlib
import json


def json_digest(value: object) -> str:
    """Return "sha256:<64 hex>" over the value's JSON: keys sorted, no spaces, ASCII only.

    Rows are found by such digests, and earlier releases have written some of these rows. So the JSON of a value must
    stay the same to the byte.
    """
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
