"""What a job costs: warm refits of a tiny and of a deep model with `Prefer: wait`, and reads of a job."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from benchmarks.checkpoints import gpt2_config, parameters, write_checkpoint
from benchmarks.service import Service
from examples.client import Client

TINY = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
DEEP = gpt2_config(24, 64, vocab=64, positions=32)  # as many parameters as GPT-2 medium, with few values each
WARM_UP = 10
REFITS = 200
READS = 3000
READERS = 4
OURS = {"queue", "bind"}  # the stages before the engine host's


def measure(service: Service, scratch: Path) -> dict[str, Any]:
    """Refit a tiny and a deep engine back and forth, then read one job again and again."""
    client = Client(service.url, "tiny")
    engine, versions = prepare(client, scratch)
    refits = [_refit(client, engine, versions[number % 2]) for number in range(WARM_UP + REFITS)]
    seconds = np.array([taken for taken, _job in refits[WARM_UP:]])
    return {
        "warm_refit": {
            "jobs": REFITS,
            "p50_ms": _percentile_ms(seconds, 50),
            "p99_ms": _percentile_ms(seconds, 99),
        },
        "deep_refit": _deep_refit(Client(service.url, "deep"), scratch),
        "read_job": _read_job(service.url, refits[-1][1]["id"]),
    }


def prepare(client: Client, scratch: Path) -> tuple[int, list[int]]:
    """Build a tiny engine from the first of two weight versions; return its number and both versions."""
    client.call("POST", "/v1/models", {"name": client.model})
    definition = client.post("definitions", {"family": "bert", "config": TINY})["version"]
    rows = parameters(client, definition)
    versions = [_weights(client, scratch / f"tiny-{seed}.safetensors", rows, seed=seed) for seed in (1, 2)]
    job = client.post("builds", {"definition": definition, "weights": versions[0]})
    return int(client.finish(job, lambda _job: None)["engine"]), versions


def _deep_refit(client: Client, scratch: Path) -> dict[str, Any]:
    """Refit each engine into the next one, with one of many parameters changed.

    "beyond_host" leaves out the stages of the engine host.
    """
    client.call("POST", "/v1/models", {"name": client.model})
    definition = client.post("definitions", {"family": "gpt2", "config": DEEP})["version"]
    rows = parameters(client, definition)
    first = _weights(client, scratch / "deep-1.safetensors", rows, seed=1)
    second = _weights(client, scratch / "deep-2.safetensors", rows[:1], seed=2, base=first)
    job = client.post("builds", {"definition": definition, "weights": first})
    engine = int(client.finish(job, lambda _job: None)["engine"])
    seconds = np.empty((WARM_UP + REFITS, 2))
    for number in range(WARM_UP + REFITS):
        taken, job = _refit(client, engine, first if number % 2 else second, verify={"against": "finite"})
        stages = job["result"]["stages"]
        seconds[number] = taken, taken - sum(one["seconds"] for name, one in stages.items() if name not in OURS)
        engine = job["result"]["engine"]
    total, beyond = seconds[WARM_UP:].T
    return {
        "parameters": len(rows),
        "jobs": REFITS,
        "p50_ms": _percentile_ms(total, 50),
        "p99_ms": _percentile_ms(total, 99),
        "beyond_host_p50_ms": _percentile_ms(beyond, 50),
    }


def _weights(client: Client, path: Path, rows: list[dict[str, Any]], *, seed: int, base: int | None = None) -> int:
    write_checkpoint(path, rows, seed=seed)
    return int(client.post("weights", {"files": [client.upload(path)], "base": base})["version"])


def _refit(client: Client, engine: int, weights: int, **choices: Any) -> tuple[float, dict[str, Any]]:  # noqa: ANN401 - JSON
    """Refit with `reuse` off, so that each job does the work; return the seconds and the job."""
    body = {"engine": engine, "weights": weights, "reuse": False, **choices}
    started = time.perf_counter()
    job = client.call("POST", f"/v1/models/{client.model}/refits", body, Prefer="wait=30")
    seconds = time.perf_counter() - started
    if job["state"] != "succeeded":
        raise RuntimeError(f"refit {job['state']}: {job['error']}")
    return seconds, job


def _read_job(url: str, job: str) -> dict[str, Any]:
    started = time.perf_counter()
    with ThreadPoolExecutor(READERS) as readers:
        taken = list(readers.map(lambda _n: _reads(url, job, READS // READERS), range(READERS)))
    elapsed = time.perf_counter() - started
    seconds = np.concatenate(taken)
    return {
        "reads": len(seconds),
        "clients": READERS,
        "per_second": round(len(seconds) / elapsed),
        "p50_ms": _percentile_ms(seconds, 50),
        "p99_ms": _percentile_ms(seconds, 99),
    }


def _reads(url: str, job: str, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    seconds = np.empty(count)
    with httpx2.Client(base_url=url) as http:
        for number in range(count):
            started = time.perf_counter()
            http.get(f"/v1/jobs/{job}").raise_for_status()
            seconds[number] = time.perf_counter() - started
    return seconds


def _percentile_ms(seconds: np.ndarray[Any, np.dtype[np.float64]], percent: float) -> float:
    return round(float(np.percentile(seconds, percent)) * 1000, 2)
