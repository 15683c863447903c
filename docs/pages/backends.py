"""The table of TensorRT's releases in docs/backends.md, from what the bindings of each release have."""

import json
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).parents[1] / "backends.md"
TABLE: Final = Path(__file__).parents[2] / "benchmarks" / "results" / "tensorrt-releases.json"
BEGIN: Final = "<!-- `make docs` writes this table from benchmarks/results/tensorrt-releases.json; do not edit. -->\n"
END: Final = "<!-- the end of the table -->\n"
COLUMNS: Final[Mapping[str, str]] = {
    "FP16 flag": "fp16_flag",
    "strongly typed": "strongly_typed",
    "weight stripping": "strip_plan",
    "refit of some weights": "refit_individual",
    "asynchronous refit, weights read back": "async_refit",
    "weight streaming": "weight_streaming",
    "plan written anew can be refitted": "include_refit",
}


def page() -> str:
    """Return the page with the table as it should be; raises ValueError if the page has no place for it."""
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no place for the table of releases: {BEGIN}")
    return f"{before}{BEGIN}{_table()}{END}{after}"


def _table() -> str:
    rows = [_row(["release", *COLUMNS, "hardware compatibility"]), _row(["---"] * (len(COLUMNS) + 2))]
    releases = json.loads(TABLE.read_text())["releases"]
    for _, group in groupby(releases, key=_alike):
        alike = list(group)
        can = alike[0]["capabilities"]
        had = ["yes" if can[name] else "" for name in COLUMNS.values()]
        rows.append(_row([_names(alike), *had, ", ".join(level.lower() for level in can["hardware_levels"])]))
    return "\n".join(rows) + "\n"


def _alike(one: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a key to group by
    return one["library"], [one["capabilities"][name] for name in (*COLUMNS.values(), "hardware_levels")]


def _names(alike: list[Mapping[str, Any]]) -> str:
    first, last = (_short(one["release"]) for one in (alike[0], alike[-1]))
    return first if first == last else f"{first} to {last}"


def _short(release: str) -> str:
    """Return a release by its first two numbers: "RTX 1.4"."""
    name = release.partition(" for ")[0]
    return ".".join(name.split(".")[:2])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")
