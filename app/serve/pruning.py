"""The command `enginesmith prune`: what may go, as a table or as JSON."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import typer

from app.artifacts.store import ArtifactStore, open_store
from app.database import DATABASE_DOWN, Database
from app.errors import ServiceError
from app.pruning import Prunable, prunable, prune
from app.serve.database import require_database, unreachable
from app.serve.errors import CannotStart
from app.settings import MIB, Settings

HEAD = ("kind", "count", "MiB", "oldest", "setting")


def print_prunable(settings: Settings, *, as_json: bool) -> None:
    """Print what would go now; raises CannotStart if database or store does not answer."""
    with _opened(settings) as (database, store):
        found = prunable(database, store, settings)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], default=str, indent=2))
    else:
        typer.echo(_table([HEAD, *map(_cells, found)]))


def print_pruned(settings: Settings, *, as_json: bool) -> None:
    """Remove what may go, and print the counts; raises CannotStart if database or store does not answer."""
    with _opened(settings) as (database, store):
        counts = prune(database, store, settings)
    if as_json:
        typer.echo(json.dumps(counts, indent=2))
    else:
        typer.echo(_table([("removed", "count"), *((kind, str(count)) for kind, count in counts.items())]))


@contextmanager
def _opened(settings: Settings) -> Iterator[tuple[Database, ArtifactStore]]:
    require_database(settings)
    database = Database(settings.database)
    try:
        yield database, open_store(settings)
    except DATABASE_DOWN as error:
        raise unreachable(settings, error) from error
    except ServiceError as error:
        raise CannotStart(error.code, error.detail) from error
    finally:
        database.dispose()


def _cells(one: Prunable) -> tuple[str, ...]:
    size = "" if one.bytes is None else f"{one.bytes / MIB:.1f}"
    oldest = "" if one.oldest is None else f"{one.oldest:%Y-%m-%d %H:%M}"
    return one.kind, str(one.count), size, oldest, one.setting


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
