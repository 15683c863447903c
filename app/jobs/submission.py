"""How a call that makes a job is answered: Idempotency-Key, Prefer: wait, 200 or 202.

A job is made in three steps. The first looks for the job that its Idempotency-Key made before. The second checks and
computes with no session open. The third is a transaction that only looks for rows and inserts them, because on SQLite
it holds the only write lock.

A client waits on the event loop, which holds no thread and no session. So many clients may wait while the threads
answer others.
"""

import math
import re
from collections.abc import Awaitable, Callable
from copy import copy
from functools import cached_property, partial
from typing import Annotated, Any, ParamSpec, Protocol, Self

from fastapi import Depends, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.database import Database
from app.heavy import Heavy
from app.http.pools import Pool
from app.jobs import idempotency, service
from app.jobs.dispatch import Dispatch
from app.jobs.notices import wait_for
from app.jobs.schemas import JOB, WAITING, JobAnswer, job_answers
from app.jobs.state import FINAL
from app.jobs.tables import Job
from app.jobs.watching import Watching
from app.office.office import Office
from app.settings import Settings

MAX_RETRY_AFTER_S = 30
WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]+(?:\.[0-9]+)?)\"?\s*(?:$|[,;])", re.IGNORECASE)

P = ParamSpec("P")

JOB_HEADERS: dict[str, Any] = {
    "Location": {"description": "The job.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds until a look is worth while.", "schema": {"type": "integer"}},
}
JOB_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": JobAnswer,
        "description": "The job is finished: an equal engine exists, or it ended within `Prefer: wait`.",
        "content": {"application/json": {"example": JOB}},
    },
    202: {
        "model": JobAnswer,
        "description": "The job is queued.",
        "headers": JOB_HEADERS,
        "content": {
            "application/json": {
                "example": JOB
                | {"state": "queued", "result": None, "attempt": 0, "started_at": None, "finished_at": None}
                | {"progress": {"phase": None, "step": None, "total": None, "eta_s": 1.25}, "waiting": WAITING}
            }
        },
    },
}


class Placement(Protocol):
    """Makes the job of one request whose checks and computing are done, in one transaction."""

    def place(self, session: Session) -> Job:
        """Make the job, or find one that exists already. This computes nothing: it only reads and writes rows."""
        ...


Vet = Callable[[Placement], Awaitable[Placement]]


class Submit:
    """Makes the job of one request and answers it.

    `patience_s` is how long a client that sends no `Prefer: wait` has to wait at most, in seconds.
    """

    def __init__(
        self, request: Request, key: str | None, prefer: str | None, body: bytes, *, patience_s: float = 0.0
    ) -> None:
        state = request.app.state
        self._database: Database = state.database
        self._settings: Settings = state.settings
        self._dispatch: Dispatch = state.dispatch
        self._watching: Watching = state.watching
        self._reads: Pool = state.pools.reads
        self._office: Office = state.office
        self._key = key
        self._pool: Pool = state.pools.work
        self._request = (request.method, request.url.path, body)
        self._vet: Vet | None = None
        preferred = wait_seconds(prefer)
        self._applied = None if preferred is None else min(preferred, self._settings.max_prefer_wait_s)
        self._wait_s = patience_s if self._applied is None else self._applied

    def vetted(self, vet: Vet) -> Self:
        """Return one that makes the job by what `vet` returns for the placement; it may raise a ServiceError instead.

        `vet` is awaited on the event loop, with no thread and no place taken, because it may take seconds.
        """
        vetted = copy(self)
        vetted._vet = vet  # noqa: SLF001 - of this class
        return vetted

    async def __call__(self, prepare: Callable[P, Placement], *args: P.args, **kwargs: P.kwargs) -> JSONResponse:
        """Make the job, wait as long as the client prefers, and answer.

        `prepare(*args, **kwargs)` checks and computes with no session open. The placement that it returns makes the
        job in a short transaction. If that transaction had to be rolled back, the placement makes it in another one.
        """
        return self.answer(await self.job(prepare, *args, **kwargs))

    async def job(self, prepare: Callable[P, Placement], *args: P.args, **kwargs: P.kwargs) -> JobAnswer:
        """Make the job, wait as long as the client prefers, and return the job as it is then.

        A client is answered only once its job survives a power cut. If the job ended while the client waited, it does:
        the worker's last transaction was durable, and with it all that came before. Otherwise the database settles now.
        """
        prepared = partial(prepare, *args, **kwargs)
        try:
            async with self._pool.place():
                begun = await self._pool.thread(self._begin, prepared)
        except Heavy:  # nothing is made yet
            in_office = partial(self._office.call, prepare, *args, **kwargs)
            begun = await self._office.run(partial(self._begin, in_office))
        made = begun if isinstance(begun, Job) else await self._vetted(begun)
        if not self._wait_s or made.state in FINAL:
            return await self._pool.run(self._settled, made)
        job = await self._finished(made.id)
        if job.state not in FINAL:
            await self._pool.thread(self._database.settle)
        return job

    def answer(self, job: JobAnswer, body: BaseModel | None = None, location: str | None = None) -> JSONResponse:
        """Answer with a job: 200 if it has ended, else 202 with the seconds after which to look again (Retry-After).

        `body` and its `location` are answered in the job's place.
        """
        content = (body or job).model_dump(mode="json")
        headers = {"Location": location or f"/v1/jobs/{job.id}"}
        if self._applied:
            headers["Preference-Applied"] = f"wait={self._applied:g}"
        if job.state in FINAL:
            return JSONResponse(content, 200, headers)
        headers["Retry-After"] = str(min(MAX_RETRY_AFTER_S, max(1, math.ceil(job.progress.eta_s or 1))))
        return JSONResponse(content, 202, headers)

    def _begin(self, prepare: Callable[[], Placement]) -> Job | Placement:
        """Return the job, or a placement that is still to be vetted."""
        with self._database.reading() as session:
            earlier = self._earlier(session)
        if earlier is not None:
            return earlier
        placement = prepare()
        return self._make(placement) if self._vet is None else placement

    async def _vetted(self, placement: Placement) -> Job:
        vetted = placement if self._vet is None else await self._vet(placement)
        return await self._pool.run(self._make, vetted)

    def _make(self, placement: Placement) -> Job:
        try:
            return self._place(placement)
        except IntegrityError:
            if self._key is None:
                raise
            return self._place(placement)  # a request with the same key was faster: this finds its job

    def _place(self, placement: Placement) -> Job:
        with self._database.transaction(durable=False) as session:
            service.bind_dispatch(session, self._dispatch)
            earlier = self._earlier(session)
            if earlier is not None:
                return earlier
            job = placement.place(session)
            if self._key is not None:
                idempotency.remember(session, self._key, self._digest, job.id)
            return job

    def _earlier(self, session: Session) -> Job | None:
        """Return the job that this Idempotency-Key made before, None if it made none."""
        if self._key is None:
            return None
        job_id = idempotency.earlier_job(session, self._key, self._digest)
        return None if job_id is None else service.get_job(session, job_id)

    @cached_property
    def _digest(self) -> str:
        return idempotency.request_digest(*self._request)

    def _settled(self, job: Job) -> JobAnswer:
        self._database.settle()
        with self._database.reading() as session:
            return self._answered(session, job)

    async def _finished(self, job_id: str) -> JobAnswer:
        """Return the job once it has ended, or as it is when the time is up."""
        with self._watching.waiting(job_id) as ended:
            if not self._watching.ending:
                await wait_for(ended, self._wait_s)
        return await self._reads.run(self._read, job_id)

    def _read(self, job_id: str) -> JobAnswer:
        with self._database.reading() as session:
            return self._answered(session, service.get_job(session, job_id))

    def _answered(self, session: Session, job: Job) -> JobAnswer:
        return job_answers(session, self._settings, [job])[0]


async def _submit(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(description="A key of your choice: sent again, it gives the same job instead of a second one."),
    ] = None,
    prefer: Annotated[
        str | None, Header(description="`wait=SECONDS`: answer with the finished job if it ends in time.")
    ] = None,
) -> Submit:
    return Submit(request, idempotency_key, prefer, await request.body())


async def _submit_patiently(
    request: Request,
    prefer: Annotated[
        str | None, Header(description="`wait=SECONDS`: how long to wait for the job, where there has to be one.")
    ] = None,
) -> Submit:
    return Submit(request, None, prefer, b"", patience_s=request.app.state.settings.max_prefer_wait_s)


SubmitDep = Annotated[Submit, Depends(_submit)]
PatientSubmitDep = Annotated[Submit, Depends(_submit_patiently)]  # for a call that reads a file which a job makes first


def wait_seconds(prefer: str | None) -> float | None:
    """Return the seconds of a Prefer header's `wait` (RFC 7240, 4.3), None if it has none."""
    found = WAIT.search(prefer or "")
    return float(found[1]) if found else None
