"""A client's Idempotency-Key: a request sent again with the same key gives the same job."""

import hashlib
import json

from sqlalchemy.orm import Session

from app.errors import Invalid
from app.jobs.tables import IdempotencyKey

MAX_KEY = 255


def request_digest(method: str, path: str, body: bytes) -> str:
    """Return a digest (SHA-256, 64 hex digits) of a request; the order of JSON keys does not change it."""
    try:
        canonical = json.dumps(json.loads(body), sort_keys=True) if body else ""
    except (ValueError, RecursionError):
        canonical = body.hex()
    return hashlib.sha256("\n".join((method, path, canonical)).encode()).hexdigest()


def earlier_job(session: Session, key: str, digest: str) -> str | None:
    """Return the id of the job that a key has made, or None.

    Raises Invalid "bad_idempotency_key", or "idempotency_key_reused" if the key was sent with another request.
    """
    if not 0 < len(key) <= MAX_KEY or not key.isprintable():
        raise Invalid(f"An Idempotency-Key has 1 to {MAX_KEY} printable characters.", code="bad_idempotency_key")
    row = session.get(IdempotencyKey, key)
    if row is None:
        return None
    if row.request_digest != digest:
        raise Invalid(
            "This Idempotency-Key was sent with another request before. Send a new key with a new request; "
            "repeat a key only to repeat the very same request.",
            code="idempotency_key_reused",
        )
    return row.job_id


def remember(session: Session, key: str, digest: str, job_id: str) -> None:
    """Tie a key to the job it made.

    If a concurrent request with the same key was first, the flush raises IntegrityError (the key is the primary key).
    """
    session.add(IdempotencyKey(key=key, request_digest=digest, job_id=job_id))
    session.flush()
