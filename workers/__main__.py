"""`python -m workers --device cpu`: one worker on one device."""

from typing import Annotated

import typer

from app.errors import ServiceError
from app.observability import configure_logging
from app.redaction import without_secrets
from app.serve.data_directory import make_private
from app.serve.database import require_database
from app.serve.errors import CannotStart
from app.settings import get_settings
from workers.channel.host import EngineHostDied
from workers.channel.messages import BackendError
from workers.consuming import consume
from workers.housekeeping import housekeeping
from workers.jobs.worker import open_worker

program = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@program.command()
def main(device: Annotated[str, typer.Option(help='"cpu" or a GPU, such as "cuda:0".')] = "cpu") -> None:
    """Take jobs from the queues of the backends this device offers, until SIGTERM or Ctrl-C."""
    settings = get_settings()
    configure_logging(settings)
    try:
        require_database(settings)
        make_private(settings.data_dir)
        with open_worker(settings, device) as worker, housekeeping(worker):
            consume(worker)
    except (ServiceError, BackendError, EngineHostDied) as error:
        raise SystemExit(without_secrets(f"The worker cannot start: {error.detail}")) from error
    except CannotStart as error:
        raise SystemExit(f"The worker cannot start: {error} [{error.code}]") from error


if __name__ == "__main__":
    program()
