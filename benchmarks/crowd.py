"""How long short reads take while others use the service: clients that follow jobs, and clients that send large bodies.

python -m benchmarks.crowd

Each stream has a socket of its own. The bodies are the largest that a call with rules takes, dense and refused late.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np

from benchmarks.jobs import prepare
from benchmarks.machine import machine
from benchmarks.service import memory_bytes, running_service
from examples.client import Client

RESULT = Path(__file__).parent / "results" / "crowd.json"
STREAMS = 400
POSTERS = 4
MEASURE_S = 10.0
PAUSE_S = 0.01
READ = "/v1/jobs"
MIB = 1024 * 1024


def main() -> None:
    """Measure, print the figures and keep them."""
    with tempfile.TemporaryDirectory() as scratch, running_service() as service:
        client = Client(service.url, "tiny")
        prepare(client, Path(scratch))
        jobs = [_queued(client, number) for number in range(STREAMS)]
        api = service.find("app.cli", "api")
        figures = asyncio.run(_measure(service.url, jobs, api))
    print(json.dumps(figures, indent=2))
    RESULT.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")


def _queued(client: Client, number: int) -> str:
    """Make a job that stays queued, since no worker has its backend, and return its id."""
    body = {"definition": 1, "weights": 1, "backend": "tensorrt", "reuse": False, "verify": {"against": "none"}}
    profile = {name: {"min": [1, 1], "opt": [1, 8], "max": [2, 9 + number]} for name in ("input_ids", "attention_mask")}
    return str(client.post("builds", body | {"profiles": [profile | {"token_type_ids": profile["input_ids"]}]})["id"])


async def _measure(url: str, jobs: list[str], api: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"alone": await _reads(url)}
    async with _streams(url, jobs):
        figures["streams"] = {"streams": len(jobs)} | await _reads(url)
    for name, body in _bodies().items():
        async with _posting(url, body) as posted:
            figures[name] = {"bytes": len(body)} | await _reads(url)
        statuses = sorted({status for status, _seconds in posted})
        figures[name] |= {"posts": len(posted), "statuses": statuses, "api_peak_mib": memory_bytes(api, "VmHWM") // MIB}
    return figures


def _bodies() -> dict[str, bytes]:
    """Return what clients may send: real rules, and bodies that are dense in what costs time."""
    rule = {
        "parameter": r"encoder\.layers\.0\.self_attn\.in_proj_weight_\d+",
        "tensors": [f"model.encoder.layers.0.self_attention.{name}.weight" for name in ("query", "key")],
        "transforms": [{"op": "concat", "axis": 0}, {"op": "transpose", "perm": [1, 0]}],
    }
    start = {"definition": 1, "weights": 1}
    return {
        "rules_2000": json.dumps(start | {"rules": [rule] * 2000}).encode(),
        "unknown_fields": json.dumps(start | {f"x{number}": 1 for number in range(21_000)}).encode(),
        "many_values": json.dumps(start | {"rules": [1] * 43_000}).encode(),
        "escapes": json.dumps(start | {"rules": ["\0" * 8] * 10_000}).encode(),
        "too_many_values": json.dumps(start | {"rules": [[]] * 250_000}).encode(),
        "eight_mib": json.dumps(start | {"rules": [1] * 2_700_000}).encode(),
    }


async def _reads(url: str) -> dict[str, Any]:
    """Read the list of jobs again and again for MEASURE_S, with a pause between, as one client."""
    seconds = []
    async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
        end = time.perf_counter() + MEASURE_S
        while time.perf_counter() < end:
            started = time.perf_counter()
            (await http.get(READ)).raise_for_status()
            seconds.append(time.perf_counter() - started)
            await asyncio.sleep(PAUSE_S)
    percentiles = {f"p{percent}_ms": round(float(np.percentile(seconds, percent)) * 1000, 1) for percent in (50, 99)}
    return {"reads": len(seconds)} | percentiles | {"worst_ms": round(max(seconds) * 1000, 1)}


@asynccontextmanager
async def _streams(url: str, jobs: list[str]) -> AsyncIterator[None]:
    """Keep an event stream of each job open."""
    address = urlsplit(url)
    async with AsyncExitStack() as stack:
        for job in jobs:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            stack.callback(writer.close)
            head = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: {address.netloc}\r\nAccept: text/event-stream\r\n\r\n"
            writer.write(head.encode())
            await reader.readuntil(b"event: queued")
        yield


@asynccontextmanager
async def _posting(url: str, body: bytes) -> AsyncIterator[list[tuple[int, float]]]:
    """Send the body from POSTERS clients without a pause; gives the status and the seconds of each answer."""
    posted: list[tuple[int, float]] = []

    async def post() -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=120) as http:
            while True:
                started = time.perf_counter()
                headers = {"Content-Type": "application/json"}
                answer = await http.post("/v1/models/tiny/bindings/check", content=body, headers=headers)
                posted.append((answer.status_code, time.perf_counter() - started))

    tasks = [asyncio.create_task(post()) for _ in range(POSTERS)]
    try:
        yield posted
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    main()
