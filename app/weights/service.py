"""Weight versions: made from uploaded checkpoint files, hashed tensor by tensor, never changed."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from app.artifacts import service as artifacts
from app.artifacts.store import ArtifactStore
from app.children.house import House, Order
from app.database import Database
from app.errors import FieldError, Invalid, NotFound
from app.heavy import check_size
from app.http.pagination import PageQuery, Rows, list_rows
from app.registry import service as registry
from app.remembered import remembered
from app.weights.checkpoint import CheckpointError
from app.weights.indexing import Source, combine, index_file, source_of
from app.weights.manifest import Manifest
from app.weights.tables import WeightVersion
from app.weights.unsaved import UnsavedWeights

NO_TENSORS = Manifest.of([])  # what a definition without parameters is built with
BY_NUMBER = select(WeightVersion).where(
    WeightVersion.model_id == bindparam("model"), WeightVersion.version == bindparam("version")
)


def order_weights(
    database: Database,
    store: ArtifactStore,
    house: House,
    model_name: str,
    files: Sequence[str],
    *,
    base: int | None = None,
    label: str | None = None,
) -> Order[UnsavedWeights, tuple[WeightVersion, bool]]:
    """Order a weight version of checkpoint files, or the one of the same content.

    The tensors of `files` are put over those of version `base`, if given. The order gives the version and whether it
    is new. Raises NotFound for the model or the base, Invalid for a blob that was not uploaded. To make what is
    ordered raises Invalid for a file that is not acceptable, or for a tensor that two files have.
    """
    with database.transaction() as session:
        model_id = registry.get_model(session, model_name).id
        artifacts.require(session, files, "/files")
        below = None if base is None else get_weights(session, model_id, base).id

    def make() -> UnsavedWeights:
        return _combine(database, store, house, files, below)

    def keep(made: UnsavedWeights) -> tuple[WeightVersion, bool]:
        with database.transaction() as session:
            return register(session, model_id, made, base=base, label=label)

    return Order(("weights", *files, below), make, keep)


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
        if found.non_finite_count is None:
            found.non_finite = unsaved.non_finite  # the version is of a release that did not count
            _read_back(session, found)
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
    _read_back(session, version)
    for blob in unsaved.blobs:
        artifacts.keep(session, blob, f"weights:{version.id}")
    return version, True


def list_weights(session: Session, model_id: int, page: PageQuery) -> Rows[WeightVersion]:
    """Return one page of a model's weight versions, newest first."""
    statement = select(WeightVersion).where(WeightVersion.model_id == model_id)
    return list_rows(session, statement, WeightVersion.version, page)


def get_weights(session: Session, model_id: int, version: int) -> WeightVersion:
    """Return a weight version by its number, without its long columns; raises NotFound if there is none."""
    found = session.scalar(BY_NUMBER, {"model": model_id, "version": version})
    if found is None:
        raise NotFound(
            f"The model has no weight version {version}. Make one with POST /v1/models/<model>/weights, "
            "or list what there is with GET on the same path.",
            code="weights_not_found",
        )
    return found


def load_rows(session: Session, weights_id: int) -> list[Any]:
    """Return the rows of a version's manifest. Give them to `Manifest.from_json` when the session is over.

    Raises Heavy if they are too many for this process.
    """

    def read() -> list[Any]:
        check_size(session, select(WeightVersion.tensor_count).where(WeightVersion.id == weights_id))
        rows: list[Any] = session.scalars(select(WeightVersion.manifest).where(WeightVersion.id == weights_id)).one()
        return rows

    return remembered(session, "manifest", weights_id, read)


def _read_back(session: Session, version: WeightVersion) -> None:
    """Write a version, and read what the database computes of it; its long columns are read when they are needed."""
    session.flush()
    session.expire(version, ["manifest", "non_finite"])  # the row holds the text, read back it is a list
    session.refresh(version, ["non_finite_count", "non_finite_beginning"])


def _combine(
    database: Database, store: ArtifactStore, house: House, files: Sequence[str], below: int | None
) -> UnsavedWeights:
    indexes = [_index(database, store, house, digest, number) for number, digest in enumerate(files)]
    return combine(house, indexes, None if below is None else _source(database, below))


def _source(database: Database, weights_id: int) -> Source | None:
    return source_of(database, WeightVersion.manifest, WeightVersion.non_finite, WeightVersion.id == weights_id)


def _index(database: Database, store: ArtifactStore, house: House, digest: str, number: int) -> Source:
    try:
        return index_file(database, store, house, digest)
    except CheckpointError as error:
        fault = FieldError(f"/files/{number}", error.detail)
        raise Invalid(f"{digest}: {error.detail}", code=error.code, errors=[fault]) from error
