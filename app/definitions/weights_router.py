"""The call that makes weight versions, of checkpoint files or of another export of a definition's ONNX file."""

from fastapi import APIRouter, Response

from app.artifacts.dependencies import StoreDep
from app.children.dependencies import ChildrenDep
from app.definitions import reexported_weights
from app.http.dependencies import DatabaseDep, SettingsDep
from app.http.problems import problems
from app.http.routes import Route
from app.weights import service
from app.weights.schemas import WeightsAnswer, WeightsRequest
from app.weights.tables import WeightVersion

router = APIRouter(prefix="/models/{model}/weights", tags=["weights"], route_class=Route)


@router.post(
    "",
    status_code=201,
    summary="Make a weight version",
    response_model=WeightsAnswer,
    responses={
        200: {"model": WeightsAnswer, "description": "The model already has a version of the same content."},
        **problems(404, 422, 503),
    },
)
async def create_weights(
    model: str,
    body: WeightsRequest,
    database: DatabaseDep,
    store: StoreDep,
    settings: SettingsDep,
    children: ChildrenDep,
    response: Response,
) -> WeightVersion:
    """Upload the files first, with PUT /v1/blobs/<digest>. With `base`, only changed tensors are needed.

    Checkpoints are safetensors, PyTorch, numpy (.npz) and GGUF files. Every tensor is checked and hashed; the same
    content as an earlier version is that version again. The weights of an `onnx` file, another export of the
    definition's model, get the names of its parameters: by their places in the graph, and by name if places do not
    tell. What cannot be told is refused.
    """
    house = children.weights
    if body.onnx is None:
        version, is_new = await house.fill(
            service.order_weights, database, store, house, model, body.files, base=body.base, label=body.label
        )
    else:
        version, is_new = await house.fill(
            reexported_weights.order_weights, database, store, settings, house, model, body.onnx, body
        )
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/models/{model}/weights/{version.version}"
    return version
