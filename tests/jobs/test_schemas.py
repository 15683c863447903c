import pytest

from app.database import Database
from app.jobs import lease, service
from app.jobs.lease import Claim, JobError, JobProgress
from app.jobs.schemas import ProgressAnswer, job_answer
from app.settings import Settings


@pytest.fixture
def held(database: Database, settings: Settings, queued: str) -> Claim:
    """A running job."""
    claim = lease.claim(database, queued, worker="w", settings=settings)
    assert claim is not None
    return claim


def _progress(database: Database, job_id: str) -> ProgressAnswer:
    with database.reading() as session:
        return job_answer(service.get_job(session, job_id)).progress


def test_a_phase_without_a_total_has_no_step(database: Database, held: Claim) -> None:
    lease.renew(database, held, progress=JobProgress("verify", 0, None))
    assert _progress(database, held.job_id) == ProgressAnswer(phase="verify", step=None, total=None, eta_s=None)


def test_a_phase_with_a_total_says_how_far_it_is(database: Database, held: Claim) -> None:
    lease.renew(database, held, progress=JobProgress("compile", 3, 7))
    assert _progress(database, held.job_id) == ProgressAnswer(phase="compile", step=3, total=7, eta_s=None)


@pytest.mark.parametrize(("total", "step"), [(None, None), (7, 7)])
def test_a_job_that_succeeded_is_done(database: Database, held: Claim, total: int | None, step: int | None) -> None:
    lease.renew(database, held, progress=JobProgress("verify", 3, total))
    with database.transaction() as session:
        lease.succeed(session, held, {"engine": 1})
    assert _progress(database, held.job_id) == ProgressAnswer(phase="done", step=step, total=total, eta_s=None)


def test_a_job_that_failed_stays_in_the_phase_it_failed_in(database: Database, held: Claim) -> None:
    lease.renew(database, held, progress=JobProgress("compile", 3, 7))
    lease.fail(database, held, JobError("bad", "Do better."))
    assert _progress(database, held.job_id) == ProgressAnswer(phase="compile", step=3, total=7, eta_s=None)
