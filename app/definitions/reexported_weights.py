"""Makes a weight version of another ONNX export of a definition's model."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts import service as artifacts
from app.artifacts.store import ArtifactStore
from app.database import Database
from app.definitions import onnx_upload, sandbox
from app.definitions.service import get_definition
from app.definitions.tables import Definition
from app.errors import FieldError, Invalid
from app.registry import service as registry
from app.settings import Settings
from app.weights import service as weights
from app.weights.manifest import Manifest
from app.weights.schemas import WeightsRequest
from app.weights.tables import WeightVersion


def create_weights(
    database: Database, store: ArtifactStore, settings: Settings, model_name: str, onnx: str, request: WeightsRequest
) -> tuple[WeightVersion, bool]:
    """Make a weight version of an ONNX file, under the names of a definition's parameters, or find the one there is.

    Returns the version and whether it is new.

    Raises:
        NotFound: there is no such model or definition.
        Invalid: a blob was not uploaded, the file is not acceptable, its graph is not the definition's, or it cannot be
            told which weight is which.
        Unavailable: the process that parses could not be started.
    """
    with database.transaction() as session:
        model_id = registry.get_model(session, model_name).id
        digest = _definition(session, model_id, request.definition).digest
        artifacts.require(session, onnx_upload.blobs_by_pointer(onnx, request.external_data), "")
    manifest = _match(database, store, settings, onnx, digest, request)
    unsaved = weights.UnsavedWeights.of(manifest)
    with database.transaction() as session:
        return weights.register(session, model_id, unsaved, label=request.label)


def _definition(session: Session, model_id: int, version: int | None) -> Definition:
    if version is not None:
        return get_definition(session, model_id, version)
    newest = select(Definition).where(Definition.model_id == model_id).order_by(Definition.version.desc()).limit(1)
    found = session.scalar(newest)
    if found is None:
        raise Invalid(
            "The model has no definition that the weights of an ONNX file could be matched to. Make one of the file "
            "with POST /v1/models/<model>/definitions: its weights become a version, too.",
            code="definition_required",
            errors=[FieldError("/onnx", "needs a definition to be matched to")],
        )
    return found


def _match(
    database: Database, store: ArtifactStore, settings: Settings, onnx: str, definition: str, request: WeightsRequest
) -> Manifest:
    file = onnx_upload.local_file(store, settings, onnx)
    external = onnx_upload.local_files(store, request.external_data)
    with sandbox.match_export(file, store.local_path(definition), settings.scratch_dir, external) as made:
        found = onnx_upload.store_weights(database, store, made.weights, made.external, request.external_data)
    return weights.NO_TENSORS if found is None else found
