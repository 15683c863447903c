"""Normal use of a service while others abuse it: each abuse alone, then all at once.

python -m benchmarks.abuse [--only NAME ...] [--seconds N] [--gap N]

A process of its own makes normal calls all the time, at a steady pace and over loopback like everybody. Another one
commits the abuses (`benchmarks/abusers.py`) from an address of its own. Both share the cores with the service, so their
processor time is told. The quiet phase always comes first. "all" commits at once the abuses named beside it, every one
if there is none: `--only all` commits all at once and none alone. "all_from_one_address" is the same from the address
of normal use, as behind a proxy that is not named as one.

The longest lock-out of a phase is the longest time in which no call of a kind has ended well, beyond its pace.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from benchmarks import jobs
from benchmarks.abusers import ABUSES, Targets
from benchmarks.machine import machine
from benchmarks.normal_use import PACES, Plan
from benchmarks.service import Service, descendants, memory_bytes, running_service
from examples.client import Client

RESULTS = Path(__file__).parent / "results" / "abuse.json"
ALL = "all"
ONE_ADDRESS = "all_from_one_address"
HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"  # where normal use and the abuses come from
QUIET = "quiet"
SECONDS = 15.0
GAP = 5.0
MIB = 2**20
LARGE = 256 * MIB
MANY = 100_000
SAMPLE_S = 0.05
RECOVERY_S = 180.0
TICKS = 100  # of processor time, a second
# The aims: beside all abuses at once.
P99_MS = 250
GROWTH_MIB = 400
LOCK_OUT_S = 1.0
PHASES = [*ABUSES, ALL, ONE_ADDRESS]
console = Console(highlight=False, width=120)


def main() -> None:
    """Measure, print the table and keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", choices=PHASES, default=PHASES, metavar="NAME")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the length of each phase")
    parser.add_argument("--gap", type=float, default=GAP, help="quiet seconds between two phases")
    options = parser.parse_args()
    figures = measure(options.only, seconds=options.seconds, gap=options.gap)
    RESULTS.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")
    console.print(_table(figures))
    console.print(f"written to {RESULTS}")


def measure(names: Sequence[str], *, seconds: float = SECONDS, gap: float = GAP) -> dict[str, Any]:
    """Return the figures of a quiet phase and of one phase for each name; "all" is those named beside it, at once."""
    together = [name for name in names if name in ABUSES] or [*ABUSES]
    with tempfile.TemporaryDirectory(prefix="enginesmith-abuse-") as folder, running_service() as service:
        scratch = Path(folder)
        plan, targets = prepare(service, scratch)
        (scratch / "plan.json").write_text(json.dumps(asdict(plan)))
        (scratch / "targets.json").write_text(json.dumps(asdict(targets)))
        api = service.find("app.cli", " api ")
        with normal_use(scratch / "plan.json") as calls, Watched(api) as watched:
            phases = [_phase(QUIET, [], seconds, scratch, watched)]
            for name in names:
                time.sleep(gap)
                abuses = [name] if name in ABUSES else together
                phases.append(_phase(name, abuses, seconds, scratch, watched))
                phases[-1]["recovered_after_s"] = _recovered_after(calls)
        for phase in phases:
            phase["calls"] = _calls(calls, *phase.pop("between"))
    return {
        "seconds": seconds,
        "normal_use_cpu_s": round(next(call.seconds for call in calls if call.kind == "cpu"), 2),
        "phases": {phase.pop("name"): phase for phase in phases},
    }


@dataclass(frozen=True, slots=True)
class Call:
    """One call of normal use; `end` is on the machine's monotonic clock, `outcome` is "ok" or what went wrong."""

    kind: str
    end: float
    seconds: float
    outcome: str


@contextmanager
def normal_use(plan: Path) -> Iterator[list[Call]]:
    """Make normal calls in another process; the list that is given has all of them once the block has ended."""
    calls: list[Call] = []
    command = [sys.executable, "-m", "benchmarks.normal_use", str(plan)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        lines = process.stdout or ()
        reader = threading.Thread(target=lambda: calls.extend(Call(*json.loads(line)) for line in lines))
        reader.start()
        try:
            yield calls
        finally:
            if process.stdin is not None:
                process.stdin.close()
            reader.join()


class Watched:
    """Samples what the API's process takes while the block lasts."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended = threading.Event()
        self._samples: list[tuple[float, int, int, int]] = []  # time, memory of the API, of its children, descriptors
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            children = 0
            with suppress(OSError, LookupError):  # one of them has just ended
                children = sum(memory_bytes(pid, "RssAnon") for pid in descendants(self.pid))
            with suppress(OSError, LookupError):
                files = sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())
                self._samples.append((time.monotonic(), memory_bytes(self.pid, "VmRSS"), children, files))

    def between(self, start: float, end: float) -> dict[str, Any]:
        """Return the API's memory before, at its peak and after, that of its children, and its descriptors."""
        samples = [sample for sample in self._samples if start <= sample[0] <= end]
        memory = [sample[1] // MIB for sample in samples]
        return {
            "api_before_mib": memory[0],
            "api_peak_mib": max(memory),
            "api_after_mib": memory[-1],
            "children_peak_mib": max(sample[2] for sample in samples) // MIB,
            "together_growth_mib": max((sample[1] + sample[2]) for sample in samples) // MIB
            - (samples[0][1] + samples[0][2]) // MIB,
            "descriptors_at_most": max(sample[3] for sample in samples),
        }

    def cpu_s(self) -> float:
        """Return the processor time of the API's process so far, without its children's."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


def _phase(name: str, abuses: list[str], seconds: float, scratch: Path, watched: Watched) -> dict[str, Any]:
    console.print(f"{name} …")
    start, cpu = time.monotonic(), watched.cpu_s()
    done: dict[str, Any] = {"cpu_s": 0.0, "abuses": {}}
    if abuses:
        command = [sys.executable, "-m", "benchmarks.abusers", str(scratch / "targets.json"), str(seconds)]
        command += [HERE if name == ONE_ADDRESS else ELSEWHERE, *abuses]
        done = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    else:
        time.sleep(seconds)
    end = time.monotonic()
    return {
        "name": name,
        "between": (start, end),
        "seconds": round(end - start, 1),
        "api_cpu_s": round(watched.cpu_s() - cpu, 2),
        "abusers_cpu_s": done["cpu_s"],
        **watched.between(start, end),
        "abuses": done["abuses"],
    }


def _recovered_after(calls: Sequence[Call]) -> float | None:
    """Wait until every short call ends well again, and return how many seconds that took; None: longer than RECOVERY_S.

    What a phase has left to do would count as the next one's otherwise.
    """
    began = time.monotonic()
    waiting = {"read_job", "read_job_anew", "lists", "blob"}
    while waiting and time.monotonic() - began < RECOVERY_S:
        time.sleep(SAMPLE_S)
        waiting -= {call.kind for call in calls[-200:] if call.outcome == "ok" and call.end - call.seconds > began}
    return None if waiting else round(time.monotonic() - began, 1)


def _calls(calls: Sequence[Call], start: float, end: float) -> dict[str, Any]:
    return {kind: _of_kind([call for call in calls if call.kind == kind], start, end) for kind in PACES}


def _of_kind(calls: Sequence[Call], start: float, end: float) -> dict[str, Any]:
    """Return the figures of the calls that ended in a phase, or were under way when it ended."""
    inside = [call for call in calls if start <= call.end and call.end - call.seconds <= end]
    good = [call for call in inside if call.outcome == "ok"]
    seconds = [call.seconds for call in good]
    marks = [start, *(min(call.end, end) for call in good), end]
    gaps = np.diff(marks) if inside else np.array([end - start])
    return {
        "calls": len(inside),
        "failed": dict(Counter(call.outcome for call in inside if call.outcome != "ok")),
        **{f"p{percent}_ms": _percentile_ms(seconds, percent) for percent in (50, 99)},
        "max_ms": _percentile_ms(seconds, 100),
        "lock_out_s": round(max(0.0, float(gaps.max()) - (PACES[calls[0].kind] if calls else 0.0)), 2),
    }


def _percentile_ms(seconds: Sequence[float], percent: float) -> float | None:
    return round(float(np.percentile(seconds, percent)) * 1000, 1) if seconds else None


# What is there to be used and abused


def prepare(service: Service, scratch: Path) -> tuple[Plan, Targets]:
    """Build a tiny engine, and put in place what the abuses name."""
    address = urlsplit(service.url)
    host, port = str(address.hostname), int(address.port or 80)
    tiny, abused = Client(service.url, "tiny"), Client(service.url, "abused")
    engine, (first, second) = jobs.prepare(tiny, scratch)
    definition = tiny.call("GET", "/v1/models/tiny/definitions/1")
    path = scratch / "inputs.safetensors"
    save_file({one["name"]: np.zeros((1, 8), np.int64) for one in definition["inputs"]}, path)
    inputs = tiny.upload(path)
    # No worker offers this backend, so the job stays queued.
    queued = tiny.post("builds", {"definition": 1, "weights": first, "backend": "tensorrt"})["id"]
    finished = tiny.call("GET", "/v1/jobs?limit=1&state=succeeded")["data"][0]["id"]
    abused.call("POST", "/v1/models", {"name": abused.model})
    targets = Targets(
        host=host,
        port=port,
        model=abused.model,
        job=queued,
        large=abused.upload(_large(scratch / "large")),
        tensors=abused.upload(_many_tensors(scratch / "tensors.safetensors")),
        nodes=abused.upload(_many_nodes(scratch / "nodes.onnx")),
    )
    return Plan(host, port, tiny.model, engine, (first, second), inputs, finished), targets


def _large(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(LARGE)
    return path


def _many_tensors(path: Path) -> Path:
    save_file({f"layer.{number}.weight": np.zeros(1, np.float32) for number in range(MANY)}, path)
    return path


def _many_nodes(path: Path) -> Path:
    names = ["x", *(f"v{number}" for number in range(1, MANY)), "y"]
    nodes = [helper.make_node("Relu", [source], [target]) for source, target in pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "many", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def _table(figures: dict[str, Any]) -> Table:
    columns = ("phase", "job p50", "job p99", "job max", "lock-out", "failed", "API MiB", "+ children", "descriptors")
    table = Table(*columns, title="Reading a job beside abuse, ms and s", title_justify="left")
    for name, phase in figures["phases"].items():
        kinds = phase["calls"].values()
        job = phase["calls"]["read_job"]
        locked = max(phase["calls"][kind]["lock_out_s"] for kind in ("read_job", "read_job_anew", "lists", "blob"))
        failed = sum(sum(kind["failed"].values()) for kind in kinds)
        grown = phase["api_peak_mib"] - phase["api_before_mib"]
        met = (job["p99_ms"] or 1e9) <= P99_MS and locked <= LOCK_OUT_S and phase["together_growth_mib"] <= GROWTH_MIB
        cells = [job["p50_ms"], job["p99_ms"], job["max_ms"], locked, failed, f"+{grown}", phase["children_peak_mib"]]
        table.add_row(name, *map(str, cells), str(phase["descriptors_at_most"]), style=None if met else "bold")
    return table


if __name__ == "__main__":
    main()
