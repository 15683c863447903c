"""The figures of campaigns, as a table and as JSON."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.chaos.campaign import Campaign
from benchmarks.machine import machine

SHOWN = 20  # cases of each sort
COLUMNS = ("lost", "doubled", "dangling", "wrong", "failed", "struck")


def write(path: Path, campaigns: Sequence[Campaign], about: dict[str, Any]) -> None:
    """Write what is known so far; whoever reads meanwhile finds the one before."""
    figures = {"machine": machine(), **about, "figures": {one.kind: _figures(one) for one in campaigns}}
    new = path.with_suffix(".new")
    new.write_text(json.dumps(figures, indent=2) + "\n")
    new.replace(path)


def table(campaigns: Sequence[Campaign]) -> Table:
    """Return one row for each campaign."""
    shown = Table(title="median / worst seconds from the end of a fault")
    for name in ("campaign", "faults", "jobs", *COLUMNS, "refused", "stuck", "next success", "jobs in flight ended"):
        shown.add_column(name, justify="left" if name == "campaign" else "right")
    for one in campaigns:
        found = asdict(one.findings)
        counts = [sum(one.faults.values()), one.jobs, *(len(found[name]) for name in COLUMNS)]
        counts += [len(one.refused), one.stuck]
        spreads = [_spread(one.next_success_s), _spread(one.in_flight_s)]
        times = [f"{spread['median']:.1f} / {spread['worst']:.1f}" if spread else "" for spread in spreads]
        shown.add_row(one.kind, *map(str, counts), *times)
    return shown


def cases(campaigns: Sequence[Campaign]) -> str:
    """Return a line for each promise that was broken, and each job that was struck, the first ones of each sort."""
    lines = [
        f"{one.kind}, {what}: {case}"
        for one in campaigns
        for what, found in (*asdict(one.findings).items(), ("refused", one.refused))
        for case in found[:SHOWN]
    ]
    return "\n".join(lines)


def _figures(one: Campaign) -> dict[str, Any]:
    found = asdict(one.findings) | {"refused": one.refused}
    return {
        "faults": sum(one.faults.values()),
        "of_which": dict(one.faults),
        "seconds": round(one.seconds, 1),
        "jobs": one.jobs,
        **{what: len(list_of) for what, list_of in found.items()},
        "stuck": one.stuck,
        "next_success_s": _spread(one.next_success_s),
        "jobs_in_flight_ended_s": _spread(one.in_flight_s),
        "cases": {what: list_of[:SHOWN] for what, list_of in found.items() if list_of},
    }


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {"median": round(statistics.median(seconds), 2), "worst": round(max(seconds), 2)}
