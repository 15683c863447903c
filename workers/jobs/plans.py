"""Checks that a plan is ours before anything loads it: deserializing a plan runs the code in it."""

import os
from pathlib import Path

from app.artifacts.digest import file_digest
from app.artifacts.signing import PlanSigner
from app.errors import ServiceError


class PlanVerifier:
    """Checks a plan's signature each time, and its bytes once for as long as the file stays untouched."""

    def __init__(self, signer: PlanSigner) -> None:
        self._signer = signer
        self._seen: dict[str, tuple[int, ...]] = {}

    def verify(self, path: Path, digest: str, signature: str) -> None:
        """Raise ServiceError "bad_signature" or "plan_damaged" if the file is not the plan that we signed."""
        self._signer.verify(digest, signature)
        stat = _identity(path)
        if self._seen.get(digest) == stat:
            return
        found = file_digest(path)
        if found != digest:
            raise ServiceError(
                f"The stored plan {digest} has the digest {found}: the artifact store is damaged. "
                'Check the store\'s disk, then build the engine again with "reuse": false.',
                code="plan_damaged",
            )
        self._seen[digest] = stat

    def know(self, path: Path, digest: str) -> None:
        """Trust that a file has this digest: its writer has just digested the bytes that it wrote."""
        self._seen[digest] = _identity(path)


def _identity(path: Path) -> tuple[int, ...]:
    stat = os.stat(path)  # noqa: PTH116 - follows links, as the loader will
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
