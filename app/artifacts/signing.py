"""Signatures of plans: loading a plan runs code, so a worker loads only plans that a worker of this service made.

The signatures are Ed25519 (RFC 8032). The signed text begins with a line of its own, so a plan's signature never
passes for a signature of anything else that was made with the same key. It says what the plan is for, so a plan that
this service signed is not loaded in the place of another one.

Signatures of the first form say the plan's digest and nothing else. Engines of earlier releases have them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.errors import ServiceError
from app.settings import Settings

DOMAINS = {1: b"enginesmith plan v1\n", 2: b"enginesmith plan v2\n"}
FORM = 2  # of the signatures that are made
KEY_FILE = "signing.key"


@dataclass(frozen=True, slots=True)
class PlanStatement:
    """What an engine's plan is and what it is for, as its signature says it.

    `digest` is the plan's; None for an engine that has no plan of its own yet. `job_id` is the job that made the
    engine. `definition`, `weights`, `binding` and `root_plan` are digests. `parent` is the number of the engine it was
    refitted from.
    """

    digest: str | None
    model_id: int
    job_id: str
    method: str
    parent: int | None
    backend: str
    backend_version: str
    platform: str
    device: str
    definition: str
    weights: str
    binding: str
    profiles: Sequence[Any]
    options: Mapping[str, Any]
    root_plan: str

    def text(self, form: int) -> bytes:
        """Return what is signed."""
        if form == 1:
            return DOMAINS[1] + (self.digest or "").encode()
        return DOMAINS[2] + json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()


class PlanSigner:
    """Signs what plans are for and checks such signatures."""

    def __init__(self, private_key: bytes) -> None:
        """Take a raw Ed25519 private key of 32 bytes."""
        self._private_key = Ed25519PrivateKey.from_private_bytes(private_key)
        self._public_key = self._private_key.public_key()

    def sign(self, statement: PlanStatement, form: int = FORM) -> str:
        """Return the signature of a statement, 128 hexadecimal digits."""
        return self._private_key.sign(statement.text(form)).hex()

    def verify(self, statement: PlanStatement, signature: str, form: int) -> None:
        """Return if this service signed the statement in that form.

        Raises:
            ServiceError: with code "bad_signature".
        """
        try:
            self._public_key.verify(bytes.fromhex(signature), statement.text(form))
        except (InvalidSignature, ValueError) as error:
            raise ServiceError(
                f"The plan {statement.digest} does not carry a signature of this service for this engine and is not "
                "loaded: the engine's row or its plan is not the one that was published. Build the engine again with "
                '"reuse": false; if the signing key was replaced, all engines made before need that.',
                code="bad_signature",
            ) from error


def open_signer(settings: Settings) -> PlanSigner:
    """Return a signer with the configured key, else with the data directory's, which is made on first use.

    Raises:
        ServiceError: with code "bad_signing_key".
    """
    if settings.signing_key:
        return _signer(settings.signing_key, "ENGINESMITH_SIGNING_KEY")
    path = settings.data_dir / KEY_FILE
    if not path.exists():
        _create_key(path)
    return _signer(path.read_text(), str(path))


def _signer(key: str, source: str) -> PlanSigner:
    try:
        return PlanSigner(bytes.fromhex(key.strip()))
    except ValueError as error:
        raise ServiceError(
            f"{source} does not hold an Ed25519 private key. Put 64 hexadecimal digits there, as "
            "`openssl rand -hex 32` prints them.",
            code="bad_signing_key",
        ) from error


def _create_key(path: Path) -> None:
    """Write a new key in one step, readable only by its owner; if another process was faster, that one's key stands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(Ed25519PrivateKey.generate().private_bytes_raw().hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()
