"""Definitions: weightless graphs, made from ONNX files or from families, never changed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from app.artifacts import service as artifacts
from app.artifacts.store import ArtifactStore
from app.children.house import House, Order
from app.database import Database
from app.definitions import onnx_upload, sandbox
from app.definitions.family import family_names
from app.definitions.parameter import InputSpec, Parameter
from app.definitions.sandbox import MadeDefinition
from app.definitions.schemas import DefinitionRequest
from app.definitions.tables import CompilerCrash, Definition
from app.errors import FieldError, Invalid, NotFound
from app.heavy import check_size
from app.http.pagination import PageQuery, Rows, list_rows
from app.registry import service as registry
from app.registry.tables import Model
from app.remembered import remembered
from app.settings import Settings
from app.weights import service as weights
from app.weights.unsaved import UnsavedWeights

BY_NUMBER = select(Definition).where(
    Definition.model_id == bindparam("model"), Definition.version == bindparam("version")
)


@dataclass(frozen=True, slots=True)
class Created:
    """A definition, whether it is new, and the version that the weights embedded in its file became.

    `crashes` are what compilers crashed at, of one that is not new.
    """

    definition: Definition
    is_new: bool
    weights: int | None
    crashes: Sequence[CompilerCrash] = ()


@dataclass(frozen=True, slots=True)
class UnsavedDefinition:
    """The columns of a definition that are the same in every model, and the weights that its file brought."""

    columns: Mapping[str, Any]
    weights: UnsavedWeights | None


def order_definition(
    database: Database,
    store: ArtifactStore,
    settings: Settings,
    house: House,
    model_name: str,
    request: DefinitionRequest,
) -> Order[UnsavedDefinition, Created]:
    """Order a definition, or the one with the same graph; weights of an ONNX file become a weight version.

    Raises NotFound if there is no such model, and Invalid if the blob was not uploaded. To make what is ordered raises
    Invalid if the file or config cannot become a definition, and Unavailable if the process that parses could not be
    started.
    """
    with database.transaction() as session:
        model_id = registry.get_model(session, model_name).id
        if request.onnx is not None:
            artifacts.require(session, onnx_upload.blobs_by_pointer(request.onnx, request.external_data), "")

    def make() -> UnsavedDefinition:
        return _make(database, store, settings, house, request)

    def keep(made: UnsavedDefinition) -> Created:
        with database.transaction() as session:
            registry.lock_model(session, model_id)
            embedded = made.weights
            version = None if embedded is None else weights.register(session, model_id, embedded)[0].version
            return _insert(session, model_id, made, version)

    return Order(("definition", request.model_dump_json()), make, keep)


def list_definitions(session: Session, model_id: int, page: PageQuery) -> Rows[Definition]:
    """Return one page of a model's definitions, newest first."""
    return list_rows(session, select(Definition).where(Definition.model_id == model_id), Definition.version, page)


def get_definition(session: Session, model_id: int, version: int) -> Definition:
    """Return a definition by its number; raises NotFound if there is none."""
    found = session.scalar(BY_NUMBER, {"model": model_id, "version": version})
    if found is None:
        raise NotFound(
            f"The model has no definition {version}. Make one with POST /v1/models/<model>/definitions, "
            "or list what there is with GET on the same path.",
            code="definition_not_found",
        )
    return found


def crashes_of(session: Session, definition_ids: Sequence[int]) -> dict[int, list[CompilerCrash]]:
    """Return what compilers crashed at, by definition, the latest first."""
    found: dict[int, list[CompilerCrash]] = defaultdict(list)
    statement = select(CompilerCrash).where(CompilerCrash.definition_id.in_(definition_ids))
    for crash in session.scalars(statement.order_by(CompilerCrash.at.desc())):
        found[crash.definition_id].append(crash)
    return found


def newest_definition(model: Model) -> int:
    """Return the number of a model's newest definition; NotFound."""
    if model.last_definition == 0:
        raise NotFound(
            f"Model '{model.name}' has no definition yet. Make one with POST /v1/models/{model.name}/definitions.",
            code="definition_not_found",
        )
    return model.last_definition


def load_parameters(session: Session, definition_id: int) -> tuple[Parameter, ...]:
    """Return a definition's parameters, sorted by name; raises Heavy if they are too many for this process."""

    def read() -> tuple[Parameter, ...]:
        check_size(session, select(Definition.parameter_count).where(Definition.id == definition_id))
        rows = session.scalars(select(Definition.parameters).where(Definition.id == definition_id)).one()
        return tuple([Parameter.from_json(row) for row in rows])

    return remembered(session, "parameters", definition_id, read)


def load_rules(session: Session, definition_id: int) -> tuple[Any, ...]:
    """Return the rules that apply to a definition after the client's own, as JSON."""

    def read() -> tuple[Any, ...]:
        return tuple(session.scalars(select(Definition.rules).where(Definition.id == definition_id)).one())

    return remembered(session, "rules", definition_id, read)


def inputs_of(definition: Definition) -> tuple[InputSpec, ...]:
    """Return a definition's inputs in the graph's order."""
    return tuple(InputSpec.from_json(item) for item in definition.inputs)


def _make(
    database: Database, store: ArtifactStore, settings: Settings, house: House, request: DefinitionRequest
) -> UnsavedDefinition:
    with _construct(store, settings, house, request) as made:
        embedded = onnx_upload.store_weights(database, store, house, made.weights, made.external, request.external_data)
        digest, size = store.put_file(made.graph)
        artifacts.record_upload(database, store, digest, size)
        columns = {
            "digest": digest,
            "source": _source(request, made),
            "inputs": made.inputs,
            "outputs": made.outputs,
            "parameter_count": made.parameter_count,
            "parameters": made.parameters,
            "rules": made.rules,
            "constants": made.constants,
        }
        return UnsavedDefinition(columns, embedded)


def _construct(
    store: ArtifactStore, settings: Settings, house: House, request: DefinitionRequest
) -> AbstractContextManager[MadeDefinition]:
    if request.onnx is not None:
        file = onnx_upload.local_file(store, settings, request.onnx)
        external = onnx_upload.local_files(store, request.external_data)
        return sandbox.construct_from_file(house, file, external, request.opset)
    family, families = str(request.family), family_names()
    if family not in families:
        known = ", ".join(families)
        raise Invalid(
            f"There is no family '{family}'; there is {known}. Export the model to ONNX and upload that instead.",
            code="unknown_family",
            errors=[FieldError("/family", f"one of {known}")],
        )
    return sandbox.construct_from_config(house, family, request.config or {}, request.precision or "fp32")


def _source(request: DefinitionRequest, made: MadeDefinition) -> dict[str, Any]:
    if request.onnx is None:
        return made.source
    external = {"external_data": request.external_data} if request.external_data else {}
    return {"onnx": request.onnx, **external, **made.source}


def _insert(session: Session, model_id: int, unsaved: UnsavedDefinition, version: int | None) -> Created:
    digest = unsaved.columns["digest"]
    found = session.scalar(select(Definition).where(Definition.model_id == model_id, Definition.digest == digest))
    if found is not None:
        crashes = crashes_of(session, [found.id]).get(found.id, ())
        return Created(found, is_new=False, weights=version, crashes=crashes)
    number = registry.next_number(session, model_id, "definition")
    definition = Definition(model_id=model_id, version=number, weights=version, **unsaved.columns)
    session.add(definition)
    session.flush()
    session.expire(definition, ["parameters"])  # the row holds the text, read back it is a list
    artifacts.keep(session, digest, f"definition:{definition.id}")
    return Created(definition, is_new=True, weights=version)
