"""Faults put into refits on purpose: is each refused, noticed by the verification, or listed as unseen before?

python -m benchmarks.faults [NUMBER] [SEED] [--jobs N] [--shards FOLDER]     300 faults over all models by default

The fault is a parameter of a refitted engine that is not what the engine's weight version says, as if binding, storage
or refit had gone wrong, or it is a damaged file. The service's own code binds, and the engine host's own code builds,
refits and verifies, in N processes of one core each. Each keeps what came of some faults in a file of FOLDER. What lies
there already is not done again, so a campaign goes on where it was ended, with more faults too.
"""

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.fault_bench import KINDS, Bench, Fault, Known
from benchmarks.faulty_models import Model, models
from benchmarks.machine import machine

NUMBER, SEED = 300, 1
SHARD = 50  # faults
RESULT = Path(__file__).parent / "results" / "faults.json"
SHOWN = 20
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Shard:
    """The faults of a model from `start` to `stop`, and the file for what comes of them."""

    model: Model
    known: Known
    seed: int
    start: int
    stop: int
    file: Path


def main(number: int, seed: int, jobs: int, shards: Path | None) -> None:
    """Put in the faults, print how they ended and keep the figures, after each shard those that there are."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="enginesmith-faults-") as temporary:
        folder = Path(temporary)
        kept = shards or folder / "shards"
        kept.mkdir(parents=True, exist_ok=True)
        chosen = list(models(folder))
        with _processes(jobs) as pool:
            known = dict(
                zip(
                    [model.name for model in chosen],
                    pool.map(_measured, chosen, [folder] * len(chosen), [kept] * len(chosen)),
                    strict=True,
                )
            )
            work = list(_shards(chosen, known, number, seed, kept))
            faults: list[Fault] = []
            with console.status("faults"):
                for made in pool.map(_put_in, work, [folder] * len(work)):
                    faults += made
                    _keep(faults, known, {"seed": seed, "jobs": jobs}, started)
    console.print(_table(_figures(faults)))
    console.print(f"written to {RESULT}")


def _shards(chosen: Sequence[Model], known: Mapping[str, Known], number: int, seed: int, kept: Path) -> Iterator[Shard]:
    for index, model in enumerate(chosen):
        share = number // len(chosen) + (index < number % len(chosen))
        for start in range(0, share, SHARD):
            stop = min(start + SHARD, share)
            file = kept / f"{model.name}-{seed}-{start}-{stop}.json"
            yield Shard(model, known[model.name], seed, start, stop, file)


def _processes(jobs: int) -> ProcessPoolExecutor:
    """Return processes that each keep to one core, so that their sessions' threads do not wait for each other's."""
    context = get_context("spawn")
    cores: Queue[set[int]] = context.Queue()
    there = sorted(os.sched_getaffinity(0))
    for index in range(jobs):
        cores.put({there[index % len(there)]} if jobs > 1 else set(there))
    return ProcessPoolExecutor(jobs, context, _keep_to, (cores,))


def _keep_to(cores: "Queue[set[int]]") -> None:
    os.sched_setaffinity(0, cores.get())


def _measured(model: Model, folder: Path, kept: Path) -> Known:
    file = kept / f"{model.name}-known.json"
    if file.exists():
        return Known.from_json(json.loads(file.read_text()))
    known = Bench(model, Path(tempfile.mkdtemp(dir=folder))).known
    _write(file, asdict(known))
    return known


def _write(file: Path, value: object) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.rename(file)


_benches: dict[str, Bench] = {}  # of this process: the last model's


def _put_in(shard: Shard, folder: Path) -> list[Fault]:
    if shard.file.exists():
        return [Fault(**{**row, "parameters": tuple(row["parameters"])}) for row in json.loads(shard.file.read_text())]
    if shard.model.name not in _benches:
        _benches.clear()
        _benches[shard.model.name] = Bench(shard.model, Path(tempfile.mkdtemp(dir=folder)), shard.known)
    bench = _benches[shard.model.name]
    made = [bench.fault(number, shard.seed) for number in range(shard.start, shard.stop)]
    _write(shard.file, [asdict(one) for one in made])
    return made


def _keep(faults: Sequence[Fault], known: Mapping[str, Known], told: Mapping[str, Any], started: float) -> None:
    figures = {
        **told,
        "seconds": round(time.monotonic() - started, 1),
        **_figures(faults),
        "sees": {name: asdict(one.sight) for name, one in known.items()},
    }
    RESULT.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")


def _figures(faults: Sequence[Fault]) -> dict[str, Any]:
    return {
        "faults": len(faults),
        "outcomes": dict(Counter(one.outcome for one in faults)),
        "by_kind": {kind: dict(Counter(one.outcome for one in faults if one.kind == kind)) for kind in KINDS},
        "by_model": {
            name: dict(Counter(one.outcome for one in faults if one.model == name)) for name in _names(faults)
        },
        "missed": [asdict(one) for one in faults if one.outcome == "missed"],
    }


def _names(faults: Sequence[Fault]) -> list[str]:
    return list(dict.fromkeys(one.model for one in faults))


def _table(figures: Mapping[str, Any]) -> Table:
    outcomes = list(figures["outcomes"])
    table = Table("fault", *outcomes, title=f"{figures['faults']} faults", title_justify="left")
    for kind, counts in figures["by_kind"].items():
        table.add_row(kind, *(str(counts.get(outcome, "")) for outcome in outcomes))
    for one in figures["missed"][:SHOWN]:
        table.add_row(f"missed: {one['model']} {one['kind']} {', '.join(one['parameters'])} {one['change']}")
    return table


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    parser.add_argument("number", nargs="?", type=int, default=NUMBER, help="faults over all models")
    parser.add_argument("seed", nargs="?", type=int, default=SEED)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one core each")
    parser.add_argument("--shards", type=Path, help="a folder for what came of the faults, to go on from")
    return parser.parse_args()


if __name__ == "__main__":
    given = _given()
    main(given.number, given.seed, given.jobs, given.shards)
