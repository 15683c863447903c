"""Calls on jobs."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import select

from app.database import Database
from app.errors import FieldError, Invalid
from app.http.dependencies import DatabaseDep, SessionDep, SettingsDep
from app.http.pagination import Listing, PageDep, PageQuery, Rows, list_rows
from app.http.pools import Pool
from app.http.problems import problems
from app.http.routes import Route
from app.jobs import service
from app.jobs.kinds import Kind
from app.jobs.schemas import EVENT, EventAnswer, JobAnswer, job_answers
from app.jobs.state import State
from app.jobs.stream import stream
from app.jobs.tables import JobEvent
from app.jobs.watching import Watching
from app.registry.service import get_model

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=Route)

EVENT_STREAM = "text/event-stream"
EVENT_PAGE: dict[str, Any] = {"data": [EVENT], "has_more": False, "next_cursor": None}


@router.get("", summary="List jobs", response_model=Listing[JobAnswer], responses=problems(404, 422))
def list_jobs(
    session: SessionDep,
    settings: SettingsDep,
    page: PageDep,
    model: Annotated[str | None, Query(description="Only this model's.")] = None,
    state: Annotated[State | None, Query(description="Only those in this state.")] = None,
    kind: Annotated[Kind | None, Query(description="Only of this kind.")] = None,
) -> Any:
    """Jobs, the newest first."""
    model_id = get_model(session, model).id if model is not None else None
    rows = service.list_jobs(session, page, model_id=model_id, state=state, kind=kind)
    return Rows(job_answers(session, settings, rows.data), rows.has_more, rows.next_cursor)


@router.get("/{job}", summary="Read a job", response_model=JobAnswer, responses=problems(404))
def read_job(job: str, session: SessionDep, settings: SettingsDep) -> Any:
    """The job's state, what it waits for, its progress and, once it has ended, its result or error."""
    return job_answers(session, settings, [service.get_job(session, job)])[0]


@router.get(
    "/{job}/events",
    summary="Read or follow a job's events",
    response_model=Listing[EventAnswer],
    responses={
        200: {
            "description": "A page, or with `Accept: text/event-stream` every event as it comes.",
            "content": {
                "application/json": {"example": EVENT_PAGE},
                EVENT_STREAM: {"schema": {"type": "string"}},
            },
        },
        **problems(404, 422, 503),
    },
)
async def read_events(
    job: str,
    request: Request,
    database: DatabaseDep,
    page: PageDep,
    accept: Annotated[str, Header(description="`text/event-stream` to follow.")] = "application/json",
    last_event_id: Annotated[str | None, Header(description="Replay from after this event.")] = None,
) -> Response:
    """What happened to the job, in order. A follower that lost its connection goes on with Last-Event-ID."""
    reads: Pool = request.app.state.pools.reads
    async with reads.place():
        if EVENT_STREAM not in accept.lower():
            return await reads.thread(_event_page, database, job, page)
        await reads.thread(_require, database, job)
    after = _event_number(last_event_id)
    watching: Watching = request.app.state.watching
    watching.check_room()
    events = stream(watching, database, reads, job, after)
    return StreamingResponse(events, media_type=EVENT_STREAM, headers={"Cache-Control": "no-store"})


@router.post(
    "/{job}/cancel",
    status_code=202,
    summary="Cancel a job",
    response_model=JobAnswer,
    responses=problems(404),
)
def cancel_job(job: str, request: Request, session: SessionDep, settings: SettingsDep) -> Any:
    """Ask the job to stop: a queued one stops at once, a running one in about a second, a finished one stays."""
    service.bind_dispatch(session, request.app.state.dispatch)
    return job_answers(session, settings, [service.request_cancel(session, job)])[0]


def _event_number(last_event_id: str | None) -> int:
    if last_event_id is None or last_event_id == "":
        return 0
    if not last_event_id.isdecimal() or len(last_event_id) > 18:
        raise Invalid(
            "Last-Event-ID is the number of an event. Send the `id` of the last event you received.",
            errors=[FieldError("/header/last-event-id", "not a number")],
        )
    return int(last_event_id)


def _require(database: Database, job: str) -> None:
    with database.reading() as session:
        service.get_job(session, job)


def _event_page(database: Database, job: str, page: PageQuery) -> Response:
    with database.reading() as session:
        service.get_job(session, job)
        statement = select(JobEvent).where(JobEvent.job_id == job)
        rows = list_rows(session, statement, JobEvent.seq, page, newest_first=False)
        answer = Listing[EventAnswer].model_validate(rows, from_attributes=True)
    return JSONResponse(answer.model_dump(mode="json"))
