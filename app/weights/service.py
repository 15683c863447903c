"""Weight versions: made from uploaded checkpoint files, hashed tensor by tensor, never changed."""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.artifacts import service as artifacts
from app.artifacts.store import ArtifactStore
from app.database import Database, JsonText
from app.errors import FieldError, Invalid, NotFound, Unavailable
from app.http.pagination import PageQuery, Rows, list_rows
from app.registry import service as registry
from app.remembered import remembered
from app.weights.checkpoint import MAX_TENSORS, CheckpointError, TensorSlot
from app.weights.hashing import TensorContent, hash_tensors
from app.weights.manifest import (
    Manifest,
    TensorEntry,
    entries_from_json,
    entries_to_json,
    non_finite_to_json,
)
from app.weights.recognition import read_slots
from app.weights.tables import CheckpointFile, WeightVersion

NO_TENSORS = Manifest.of([])  # what a definition without parameters is built with
HASH_CHUNK_BYTES = 4 * 1024 * 1024
BY_NUMBER = select(WeightVersion).where(
    WeightVersion.model_id == bindparam("model"), WeightVersion.version == bindparam("version")
)


def create_weights(
    database: Database,
    store: ArtifactStore,
    model_name: str,
    files: Sequence[str],
    *,
    base: int | None = None,
    label: str | None = None,
) -> tuple[WeightVersion, bool]:
    """Make a weight version of checkpoint files, or find the one of the same content.

    The tensors of `files` are put over those of version `base`, if given. Returns the version and whether it
    is new. Raises NotFound for the model or the base, Invalid for a blob that was not uploaded, a file that
    is not acceptable, or a tensor that two files have.
    """
    with database.transaction() as session:
        model_id = registry.get_model(session, model_name).id
        artifacts.require(session, files, "/files")
        below = None if base is None else get_weights(session, model_id, base)
        rows = None if below is None else load_rows(session, below.id)
    manifest = _combined([_index(database, store, digest, number) for number, digest in enumerate(files)])
    if below is not None and rows is not None:
        manifest = Manifest.from_json(rows, below.non_finite).overlay(manifest)
    _check_count(manifest)
    unsaved = UnsavedWeights.of(manifest)
    with database.transaction() as session:
        return register(session, model_id, unsaved, base=base, label=label)


@dataclass(frozen=True, slots=True)
class UnsavedWeights:
    """The columns of a weight version, computed before the transaction that records it."""

    digest: str
    tensor_count: int
    bytes: int
    manifest: JsonText
    blobs: tuple[str, ...]
    non_finite: list[Any] | None

    @classmethod
    def of(cls, manifest: Manifest) -> "UnsavedWeights":
        """Compute the digest and serialize the manifest, which takes a while for 100,000 tensors."""
        text = JsonText(json.dumps(manifest.to_json()))
        non_finite = non_finite_to_json(manifest.tensors.values())
        return cls(manifest.digest, len(manifest.tensors), manifest.nbytes, text, manifest.blobs, non_finite)


def register(
    session: Session, model_id: int, unsaved: UnsavedWeights, *, base: int | None = None, label: str | None = None
) -> tuple[WeightVersion, bool]:
    """Record weights as the model's next version; the same content in the same model is one version.

    Returns the version and whether it is new. Keeps every blob the manifest refers to.
    """
    registry.lock_model(session, model_id)
    same = (WeightVersion.model_id == model_id, WeightVersion.digest == unsaved.digest)
    found = session.scalar(select(WeightVersion).where(*same))
    if found is not None:
        if found.non_finite is None:
            found.non_finite = unsaved.non_finite  # the version is of a release that did not count
        return found, False
    version = WeightVersion(
        model_id=model_id,
        version=registry.next_number(session, model_id, "weights"),
        digest=unsaved.digest,
        tensor_count=unsaved.tensor_count,
        bytes=unsaved.bytes,
        base=base,
        label=label,
        manifest=unsaved.manifest,
        non_finite=unsaved.non_finite,
    )
    session.add(version)
    session.flush()
    session.expire(version, ["manifest"])  # the row holds the text, read back it is a list
    for blob in unsaved.blobs:
        artifacts.keep(session, blob, f"weights:{version.id}")
    return version, True


def list_weights(session: Session, model_id: int, page: PageQuery) -> Rows[WeightVersion]:
    """Return one page of a model's weight versions, newest first."""
    statement = select(WeightVersion).where(WeightVersion.model_id == model_id)
    return list_rows(session, statement, WeightVersion.version, page)


def get_weights(session: Session, model_id: int, version: int) -> WeightVersion:
    """Return a weight version by its number; raises NotFound if there is none."""
    found = session.scalar(BY_NUMBER, {"model": model_id, "version": version})
    if found is None:
        raise NotFound(
            f"The model has no weight version {version}. Make one with POST /v1/models/<model>/weights, "
            "or list what there is with GET on the same path.",
            code="weights_not_found",
        )
    return found


def load_rows(session: Session, weights_id: int) -> list[Any]:
    """Return the rows of a version's manifest. Give them to `Manifest.from_json` when the session is over."""

    def read() -> list[Any]:
        rows: list[Any] = session.scalars(select(WeightVersion.manifest).where(WeightVersion.id == weights_id)).one()
        return rows

    return remembered(session, "manifest", weights_id, read)


def index_file(database: Database, store: ArtifactStore, digest: str) -> list[TensorEntry]:
    """Return the tensors of an uploaded file, hashed on first use and remembered.

    Opens its own short sessions. Raises CheckpointError if the file is not acceptable.
    """
    with database.reading() as session:
        known = session.get(CheckpointFile, digest)
    if known is not None:
        return entries_from_json(known.tensors, known.non_finite)
    entries = _hash_file(store, digest)
    text, non_finite = JsonText(json.dumps(entries_to_json(entries))), non_finite_to_json(entries)
    # Whoever hashed the same file at the same time wrote the same row.
    with suppress(IntegrityError), database.transaction() as session:
        session.add(CheckpointFile(digest=digest, tensors=text, non_finite=non_finite))
    return entries


def hash_range(store: ArtifactStore, digest: str, slot: TensorSlot) -> TensorEntry:
    """Return a tensor that lies somewhere in an uploaded file, which need not be a checkpoint.

    Raises CheckpointError.
    """
    (content,) = hash_tensors([slot], store.iter_bytes(digest, slot.offset, slot.end, HASH_CHUNK_BYTES))
    return _entry(slot, content, digest)


def _index(database: Database, store: ArtifactStore, digest: str, number: int) -> list[TensorEntry]:
    try:
        return index_file(database, store, digest)
    except CheckpointError as error:
        fault = FieldError(f"/files/{number}", error.detail)
        raise Invalid(f"{digest}: {error.detail}", code=error.code, errors=[fault]) from error


def _hash_file(store: ArtifactStore, digest: str) -> list[TensorEntry]:
    size = store.size(digest)
    if size is None:
        raise Unavailable(f"{digest} is on record, but its bytes are not in the store. Upload it again.")
    slots = read_slots(lambda offset, length: store.read(digest, offset, length), size)
    start = slots[0].offset if slots else size
    contents = hash_tensors(slots, store.iter_bytes(digest, start, size, HASH_CHUNK_BYTES))
    return [_entry(slot, content, digest) for slot, content in zip(slots, contents, strict=True)]


def _entry(slot: TensorSlot, content: TensorContent, digest: str) -> TensorEntry:
    return TensorEntry(
        slot.name, slot.dtype, slot.shape, content.blake3, digest, slot.offset, slot.nbytes, content.non_finite
    )


def _combined(files: Iterable[Iterable[TensorEntry]]) -> Manifest:
    seen: dict[str, tuple[int, TensorEntry]] = {}
    faults: list[FieldError] = []
    for number, entries in enumerate(files):
        for entry in entries:
            first, _ = seen.setdefault(entry.name, (number, entry))
            if first != number:
                faults.append(FieldError(f"/files/{number}", f"{entry.name} is already in /files/{first}"))
    if faults:
        shown = "; ".join(f"{fault.detail} and again in {fault.pointer}" for fault in faults[:5])
        raise Invalid(
            f"A tensor may be in one file only, and {len(faults)} are in two: {shown}. "
            "Leave the repeated tensors, or the repeated file, out.",
            code="duplicate_tensor",
            errors=faults[:100],
        )
    return Manifest.of(entry for _, entry in seen.values())


def _check_count(manifest: Manifest) -> None:
    if not manifest.tensors:
        raise Invalid("The files hold no tensors. Upload a checkpoint that has some.", code="no_tensors")
    if len(manifest.tensors) > MAX_TENSORS:
        raise Invalid(
            f"The version would have {len(manifest.tensors)} tensors; at most {MAX_TENSORS} fit. Split the model.",
            code="too_many_tensors",
        )
