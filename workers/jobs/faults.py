"""What can go wrong with a job, what the client is told, and whether trying again may help."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from app.artifacts.checked import BlobDamaged
from app.database import DATABASE_DOWN
from app.errors import ServiceError, Unavailable
from app.jobs.lease import JobError
from workers.channel.host import EngineHostDied
from workers.channel.messages import BackendError

PASSING = {"file_failed", "out_of_memory", "device_failed"}  # faults of the machine, not of the job
log = structlog.get_logger(__name__)


class ShuttingDown(Exception):
    """The worker is being stopped, so the job goes back to the queue."""


class DeadlineExceeded(Exception):
    """The job has run for longer than `seconds`, the setting `job_deadline_s`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class VerificationFailed(Exception):
    """An engine's outputs are too far from the reference; `figures` say how far."""

    def __init__(self, detail: str, figures: Mapping[str, Any]) -> None:
        super().__init__(detail)
        self.detail = detail
        self.figures = dict(figures)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a job could not be done; `passing` says that another attempt may succeed."""

    error: JobError
    passing: bool = False


def fault_of(error: Exception, tail: Sequence[str]) -> Fault:  # noqa: PLR0911 - a table, one line per kind
    """Return what a client is told of an error; `tail` is the end of the engine host's log."""
    log_lines = list(tail)
    match error:
        case BackendError():
            return Fault(JobError(error.code, error.detail, log_lines), passing=error.code in PASSING)
        case VerificationFailed():
            return Fault(JobError("verification_failed", error.detail, log_lines, error.figures))
        case DeadlineExceeded():
            return Fault(JobError("deadline_exceeded", _too_long(error.seconds), log_lines))
        case EngineHostDied():
            return Fault(JobError(error.code, error.detail, error.log or log_lines), passing=True)
        case BlobDamaged():
            return Fault(JobError(error.code, error.detail, log_lines))
        case Unavailable():
            return Fault(JobError(error.code, error.detail, log_lines), passing=True)
        case ServiceError():
            return Fault(JobError(error.code, error.detail, log_lines))
        case OSError():
            return Fault(JobError("storage_failed", _storage(error), log_lines), passing=True)
    if isinstance(error, DATABASE_DOWN):
        return Fault(JobError("database_unavailable", _database(error), log_lines), passing=True)
    log.error("job failed by a fault in the worker", exc_info=error)
    return Fault(JobError("internal_error", _internal(error), log_lines))


def _too_long(seconds: float) -> str:
    return (
        f"The job ran for longer than {seconds:g} s and was killed. "
        "Raise ENGINESMITH_JOB_DEADLINE_S, or ask for less (fewer profiles, a lower optimisation level)."
    )


def _storage(error: OSError) -> str:
    return f"Reading or writing a file failed: {error}. Check the worker's disk space and its data directory."


def _database(error: Exception) -> str:
    return f"The database did not answer: {getattr(error, 'orig', None) or error}. Check it and the space on its disk."


def _internal(error: Exception) -> str:
    return f"The worker failed in a way it should not ({type(error).__name__}); its log has the traceback."
