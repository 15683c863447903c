"""Calls on sweeps."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from app.artifacts.dependencies import StoreDep
from app.database import Database
from app.engines.preflight import PreflightsDep
from app.http.dependencies import DatabaseDep, SessionDep, SettingsDep
from app.http.fields import Number
from app.http.pagination import Listing, PageDep, Rows
from app.http.pools import Pool
from app.http.problems import problems
from app.http.routes import WITH_RULES_BYTES, Route, max_body
from app.jobs.service import bind_dispatch
from app.jobs.submission import JOB_HEADERS, SubmitDep
from app.registry.service import get_model
from app.sweeps import service
from app.sweeps.requests import request_sweep, vet_sweep
from app.sweeps.schemas import SweepAnswer, SweepRequest

router = APIRouter(prefix="/models/{model}/sweeps", tags=["sweeps"], route_class=Route)

SweepNumber = Annotated[Number, Path(description="The number of the sweep.")]


@router.post(
    "",
    status_code=202,
    summary="Compare builds under several options",
    response_model=SweepAnswer,
    responses={
        200: {"model": SweepAnswer, "description": "It ended within `Prefer: wait`."},
        202: {"description": "Its jobs are queued.", "headers": JOB_HEADERS},
        **problems(404, 409, 422, 503),
    },
    openapi_extra=max_body(WITH_RULES_BYTES),
)
async def create_sweep(
    model: str,
    body: SweepRequest,
    request: Request,
    database: DatabaseDep,
    store: StoreDep,
    settings: SettingsDep,
    submit: SubmitDep,
    preflights: PreflightsDep,
) -> Response:
    """Build an engine for each variant, measure them in turns on one device, and rank them.

    Each variant has a job as from POST …/builds, and is refused where a build of it is. Once these have ended, a job of
    the kind `compare` measures the engines that there are: a few runs of each in turn, again and again, so that clocks
    and heat affect all alike. `best` is the fastest within the tolerance.
    """
    vetted = submit if body.preflight == "ignore" else submit.vetted(partial(vet_sweep, preflights))
    job = await vetted.job(request_sweep, database, store, settings, model, body)
    reads: Pool = request.app.state.pools.reads
    answer = await reads.run(_of_job, database, job.id)
    return submit.answer(job, answer, f"/v1/models/{model}/sweeps/{answer.number}")


@router.get("", summary="List sweeps", response_model=Listing[SweepAnswer], responses=problems(404, 422))
def list_sweeps(model: str, session: SessionDep, page: PageDep) -> Any:
    """The model's sweeps, newest first."""
    rows = service.list_sweeps(session, get_model(session, model).id, page)
    return Rows([service.answer_of(session, sweep) for sweep in rows.data], rows.has_more, rows.next_cursor)


@router.get("/{number}", summary="Read a sweep", response_model=SweepAnswer, responses=problems(404, 422))
def read_sweep(model: str, number: SweepNumber, session: SessionDep) -> Any:
    """Its variants with their engines, errors and latencies, ranked as far as they are measured."""
    return service.answer_of(session, service.get_sweep(session, get_model(session, model).id, number))


@router.post(
    "/{number}/cancel",
    status_code=202,
    summary="Cancel a sweep",
    response_model=SweepAnswer,
    responses=problems(404, 422),
)
def cancel_sweep(model: str, number: SweepNumber, request: Request, session: SessionDep) -> Any:
    """Cancel all jobs of the sweep that have not ended. Engines that were built stay."""
    bind_dispatch(session, request.app.state.dispatch)
    sweep = service.get_sweep(session, get_model(session, model).id, number)
    service.cancel(session, sweep)
    return service.answer_of(session, sweep)


def _of_job(database: Database, job_id: str) -> SweepAnswer:
    with database.reading() as session:
        return service.answer_of(session, service.sweep_of_job(session, job_id))
