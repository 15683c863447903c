"""Every figure that needs no GPU: measure, compare with the aims, print the table, keep the JSON.

python -m benchmarks.cpu [NAME ...]     all, or some of: upload jobs minilm bindings memory scale
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import bindings, jobs, memory, minilm, scale, upload
from benchmarks.machine import machine
from benchmarks.service import running_service

RESULTS = Path(__file__).parent / "results"
console = Console(highlight=False)


def main(names: list[str]) -> None:
    """Run the benchmarks named, all by default."""
    chosen = names or list(BENCHMARKS)
    figures: dict[str, Any] = {}
    for name in chosen:
        with console.status(name):
            figures[name] = BENCHMARKS[name]()
        console.print(f"[bold]{name}[/]")
        console.print_json(data=figures[name])
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"cpu-{'-'.join(names) or 'all'}.json"
    path.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")
    console.print(_table(figures))
    console.print(f"written to {path}")


def _with_service(measure: Callable[..., dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as scratch, running_service() as service:
            return measure(service, Path(scratch))

    return run


def _scale() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        return scale.measure(Path(scratch))


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "upload": upload.measure,
    "jobs": _with_service(jobs.measure),
    "minilm": _with_service(minilm.measure),
    "bindings": _with_service(bindings.measure),
    "memory": _with_service(memory.measure),
    "scale": _scale,
}

# What is measured, where its figure lies, the aim, and whether the figure must be at most or at least the aim.
AIMS: tuple[tuple[str, tuple[str, ...], float, str], ...] = (
    ("upload of 1 GiB over read + SHA-256 + write by hand", ("upload", "ratio"), 1.25, "<="),
    ("API memory growth during a 10 GiB upload, MiB", ("upload", "large_growth_mib"), 50, "<="),
    ("warm refit of a tiny model, p50 ms", ("jobs", "warm_refit", "p50_ms"), 40, "<="),
    ("warm refit of a tiny model, p99 ms", ("jobs", "warm_refit", "p99_ms"), 150, "<="),
    ("refit, 1 of 292 parameters, beyond the host, p50 ms", ("jobs", "deep_refit", "beyond_host_p50_ms"), 40, "<="),
    ("MiniLM refit, 1 tensor changed, over bare calls", ("minilm", "refit_over_bare"), 1.3, "<="),
    ("MiniLM refit over build", ("minilm", "refit_over_build"), 0.25, "<="),
    ("propose rules for 1,000 tensors, p50 ms", ("bindings", "propose_ms"), 500, "<="),
    ("check a binding of 1,000 tensors, p50 ms", ("bindings", "check_ms"), 50, "<="),
    ("refit by other rules over the old ones", ("bindings", "other_rules_over_old"), 1.05, "<="),
    ("bind with a transpose of every matrix over a bare copy", ("bindings", "transpose_over_copy"), 1.5, "<="),
    ("memory of binding 4 GiB beyond bare, MiB", ("memory", "beyond_bare_mib"), 200, "<="),
    ("GET of a job, per second", ("jobs", "read_job", "per_second"), 300, ">="),
    ("GET of a job, p99 ms", ("jobs", "read_job", "p99_ms"), 100, "<="),
)


def _table(figures: dict[str, Any]) -> Table:
    table = Table("figure", "aim", "measured", "", title="Aims", title_justify="left")
    rows = [(name, _find(figures, path), aim, sense) for name, path, aim, sense in AIMS]
    for kind, measured in figures.get("scale", {}).items():
        rows += [(f"{what}, 100,000 over 100, {kind}", at["ratio"], 1.5, "<=") for what, at in measured.items()]
    for name, value, aim, sense in rows:
        if value is not None:
            met = value <= aim if sense == "<=" else value >= aim
            table.add_row(name, f"{sense} {aim:g}", f"{value:g}", "met" if met else "missed")
    return table


def _find(figures: dict[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = figures
    for part in path:
        if part not in value:
            return None
        value = value[part]
    return float(value)


if __name__ == "__main__":
    main(sys.argv[1:])
