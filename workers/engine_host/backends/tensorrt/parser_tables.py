"""What the parsers of the releases of TensorRT and TensorRT-RTX take: the files of the folder `parser_tables`.

This needs no TensorRT.
"""

from functools import cache
from pathlib import Path

from workers.engine_host.preflight.parser_table import ParserTable

FOLDER = Path(__file__).with_name("parser_tables")


@cache
def parser_tables() -> tuple[ParserTable, ...]:
    """Return all tables, by library and the first release that each is about."""
    tables = map(ParserTable.read, FOLDER.glob("*.toml"))
    return tuple(sorted(tables, key=lambda one: (one.library, _numbers(one.releases[0]), one.name)))


def parser_table(library: str, version: str) -> ParserTable | None:
    """Return the table that names most of a version of "tensorrt" or "tensorrt_rtx", None if none does."""
    fitting = [one for one in parser_tables() if one.library == library and one.fits(version)]
    return max(fitting, key=lambda one: one.fits(version), default=None)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in release.split("."))
