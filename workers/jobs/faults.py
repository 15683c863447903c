"""What can go wrong with a job, what the client is told, and whether trying again may help."""

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from app.artifacts.checked import BlobDamaged
from app.database import DATABASE_DOWN
from app.disk_faults import DISK_FAULTS
from app.engines.crashes import OTHER_VERSION_WANTED
from app.errors import ServiceError, Unavailable
from app.jobs.lease import JobError
from workers.channel.host import EngineHostDied, EngineHostNotStarted
from workers.channel.messages import BackendError
from workers.jobs.crashes import Crash, is_crash

PASSING = {"file_failed", "device_failed"}  # faults of the machine, not of the job
STORE_OUTAGES = {"store_unavailable", "store_full", "store_read_only"}
NO_MEMORY = "out_of_memory"
MAX_STRIKES = 2  # an engine host that dies twice dies of the job
NETWORK_FAULTS = frozenset({errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH})
MACHINE_FAULTS = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN})
REFUSED_TO_HOST = {errno.EACCES, errno.EPERM}  # of its confinement: that lasts, and the worker's store tells of itself
OUTAGES = DISK_FAULTS | NETWORK_FAULTS | MACHINE_FAULTS
log = structlog.get_logger(__name__)


class ShuttingDown(Exception):
    """The worker is being stopped, so the job goes back to the queue."""


class DeadlineExceeded(Exception):
    """The job has run for longer than `seconds`, the setting `job_deadline_s`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class TakesTooLong(Exception):
    """A verification or a run of an engine, as `what` says, has taken more than `seconds`."""

    def __init__(self, what: Literal["verification", "run"], seconds: float) -> None:
        super().__init__(what, seconds)
        self.what = what
        self.seconds = seconds


class VerificationFailed(Exception):
    """An engine's outputs are too far from the reference; `figures` say how far."""

    def __init__(self, detail: str, figures: Mapping[str, Any]) -> None:
        super().__init__(detail)
        self.detail = detail
        self.figures = dict(figures)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a job could not be done; `passing` says that another attempt may succeed.

    An `outage` is no fault of the job and counts no attempt; `cut_off` says what this worker is without: "store",
    "host" or nothing. A `strike` may well be a fault of the job: the engine host died of it. A `crash` is a death that
    nobody brought about from outside.
    """

    error: JobError
    passing: bool = False
    outage: bool = False
    cut_off: str | None = None
    strike: bool = False
    crash: bool = False


def is_outage(error: Exception) -> bool:
    """Tell whether nothing is wrong with what was asked: the database, the store or a disk does not answer.

    A worker whose compiler crashes at a job is an outage as well if others can do the job.
    """
    match error:
        case Unavailable() if not isinstance(error, BlobDamaged):
            return error.code in STORE_OUTAGES or error.code == OTHER_VERSION_WANTED
        case ServiceError():
            return False
        case OSError():
            return error.errno in OUTAGES or isinstance(error, ConnectionError | TimeoutError)
        case BackendError(code="file_failed"):
            return any(os.strerror(number) in error.detail for number in DISK_FAULTS - REFUSED_TO_HOST)
    return isinstance(error, DATABASE_DOWN)


def fault_of(error: Exception, tail: Sequence[str]) -> Fault:  # noqa: C901, PLR0911 - a table, one entry per kind
    """Return what a client is told of an error; `tail` is the end of the engine host's log."""
    log_lines = list(tail)
    match error:
        case BackendError():
            told = JobError(error.code, error.detail, log_lines)
            strike = error.code == NO_MEMORY
            outage = is_outage(error)
            passing = strike or error.code in PASSING
            return Fault(told, passing, outage=outage, cut_off="store" if outage else None, strike=strike)
        case VerificationFailed():
            return Fault(JobError("verification_failed", error.detail, log_lines, error.figures))
        case DeadlineExceeded():
            return Fault(JobError("deadline_exceeded", _too_long(error.seconds), log_lines))
        case EngineHostNotStarted():
            told = JobError(error.code, error.detail, error.log or log_lines)
            return Fault(told, passing=True, outage=True, cut_off="host")
        case TakesTooLong():
            return Fault(_too_slow(error, log_lines))
        case EngineHostDied():
            told = JobError(error.code, error.detail, log_lines or error.log)
            return Fault(told, passing=True, strike=True, crash=is_crash(error))
        case Unavailable() if not isinstance(error, BlobDamaged):
            outage = is_outage(error)
            told = JobError(error.code, error.detail, log_lines)
            cut_off = "store" if error.code in STORE_OUTAGES else None
            return Fault(told, passing=True, outage=outage, cut_off=cut_off)
        case ServiceError():
            return Fault(JobError(error.code, error.detail, log_lines))
        case OSError():
            outage = is_outage(error)
            told = JobError("storage_failed", _storage(error), log_lines)
            return Fault(told, passing=True, outage=outage, cut_off="store" if outage else None)
    if isinstance(error, DATABASE_DOWN):
        return Fault(JobError("database_unavailable", _database(error), log_lines), passing=True, outage=True)
    log.error("job failed by a fault in the worker", exc_info=error)
    return Fault(JobError("internal_error", _internal(error), log_lines))


def died_again(error: JobError, crash: Crash | None = None) -> JobError:
    """Return what a client is told of a job of which the engine host died for the last time it is tried.

    `crash` is given if it was the compiler that crashed both times.
    """
    if error.code == NO_MEMORY:
        return error
    if crash is not None:
        return _crashed_again(error, crash)
    return JobError(
        "engine_host_died_twice",
        f"The engine host died in {MAX_STRIKES} attempts at this job, so the job is the likely cause. {error.detail} "
        "Its last lines are in `log`. Change the model, the options or the backend's version before you post it again.",
        error.log,
    )


def _crashed_again(error: JobError, crash: Crash) -> JobError:
    at = f"It was compiling '{crash.layer}'." if crash.layer else "Its log does not say which layer it was compiling."
    return JobError(
        "engine_host_died_twice",
        f"The compiler crashed in {MAX_STRIKES} attempts at this job, in the last one with nothing beside it. {at} "
        f"{crash.detail} The last lines of its verbose log are in `log`. Builds of this definition with these profiles "
        "and options are refused from now on by this version of the backend. Change the graph at that layer, the "
        "options or the profiles, or use another backend or another version of it.",
        error.log,
        {"layer": crash.layer},
    )


def _too_long(seconds: float) -> str:
    return (
        f"The job ran for longer than {seconds:g} s by the clock and was killed. If the machine was busy, post the job "
        "again when it is not. Else raise ENGINESMITH_JOB_DEADLINE_S, or ask for less (fewer profiles, a lower "
        "optimisation level)."
    )


def _too_slow(error: TakesTooLong, log_lines: list[str]) -> JobError:
    if error.what == "run":
        return JobError("run_timeout", _endless_run(error.seconds), log_lines)
    return JobError("verification_timeout", _endless_verification(error.seconds), log_lines)


def _endless_run(seconds: float) -> str:
    return (
        f"The engine ran for more than {seconds:.0f} s by the clock and was killed. If the machine was busy, post the "
        "job again when it is not. If the engine is meant to take so long on such inputs, raise "
        "ENGINESMITH_RUN_DEADLINE_S, or give smaller inputs (to a benchmark, fewer iterations). Else look for an "
        "endless Loop in the model."
    )


def _endless_verification(seconds: float) -> str:
    return (
        f"The verification took more than {seconds:.0f} s by the clock and was killed. If the machine was busy, post "
        "the job again when it is not. If the model is meant to take so long, raise "
        'ENGINESMITH_VERIFICATION_DEADLINE_S, or give smaller inputs in "verify". Else look for an endless Loop in it.'
    )


def _storage(error: OSError) -> str:
    return f"Reading or writing a file failed: {error}. Check the worker's disk space and its data directory."


def _database(error: Exception) -> str:
    return f"The database did not answer: {getattr(error, 'orig', None) or error}. Check it and the space on its disk."


def _internal(error: Exception) -> str:
    return f"The worker failed in a way it should not ({type(error).__name__}); its log has the traceback."
