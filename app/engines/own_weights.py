"""The weights that a definition is built with if a request names none."""

from app.database import Database
from app.definitions.service import get_definition, newest_definition
from app.definitions.tables import Definition
from app.errors import FieldError, Invalid
from app.registry.service import get_model
from app.weights import service as weights
from app.weights.unsaved import UnsavedWeights


def weights_of_definition(database: Database, model: str, definition: int | None) -> int:
    """Return the number of the weight version embedded in a definition's ONNX file, by default the newest definition's.

    A definition without parameters has the model's version without tensors, which is made when it is first needed.

    Raises:
        NotFound: there is no such model or definition.
        Invalid: code "weights_required": it has parameters, and nothing was embedded.
    """
    with database.reading() as session:
        owner = get_model(session, model)
        found = get_definition(session, owner.id, definition or newest_definition(owner))
    if found.weights is not None:
        return found.weights
    if found.parameter_count:
        raise _required(model, found)
    with database.transaction() as session:
        return weights.register(session, owner.id, UnsavedWeights.of(weights.NO_TENSORS))[0].version


def _required(model: str, definition: Definition) -> Invalid:
    count = definition.parameter_count
    return Invalid(
        f"Definition {definition.version} has {count} parameter{'' if count == 1 else 's'} and no weights of its own. "
        f"Upload a checkpoint, make a weight version of it with POST /v1/models/{model}/weights, and give its number "
        "as `weights`.",
        code="weights_required",
        errors=[FieldError("/weights", "required for this definition")],
    )
