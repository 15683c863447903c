"""Makes a weight version of another ONNX export of a definition's model."""

from app.artifacts import service as artifacts
from app.artifacts.store import ArtifactStore
from app.children.house import House, Order
from app.database import Database
from app.definitions import onnx_upload, sandbox
from app.definitions.service import get_definition, newest_definition
from app.registry import service as registry
from app.settings import Settings
from app.weights import service as weights
from app.weights.schemas import WeightsRequest
from app.weights.tables import WeightVersion
from app.weights.unsaved import UnsavedWeights


def order_weights(
    database: Database,
    store: ArtifactStore,
    settings: Settings,
    house: House,
    model_name: str,
    onnx: str,
    request: WeightsRequest,
) -> Order[UnsavedWeights, tuple[WeightVersion, bool]]:
    """Order a weight version of an ONNX file, under the names of a definition's parameters, or the one there is.

    The order gives the version and whether it is new. Raises NotFound if there is no such model or definition, and
    Invalid if a blob was not uploaded. To make what is ordered raises Invalid if the file is not acceptable, its graph
    is not the definition's, or it cannot be told which weight is which; and Unavailable if the process that parses
    could not be started.
    """
    with database.transaction() as session:
        model = registry.get_model(session, model_name)
        model_id = model.id
        digest = get_definition(session, model_id, request.definition or newest_definition(model)).digest
        artifacts.require(session, onnx_upload.blobs_by_pointer(onnx, request.external_data), "")
    key = ("match", onnx, digest, tuple(sorted(request.external_data.items())))

    def make() -> UnsavedWeights:
        return _match(database, store, settings, house, onnx, digest, request)

    def keep(made: UnsavedWeights) -> tuple[WeightVersion, bool]:
        with database.transaction() as session:
            return weights.register(session, model_id, made, label=request.label)

    return Order(key, make, keep)


def _match(
    database: Database,
    store: ArtifactStore,
    settings: Settings,
    house: House,
    onnx: str,
    definition: str,
    request: WeightsRequest,
) -> UnsavedWeights:
    file = onnx_upload.local_file(store, settings, onnx)
    external = onnx_upload.local_files(store, request.external_data)
    with sandbox.match_export(house, file, store.local_path(definition), external) as made:
        found = onnx_upload.store_weights(database, store, house, made.weights, made.external, request.external_data)
    return UnsavedWeights.of(weights.NO_TENSORS) if found is None else found
