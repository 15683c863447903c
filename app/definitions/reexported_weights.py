"""Makes a weight version of another ONNX export of a definition's model."""

from app.artifacts import service as artifacts
from app.artifacts.store import ArtifactStore
from app.database import Database
from app.definitions import onnx_upload, sandbox
from app.definitions.service import get_definition, newest_definition
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
        model = registry.get_model(session, model_name)
        model_id = model.id
        digest = get_definition(session, model_id, request.definition or newest_definition(model)).digest
        artifacts.require(session, onnx_upload.blobs_by_pointer(onnx, request.external_data), "")
    manifest = _match(database, store, settings, onnx, digest, request)
    unsaved = weights.UnsavedWeights.of(manifest)
    with database.transaction() as session:
        return weights.register(session, model_id, unsaved, label=request.label)


def _match(
    database: Database, store: ArtifactStore, settings: Settings, onnx: str, definition: str, request: WeightsRequest
) -> Manifest:
    file = onnx_upload.local_file(store, settings, onnx)
    external = onnx_upload.local_files(store, request.external_data)
    with sandbox.match_export(file, store.local_path(definition), settings.scratch_dir, external) as made:
        found = onnx_upload.store_weights(database, store, made.weights, made.external, request.external_data)
    return weights.NO_TENSORS if found is None else found
