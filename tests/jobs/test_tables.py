from uuid import UUID

from sqlalchemy import select

from app.database import Database
from app.jobs.tables import Job
from tests.jobs.conftest import MakeJob


def test_ids_sort_by_when_their_jobs_were_made_also_within_a_millisecond(database: Database, make_job: MakeJob) -> None:
    made = [make_job() for _ in range(50)]
    with database.reading() as session:
        assert session.scalars(select(Job.id).order_by(Job.id)).all() == made
    assert {UUID(job).version for job in made} == {7}
