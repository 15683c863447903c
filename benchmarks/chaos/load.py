"""Clients that post jobs all the time, each under a key of its own, and follow each to its end.

A client sends a request again until it is answered, as a careful client does. What it was promised is written down.
"""

import hashlib
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import numpy as np
from safetensors.numpy import save_file

from benchmarks.checkpoints import parameters, write_checkpoint
from benchmarks.jobs import TINY
from examples.client import Client

MODEL = "chaos"
CLIENTS = 6
VERSIONS = 5  # weight versions that are refitted again and again
THINK_S = (0.1, 0.6)
AGAIN_S = 0.2
LOOK_S = 0.15
TIMEOUT_S = 10.0
FINAL = {"succeeded", "failed", "canceled"}
KINDS = ("refit", "run", "fresh", "build")
SHARES = (40, 35, 15, 10)


@dataclass(slots=True)
class Promise:
    """One job that was accepted: what it is to give, and what became of it."""

    key: str
    kind: str
    job_id: str
    weights: int
    accepted: float
    outputs: str | None = None  # the digest that a run has to give
    job: dict[str, Any] | None = None  # the job as it ended
    ended: float | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the job was seen to have succeeded."""
        return self.job is not None and self.job["state"] == "succeeded"


@dataclass(slots=True)
class Base:
    """What the jobs are made of: an engine and the digest of its outputs for each weight version."""

    definition: int
    build: int
    inputs: str
    rows: list[dict[str, Any]]
    engines: dict[int, list[int]] = field(default_factory=dict)
    outputs: dict[int, str] = field(default_factory=dict)


class Load:
    """The clients; they pause and go on together."""

    def __init__(self, urls: list[str], folder: Path, seed: int) -> None:
        self.urls = urls
        self.promises: list[Promise] = []
        self.refused: list[str] = []  # what was answered with a 4xx, although nothing is wrong with it
        self._folder = folder
        self._seed = seed
        self._going = threading.Event()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._live, args=(n,), daemon=True) for n in range(CLIENTS)]
        self._busy = 0
        self.base = _prepare(urls[0], folder)

    def start(self) -> None:
        """Begin."""
        self._going.set()
        for thread in self._threads:
            thread.start()

    def resume(self) -> None:
        """Go on after a pause."""
        self._going.set()

    def pause(self, patience_s: float) -> None:
        """Begin no other job, and wait until every client has seen the end of its last one, or has no patience left."""
        with self._lock:
            self._going.clear()
        deadline = time.monotonic() + patience_s
        while self._busy and time.monotonic() < deadline:
            time.sleep(LOOK_S)

    def abandon(self) -> None:
        """Let no client wait any longer for the jobs that have not ended."""
        for promise in self.open_jobs():
            promise.ended = time.time()

    def stop(self) -> None:
        """End all clients."""
        self._over.set()
        self._going.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def open_jobs(self) -> list[Promise]:
        """The jobs that were accepted and have not ended yet."""
        return [promise for promise in list(self.promises) if promise.ended is None]

    def success_since(self, moment: float) -> bool:
        """Whether a job has succeeded since a point of time."""
        return any(one.ended is not None and one.ended >= moment and one.succeeded for one in self.promises[-200:])

    def _live(self, number: int) -> None:
        chance = random.Random(self._seed + number)  # noqa: S311 - nothing secret
        with httpx2.Client(timeout=TIMEOUT_S) as http:
            while not self._over.is_set():
                self._going.wait()
                with self._lock:
                    if not self._going.is_set():
                        continue
                    self._busy += 1
                try:
                    self._one(http, chance)
                finally:
                    with self._lock:
                        self._busy -= 1
                self._over.wait(chance.uniform(*THINK_S))

    def _one(self, http: httpx2.Client, chance: random.Random) -> None:
        kind = chance.choices(KINDS, SHARES)[0]
        version = chance.randint(1, VERSIONS)
        if kind == "fresh":
            version = self._new_weights(http, chance)
            if not version:
                return
        path, body = self._request(kind, version, chance)
        key = uuid4().hex
        answer = self._insist(http, chance, "POST", f"/v1/models/{MODEL}/{path}", json=body, key=key)
        if answer is None:
            return
        promise = Promise(key, kind, answer["id"], version, time.time())
        promise.outputs = self.base.outputs[version] if kind == "run" else None
        self.promises.append(promise)
        self._follow(http, chance, promise)

    def _request(self, kind: str, version: int, chance: random.Random) -> tuple[str, dict[str, Any]]:
        base = self.base
        if kind == "run":
            return "runs", {"engine": chance.choice(base.engines[version][-20:]), "inputs": base.inputs}
        if kind == "build":
            return "builds", {"definition": base.definition, "weights": version, "reuse": False}
        return "refits", {"engine": base.build, "weights": version, "reuse": kind == "fresh"}

    def _follow(self, http: httpx2.Client, chance: random.Random, promise: Promise) -> None:
        while not self._over.is_set() and promise.ended is None:
            job = self._insist(http, chance, "GET", f"/v1/jobs/{promise.job_id}")
            if job is None:
                return
            if job["state"] in FINAL:
                promise.job = job
                promise.ended = _seconds(job["finished_at"])
                made = (job["result"] or {}).get("engine")
                if made is not None and promise.weights in self.base.engines:
                    self.base.engines[promise.weights].append(made)
                return
            time.sleep(LOOK_S)

    def _new_weights(self, http: httpx2.Client, chance: random.Random) -> int:
        """Upload weights that nobody has seen, and return their version; 0 if that was refused."""
        path = self._folder / f"{uuid4().hex}.safetensors"
        write_checkpoint(path, self.base.rows, seed=chance.getrandbits(31))
        data = path.read_bytes()
        path.unlink()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if self._insist(http, chance, "PUT", f"/v1/blobs/{digest}", content=data) is None:
            return 0
        weights = self._insist(http, chance, "POST", f"/v1/models/{MODEL}/weights", json={"files": [digest]})
        return 0 if weights is None else int(weights["version"])

    def _insist(
        self,
        http: httpx2.Client,
        chance: random.Random,
        method: str,
        path: str,
        *,
        key: str = "",
        **body: Any,  # noqa: ANN401 - JSON or bytes
    ) -> dict[str, Any] | None:
        """Send a request until it is answered; None if it was refused, or all is over."""
        headers = {"Idempotency-Key": key} if key else {}
        while not self._over.is_set():
            try:
                answer = http.request(method, chance.choice(self.urls) + path, headers=headers, **body)
            except httpx2.HTTPError:
                time.sleep(AGAIN_S)
                continue
            if answer.is_success:
                content: dict[str, Any] = answer.json()
                return content
            if answer.status_code < 500 and answer.status_code not in {408, 429}:
                self.refused.append(
                    f"{method} {path.split('?', maxsplit=1)[0]}: {answer.status_code} {answer.text[:300]}"
                )
                return None
            time.sleep(AGAIN_S)
        return None


def _prepare(url: str, folder: Path) -> Base:
    """Build a tiny engine, refit it for each weight version, and run each once, before anything is broken."""
    client = Client(url, MODEL)
    client.call("POST", "/v1/models", {"name": MODEL})
    definition = client.post("definitions", {"family": "bert", "config": TINY})["version"]
    rows = parameters(client, definition)
    versions = [_weights(client, folder, rows, seed) for seed in range(1, VERSIONS + 1)]
    inputs = folder / "inputs.safetensors"
    names = ("input_ids", "attention_mask", "token_type_ids")
    save_file({name: np.ones((1, 4), np.int64) for name in names}, inputs)
    build = _done(client, "builds", {"definition": definition, "weights": versions[0]})["engine"]
    base = Base(definition, build, client.upload(inputs), rows)
    for version in versions:
        engine = _done(client, "refits", {"engine": build, "weights": version, "reuse": False})["engine"]
        base.engines[version] = [engine]
        base.outputs[version] = _done(client, "runs", {"engine": engine, "inputs": base.inputs})["outputs"]
    return base


def _weights(client: Client, folder: Path, rows: list[dict[str, Any]], seed: int) -> int:
    path = folder / "prepared.safetensors"
    write_checkpoint(path, rows, seed=seed)
    return int(client.post("weights", {"files": [client.upload(path)]})["version"])


def _done(client: Client, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
    return client.finish(client.post(what, body), lambda _job: None)


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
