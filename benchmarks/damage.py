"""Random damages of stored artifacts: are wrong bytes ever used, or served as if they were right?

python -m benchmarks.damage [NUMBER] [SEED] [SECONDS]     how many damages over all places, 1000 by default, and how
                                                           long they may take, an hour by default

Two processes damage half each. In each run the API and a worker, with an engine host of their own: in one with a local
store, in the other with a bucket of an S3 server and a cache. Each damage is followed by downloads and by work that
needs the artifact. Then the right bytes are uploaded again, and the same downloads and work must go well.
"""

import json
import logging
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from rich.console import Console
from rich.table import Table

from benchmarks.damage_kinds import KINDS, Random
from benchmarks.damaged_service import ENGINES, Service, service
from benchmarks.machine import machine

NUMBER, SEED, SECONDS = 1000, 1, 3600
RESULT = Path(__file__).parent / "results" / "damage.json"
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - no damage has to survive a power cut
RESTARTS = 0.005  # a share of the damages before which the engine host is killed
HEALED_WORK = 0.2  # a share of the damages after whose healing the work is done again
# How often each artifact is damaged. Each ONNX file is parsed by a child, and a large blob is long.
SHARES = {
    "definition": 0.17,
    "weights": 0.19,
    "plan": 0.18,
    "inputs": 0.17,
    "outputs": 0.12,
    "external data": 0.09,
    "timing cache": 0.05,
    "ONNX file": 0.015,
    "large blob": 0.015,
}
RANGES = 0.3  # a share of the downloads that ask for a part
GOOD, BAD = 200, 400
TOTALS = ("damages", "wrong bytes used", "wrong bytes served whole", "not healed")
TABLES = ("by_artifact", "by_damage", "by_place")
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Damage:
    """One damage and what came of it.

    `downloads` and `work` are "refused", "cut off", "right" or "WRONG"; `healed` says that all went well after the
    right bytes were uploaded.
    """

    place: str
    artifact: str
    kind: str
    remembered: bool
    downloads: tuple[str, ...]
    work: str
    detail: str
    healed: bool


def main(number: int, seed: int, seconds: int) -> None:
    """Damage, print what came of it and keep the figures."""
    started = time.monotonic()
    with ProcessPoolExecutor(2, get_context("spawn")) as processes:
        halves = [
            processes.submit(_half, number // 2 + (number % 2) * (not remote), [seed, remote], seconds, remote=remote)
            for remote in (False, True)
        ]
        found = [damage for half in halves for damage in half.result()]
    figures = _figures(found) | {"seed": seed, "seconds": round(time.monotonic() - started, 1)}
    RESULT.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")
    console.print(_table(figures))
    console.print(f"written to {RESULT}")


def _half(number: int, seed: list[int], seconds: float, *, remote: bool) -> list[Damage]:
    """Damage the artifacts of one service, and log nothing: a fault with its traceback takes longer than all else."""
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.ReturnLoggerFactory()
    )
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with (
        tempfile.TemporaryDirectory(prefix="es-", dir=MEMORY) as folder,
        service(Path(folder), remote=remote) as one,
    ):
        return Campaign(one, np.random.default_rng(seed)).damages(number, seconds)


class Campaign:
    """Damages the artifacts of one service."""

    def __init__(self, service: Service, random: Random) -> None:
        self._service = service
        self._random = random
        self._work: Mapping[str, list[Callable[[str], str]]] = {
            "definition": [self._build, self._refit],
            "weights": [self._build, self._refit, self._run_all, self._check],
            "plan": [self._run_all, self._refit, self._verify],
            "inputs": [self._run_inputs, self._verify_inputs],
            "ONNX file": [self._define, self._match],
            "external data": [self._define, self._match, self._build, self._refit, self._run_all, self._check],
            "timing cache": [self._time],
        }

    def damages(self, number: int, seconds: float) -> list[Damage]:
        """Return so many damages, or as many as the time suffices for."""
        started, found = time.monotonic(), list[Damage]()
        while len(found) < number and time.monotonic() - started < seconds:
            found.append(self.damage())
        return found

    def damage(self) -> Damage:
        """Damage an artifact, try to use it, heal it, and use it."""
        one, random = self._service, self._random
        artifact = str(random.choice(list(SHARES), p=list(SHARES.values())))
        digest, place, kind = self._any(one.artifacts[artifact]), self._any(sorted(one.places)), self._any(list(KINDS))
        remembered = bool(random.random() < 0.5)
        if remembered:
            self._download(digest)
        else:
            one.forget()
        if random.random() < RESTARTS:
            one.restart_host()
        others = [each for each in one.artifacts[artifact] if each != digest]
        damaged = self._damage(place, kind, digest, others)
        work = self._any(self._work[artifact]) if artifact in self._work else None
        outcome, detail = ("", "") if work is None else self._judged(work, digest)
        downloads = self._downloads(digest)
        healed = self._heal(damaged) and set(self._downloads(digest)) == {"right"}
        if healed and work is not None and random.random() < HEALED_WORK:
            healed, detail = (end := self._judged(work, digest))[0] == "right", detail or end[1]
        return Damage(place, artifact, kind, remembered, downloads, outcome, detail, healed)

    def _damage(self, place: str, kind: str, digest: str, others: list[str]) -> list[str]:
        """Damage an artifact, and return which are damaged."""
        one, content = self._service, self._service.contents[digest]
        if place == "cache":
            one.worker.store.local_path(digest)
        if place == "object store" and self._random.random() < 0.5:
            one.worker.store.discard_copy(digest)
        in_place = bool(self._random.random() < 0.5)
        changed = KINDS[kind](content, [one.contents[each] for each in others], self._random)
        one.places[place].write(digest, changed, in_place=in_place)
        swapped = [other for other in others if one.contents[other] == changed]
        if kind != "swap" or place == "cache" or not swapped:
            return [digest]
        one.places[place].write(swapped[0], content, in_place=in_place)
        return [digest, swapped[0]]

    def _heal(self, digests: list[str]) -> bool:
        return all(self._put(digest) for digest in digests)

    def _put(self, digest: str) -> bool:
        answer = self._service.client.put(f"/v1/blobs/{digest}", content=self._service.contents[digest])
        return answer.status_code in {200, 201}

    def _downloads(self, digest: str) -> tuple[str, ...]:
        size = len(self._service.contents[digest])
        if self._random.random() < RANGES:
            start = int(self._random.integers(size))
            return (self._download(digest, start, min(size, start + 1000)),)
        return (self._download(digest),)

    def _download(self, digest: str, start: int = 0, stop: int | None = None) -> str:
        right = self._service.contents[digest][start:stop]
        headers = {} if stop is None else {"Range": f"bytes={start}-{stop - 1}"}
        answer = self._service.client.get(f"/v1/blobs/{digest}", headers=headers)
        if answer.status_code >= BAD:
            return "refused"
        if len(answer.content) < int(answer.headers["content-length"]):
            return "cut off"
        return "right" if answer.content == right else "WRONG"

    def _judged(self, work: Callable[[str], str], digest: str) -> tuple[str, str]:
        code = work(digest)
        return (code, "") if code in {"right", "WRONG"} else ("refused", code)

    def _build(self, digest: str) -> str:
        version = self._version(digest)
        body = {"definition": 1, "weights": version, "reuse": False, "verify": {"coverage": "none"}}
        return self._made(self._service.job("builds", body), version)

    def _refit(self, digest: str) -> str:
        version = self._version(digest)
        parent = self._service.numbers[f"engine of weights {self._any(range(1, ENGINES + 1))}"]
        return self._made(self._service.job("refits", {"engine": parent, "weights": version, "reuse": False}), version)

    def _made(self, job: dict[str, Any], version: int) -> str:
        """Judge what a build or a refit made by what it computes."""
        if job["state"] != "succeeded":
            return str(job["error"]["code"])
        return self._ran(self._service.run(job["result"]["engine"]), version)

    def _ran(self, job: dict[str, Any], version: int) -> str:
        if job["state"] != "succeeded":
            return str(job["error"]["code"])
        return "right" if job["result"]["outputs"] == self._service.outputs[version] else "WRONG"

    def _run_all(self, digest: str) -> str:
        version = self._version(digest)
        return self._ran(self._service.run(self._service.numbers[f"engine of weights {version}"]), version)

    def _run_inputs(self, digest: str) -> str:
        one = self._service
        job = one.run(one.numbers["engine of weights 1"], digest)
        if job["state"] != "succeeded":
            return str(job["error"]["code"])
        if digest == one.inputs:
            return self._ran(job, 1)
        return "right" if job["result"]["outputs"] == one.other_outputs else "WRONG"

    def _verify(self, digest: str) -> str:
        return self._verified({"against": "reference"}, digest)

    def _verify_inputs(self, digest: str) -> str:
        return self._verified({"against": "reference", "inputs": digest}, digest)

    def _verified(self, body: dict[str, Any], digest: str) -> str:
        number = self._service.numbers[f"engine of weights {self._version(digest)}"]
        job = self._service.job(f"engines/{number}/verify", body)
        if job["state"] != "succeeded":
            return str(job["error"]["code"])
        return "right" if job["result"]["ok"] else "WRONG"

    def _check(self, digest: str) -> str:
        answer = self._service.post("bindings/check", {"definition": 1, "weights": self._version(digest)})
        return (
            "right" if answer.status_code == GOOD and answer.json()["ok"] else str(answer.json().get("code", "WRONG"))
        )

    def _define(self, digest: str) -> str:
        return self._uploaded(self._service.post("definitions", self._service.uploads[digest]), "weights", digest)

    def _match(self, digest: str) -> str:
        body = self._service.uploads[digest] | {"definition": 1}
        return self._uploaded(self._service.post("weights", body), "version", digest)

    def _uploaded(self, answer: Any, field: str, digest: str) -> str:  # noqa: ANN401 - an HTTP answer
        """Judge by the weight version that the same weights are known as."""
        if answer.status_code >= BAD:
            return str(answer.json()["code"])
        return "right" if answer.json()[field] == self._service.versions[digest] else "WRONG"

    def _time(self, digest: str) -> str:
        """Build with a timing cache: right if the compiler would have read the right bytes in each attempt.

        There are two attempts if the first one met a damaged copy of the weights.
        """
        one = self._service
        one.use_timings(digest)
        one.timings.clear()
        built = self._build(digest)
        if built != "right":
            return built
        if not one.timings:
            return "timing_cache_begun_anew"
        return "right" if set(one.timings) == {one.contents[digest]} else "WRONG"

    def _version(self, digest: str) -> int:
        """Return the weight version whose file this is; any version for other artifacts."""
        return self._service.versions.get(digest) or int(self._any(range(1, ENGINES + 1)))

    def _any(self, of: Any) -> Any:  # noqa: ANN401 - any sequence
        return of[int(self._random.integers(len(of)))]


def _figures(found: list[Damage]) -> dict[str, Any]:
    tables: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for one in found:
        for name, row in (("by_artifact", one.artifact), ("by_damage", one.kind), ("by_place", one.place)):
            tables[name][row].update(_outcomes(one))
    return {
        "damages": len(found),
        "wrong bytes used": sum(one.work == "WRONG" for one in found),
        "wrong bytes served whole": sum("WRONG" in one.downloads for one in found),
        "not healed": sum(not one.healed for one in found),
        "first use in a process": sum(not one.remembered for one in found),
        "codes": dict(Counter(one.detail for one in found if one.work == "refused")),
        **{name: {row: dict(counts) for row, counts in rows.items()} for name, rows in tables.items()},
        "faults": [asdict(one) for one in found if "WRONG" in {one.work, *one.downloads} or not one.healed],
    }


def _outcomes(one: Damage) -> list[str]:
    work = [f"work {one.work}"] if one.work else []
    return ["damages", *(f"download {each}" for each in one.downloads), *work, *(["healed"] if one.healed else [])]


def _table(figures: Mapping[str, Any]) -> Table:
    columns = sorted({name for rows in TABLES for row in figures[rows].values() for name in row})
    title = ", ".join(f"{name}: {figures[name]}" for name in TOTALS)
    table = Table("", *columns, title=title, title_justify="left")
    for rows in TABLES:
        for name, counts in figures[rows].items():
            table.add_row(name, *(str(counts.get(column, "")) for column in columns))
        table.add_section()
    return table


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [NUMBER, SEED, SECONDS][len(given) :]))
