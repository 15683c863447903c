"""The command line: `enginesmith serve | api | worker | migrate | prune | health | version`.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""
# ruff: noqa: PLC0415 - the reason above

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.serve.errors import CannotStart

if TYPE_CHECKING:
    from app.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")]
AllowAnonymous = Annotated[
    bool,
    typer.Option(
        "--allow-anonymous",
        envvar="ENGINESMITH_ALLOW_ANONYMOUS",
        help="Listen on an address that other machines reach, although whoever reaches it may do everything.",
    ),
]


def _print_version(asked: bool) -> None:  # noqa: FBT001 - the option's value, as Typer gives it
    from importlib.metadata import version as installed

    if asked:
        typer.echo(installed("enginesmith"))
        raise typer.Exit


@app.callback()
def enginesmith(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Turn trained weights into inference engines and keep them current. Configured by ENGINESMITH_* variables."""


@app.command()
def serve(
    *,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where everything is kept; default: ENGINESMITH_DATA_DIR, else ./data.")
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="cpu, or cuda:N for the Nth GPU; may be given several times, for a worker on each. "
            "Default: the CPU, and every GPU where TensorRT is installed."
        ),
    ] = None,
    allow_anonymous: AllowAnonymous = False,
) -> None:
    """Run the whole service on this machine until Ctrl-C.

    That is an API, a worker for each device, a broker and a database.
    """
    from app.processes.gpus import all_devices
    from app.serve.service import serve as run

    devices = list(dict.fromkeys(map(_device, device or all_devices())))
    given = {} if data_dir is None else {"data_dir": data_dir}
    raise typer.Exit(run(_settings(**given), host, port, devices, allow_anonymous=allow_anonymous))


@app.command()
def api(
    *,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    fd: Annotated[
        int | None,
        typer.Option(min=0, help="A listening socket inherited from the parent process, instead of an address."),
    ] = None,
    allow_anonymous: AllowAnonymous = False,
) -> None:
    """Run one API process."""
    from app.serve.api import run
    from app.serve.listening import inherited, listen

    settings = _settings()
    with (
        listen(host, port, allow_anonymous=allow_anonymous)
        if fd is None
        else inherited(fd, allow_anonymous=allow_anonymous)
    ) as listener:
        run(settings, listener)


@app.command()
def worker(*, device: Annotated[str, typer.Option(help="cpu, or cuda:N for the Nth GPU.")] = "cpu") -> None:
    """Run one worker on one device."""
    from app.processes.environment import python_environment

    arguments = [sys.executable, "-m", "workers", "--device", _device(device)]
    _settings()
    # `app` never imports `workers`, so this process is replaced by one that runs `workers`.
    os.execve(sys.executable, arguments, python_environment())  # noqa: S606 - no shell wanted


@app.command()
def migrate() -> None:
    """Bring the database to the present schema.

    It is safe to run this from several places at once.
    """
    from sqlalchemy.exc import OperationalError

    from app.serve.data_directory import make_private, unwritable
    from app.serve.database import unreachable
    from migrations import upgrade

    settings = _settings()
    make_private(settings.data_dir)
    try:
        upgrade(settings.database)
    except OperationalError as error:
        raise unreachable(settings, error) from error
    except OSError as error:  # the directory of an SQLite file cannot be made
        raise unwritable(settings.data_dir, error) from error


@app.command()
def prune(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing; print what would go.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Remove now what is older than the settings allow.

    Workers do the same by themselves. Engines, weights and definitions are never removed.
    """
    from app.serve.pruning import print_prunable, print_pruned

    action = print_prunable if dry_run else print_pruned
    action(_settings(), as_json=json)


@app.command()
def health(
    *, url: Annotated[str | None, typer.Option(help="An API's URL; without it, the workers of this host.")] = None
) -> None:
    """Tell whether an API, or a worker of this host, is alive.

    The exit status is 0 if it is, and 1 if not: a container's health check.
    """
    from app.serve.health import check_api, check_worker

    if url is None:
        check_worker(_settings())
    else:
        check_api(url)


@app.command()
def version() -> None:
    """Print the version."""
    _print_version(asked=True)


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda:\d+", name):
        raise typer.BadParameter(f"{name!r} is no device. Use cpu, or cuda:0 for the first GPU.")
    return name


def _settings(**given: Any) -> "Settings":  # noqa: ANN401 - pydantic checks the values
    from pydantic import ValidationError

    from app.redaction import hide_in_tracebacks, learn
    from app.serve.variables import unknown_variables
    from app.settings import Settings

    for warning in unknown_variables():
        typer.echo(f"enginesmith: warning: {warning}", err=True)
    try:
        settings = Settings(**given)
    except ValidationError as error:
        faults = [(str(one["loc"][0]).upper(), one["msg"].removeprefix("Value error, ")) for one in error.errors()]
        told = "; ".join(f"ENGINESMITH_{name}: {fault}" for name, fault in faults)
        raise CannotStart("bad_settings", f"{told}. Mend the environment variable.") from error
    learn(settings)
    hide_in_tracebacks()
    return settings


def main() -> None:
    """Run the command line; if a command cannot start, print its one message and exit with 1."""
    try:
        app()
    except CannotStart as error:
        typer.echo(f"enginesmith: {error} [{error.code}]", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
