"""`python -m workers --device cpu`: one worker on one device."""

from typing import Annotated

import sqlalchemy as sa
import typer

from app.database import Database
from app.errors import ServiceError
from app.observability import configure_logging
from app.settings import Settings, get_settings
from workers.celery import consume
from workers.channel.host import EngineHostDied
from workers.channel.messages import BackendError
from workers.housekeeping import housekeeping
from workers.jobs.worker import open_worker

program = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@program.command()
def main(device: Annotated[str, typer.Option(help='"cpu" or a GPU, such as "cuda:0".')] = "cpu") -> None:
    """Take jobs from the queues of the backends this device offers, until SIGTERM or Ctrl-C."""
    settings = get_settings()
    configure_logging(settings)
    check_database(settings)
    try:
        with open_worker(settings, device) as worker, housekeeping(worker):
            status = consume(worker)
    except (ServiceError, BackendError, EngineHostDied) as error:
        raise SystemExit(f"The worker cannot start: {error.detail}") from error
    raise SystemExit(status)


def check_database(settings: Settings) -> None:
    """Exit with a remedy where the database does not answer or has no tables."""
    database = Database(settings.database)
    try:
        if not sa.inspect(database.engine).has_table("jobs"):
            raise SystemExit("The database has no tables yet: run `enginesmith migrate` first.")
    except sa.exc.OperationalError as error:
        raise SystemExit(f"The database does not answer: {error.orig}. Check ENGINESMITH_DATABASE_URL.") from error
    finally:
        database.dispose()


if __name__ == "__main__":
    program()
