"""What a job costs: warm refits of a tiny model with `Prefer: wait`, and reads of a job."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from benchmarks.checkpoints import parameters, write_checkpoint
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
WARM_UP = 10
REFITS = 200
READS = 3000
READERS = 4


def measure(service: Service, scratch: Path) -> dict[str, Any]:
    """Refit a tiny engine back and forth, then read one job again and again."""
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
        "read_job": _read_job(service.url, refits[-1][1]),
    }


def prepare(client: Client, scratch: Path) -> tuple[int, list[int]]:
    """Build a tiny engine from the first of two weight versions; return its number and both versions."""
    client.call("POST", "/v1/models", {"name": client.model})
    definition = client.post("definitions", {"family": "bert", "config": TINY})["version"]
    rows = parameters(client, definition)
    versions = []
    for seed in (1, 2):
        path = scratch / f"tiny-{seed}.safetensors"
        write_checkpoint(path, rows, seed=seed)
        versions.append(client.post("weights", {"files": [client.upload(path)]})["version"])
    job = client.post("builds", {"definition": definition, "weights": versions[0]})
    return int(client.finish(job, lambda _job: None)["engine"]), versions


def _refit(client: Client, engine: int, weights: int) -> tuple[float, str]:
    """Refit with `reuse` off, so that each job does the work; return the seconds and the job's id."""
    body = {"engine": engine, "weights": weights, "reuse": False}
    started = time.perf_counter()
    job = client.call("POST", f"/v1/models/{client.model}/refits", body, Prefer="wait=30")
    seconds = time.perf_counter() - started
    if job["state"] != "succeeded":
        raise RuntimeError(f"refit {job['state']}: {job['error']}")
    return seconds, str(job["id"])


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
