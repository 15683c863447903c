"""Calls that read weight versions. What makes them also knows definitions (`app.definitions.weights_router`)."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from app.database import Database
from app.http.dependencies import DatabaseDep, SessionDep
from app.http.fields import Number
from app.http.pagination import Listing, PageDep, PageQuery, Rows, list_items
from app.http.problems import problems
from app.http.routes import Route, heavy
from app.office.office import OfficeDep
from app.registry import service as registry
from app.weights import service
from app.weights.diff import diff
from app.weights.manifest import Manifest, TensorEntry
from app.weights.schemas import DiffAnswer, TensorAnswer, TensorChangeAnswer, WeightsAnswer

router = APIRouter(prefix="/models/{model}/weights", tags=["weights"], route_class=Route)

Version = Annotated[Number, Path(description="The number of the weight version.")]
From = Annotated[Number, Query(alias="from", description="The version to compare with.")]


@router.get("", summary="List weight versions", response_model=Listing[WeightsAnswer], responses=problems(404, 422))
def list_weights(model: str, session: SessionDep, page: PageDep) -> Any:
    """The model's weight versions, newest first."""
    return service.list_weights(session, registry.get_model(session, model).id, page)


@router.get("/{version}", summary="Read a weight version", response_model=WeightsAnswer, responses=problems(404, 422))
def read_weights(model: str, version: Version, session: SessionDep) -> Any:
    """How many tensors and bytes it has, what it is based on, and the digest of its content."""
    return service.get_weights(session, registry.get_model(session, model).id, version)


@router.get(
    "/{version}/tensors",
    summary="List the tensors of a weight version",
    response_model=Listing[TensorAnswer],
    responses=problems(404, 422, 503),
)
@heavy
async def list_tensors(model: str, version: Version, database: DatabaseDep, office: OfficeDep, page: PageDep) -> Any:
    """Name, dtype, shape, BLAKE3 and place of every tensor, in the order of their names."""
    return await office.where_it_fits(_tensors, database, model, version, page)


@router.get(
    "/{version}/diff",
    summary="Compare two weight versions",
    response_model=DiffAnswer,
    responses=problems(404, 422, 503),
)
@heavy
async def read_diff(
    model: str, version: Version, earlier: From, database: DatabaseDep, office: OfficeDep, page: PageDep
) -> Any:
    """What was added, removed or changed since the version `from`; the tensors come in pages, by name."""
    return await office.where_it_fits(_diff, database, model, earlier, version, page)


def _tensors(database: Database, model: str, version: int, page: PageQuery) -> Rows[TensorEntry]:
    (manifest,) = _manifests(database, model, version)
    return list_items(list(manifest.tensors.values()), lambda tensor: tensor.name, page)


def _diff(database: Database, model: str, earlier: int, version: int, page: PageQuery) -> DiffAnswer:
    found = diff(*_manifests(database, model, earlier, version))
    rows = list_items(found.changes, lambda change: change.name, page)
    return DiffAnswer(
        from_=earlier,
        to=version,
        added=found.count("added"),
        removed=found.count("removed"),
        changed=found.count("changed"),
        unchanged=found.unchanged,
        bytes_changed=found.bytes_changed,
        data=[TensorChangeAnswer.model_validate(change) for change in rows.data],
        has_more=rows.has_more,
        next_cursor=rows.next_cursor,
    )


def _manifests(database: Database, model: str, *versions: int) -> list[Manifest]:
    with database.reading() as session:
        model_id = registry.get_model(session, model).id
        found = [service.get_weights(session, model_id, version).id for version in versions]
        rows = [service.load_rows(session, weights_id) for weights_id in found]
    return [Manifest.from_json(one) for one in rows]
