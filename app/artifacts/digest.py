"""The one spelling of a digest: "sha256:" and 64 lower-case hexadecimal digits."""

import hashlib
import re
from pathlib import Path

from app.errors import Invalid

DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def hex_of(digest: str) -> str:
    """Return the hexadecimal part of a digest; only what this has checked may become part of a path or key.

    Raises:
        Invalid: with code "bad_digest".
    """
    match = DIGEST.fullmatch(digest)
    if match is None:
        raise Invalid(
            f"{digest[:100]!r} is not a digest. Write 'sha256:' and 64 lower-case hexadecimal digits, "
            "as `sha256sum FILE` prints them.",
            code="bad_digest",
        )
    return match[1]


def file_digest(path: Path) -> str:
    """Read a file and return its digest."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def require_equal(actual: str, expected: str) -> None:
    """Compare the digest of the bytes that arrived with the one announced.

    Raises:
        Invalid: with code "digest_mismatch", if they differ.
    """
    if actual != expected:
        raise Invalid(
            f"The bytes received have the digest {actual}, not {expected}; nothing was kept. "
            "Compute it with `sha256sum FILE` and send the same file.",
            code="digest_mismatch",
        )
