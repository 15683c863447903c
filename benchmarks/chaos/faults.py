"""What is broken: one function a fault. Each returns what it did once the fault is over."""

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from uuid import uuid4

import redis

from app.jobs.queue import JobQueue, queue_of
from benchmarks.chaos.fleet import LEASE_S, Fleet
from benchmarks.chaos.load import Load
from benchmarks.chaos.programs import Program
from benchmarks.chaos.servers import Mode, wait_until

OUTAGE_S = (0.5, 4.0)
LONG_OUTAGE_S = (33.0, 40.0)
LONG = 0.1
FLOOD = 300  # messages of each sort
BUSY = 0.8  # so many of the workers that are hit are in the middle of a job
JOB_S = 0.06  # about as long as a job takes
QUEUES = (queue_of("onnxruntime"), queue_of("onnxruntime", "cpu"))
GARBAGE = (
    b"",
    b"\xff\xfe garbage",
    b"null",
    b"[1, 2, 3]",
    b'{"body": "bm90IGpzb24=", "headers": {}, "properties": {}}',
    b'{"body": 7, "content-type": "application/json"}',
)

Fault = Callable[[Fleet, Load, random.Random], str]


def kill(fleet: Fleet, _load: Load, chance: random.Random) -> str:
    """SIGKILL to an API, a process below one, a worker, an engine host, or all of them at once."""
    what = chance.choices(("api", "child of an api", "worker", "engine host", "all"), (12, 6, 40, 40, 2))[0]
    if what == "all":
        for program in (*fleet.apis, *fleet.workers):
            program.kill()
    elif what == "api":
        chance.choice(fleet.apis).kill()
    elif what == "child of an api":
        children = chance.choice(fleet.apis).children()
        with suppress(ProcessLookupError, IndexError):
            os.kill(chance.choice(children), signal.SIGKILL)
    elif what == "worker":
        _victim(fleet, chance).kill()
    else:
        victim = _victim(fleet, chance)
        fleet.host_kills.append(time.time())
        _signal_host(victim, signal.SIGKILL)
    return what


def freeze(fleet: Fleet, _load: Load, chance: random.Random) -> str:
    """SIGSTOP to an API, a worker or an engine host, for longer than a lease."""
    what = chance.choices(("api", "worker", "engine host"), (20, 60, 20))[0]
    program = chance.choice(fleet.apis) if what == "api" else _victim(fleet, chance)
    send = partial(_signal_host, program) if what == "engine host" else program.signal
    send(signal.SIGSTOP)
    time.sleep(LEASE_S * chance.uniform(1.2, 2.0))
    send(signal.SIGCONT)
    return what


def lose_broker(fleet: Fleet, load: Load, chance: random.Random) -> str:
    """Kill the broker, empty it, or flood it with garbage and with ids that were sent before."""
    what = chance.choice(("kill", "flush", "flood"))
    if what == "kill":
        fleet.broker.program.kill()
        wait_until(fleet.broker.answers, "the broker")
    elif what == "flush":
        fleet.broker.client.flushall()
    else:
        _flood(fleet, load, chance)
    return what


def lose_database(fleet: Fleet, _load: Load, chance: random.Random) -> str:
    """End every connection to the database, or stop its server for some seconds."""
    what = chance.choice(("connections", "server"))
    if what == "connections":
        fleet.database.disconnect_all()
    else:
        fleet.database.stop()
        time.sleep(chance.uniform(*OUTAGE_S))
        fleet.database.start()
    return what


def lose_store(fleet: Fleet, _load: Load, chance: random.Random) -> str:
    """Have the store refuse connections, answer nothing, or answer 503, for some seconds; a tenth of them takes longer.

    The longer ones outlast the 30 s for which the store's clients try again.
    """
    mode = chance.choice((Mode.REFUSE, Mode.STALL, Mode.FAIL))
    is_long = chance.random() < LONG
    fleet.store.proxy.set(mode)
    time.sleep(chance.uniform(*(LONG_OUTAGE_S if is_long else OUTAGE_S)))
    fleet.store.proxy.set(Mode.OPEN)
    return f"{mode.value}, long" if is_long else mode.value


FAULTS: Mapping[str, Fault] = {
    "kills": kill,
    "freezes": freeze,
    "broker": lose_broker,
    "database": lose_database,
    "store": lose_store,
}


def _victim(fleet: Fleet, chance: random.Random) -> Program:
    """Return a worker, mostly one that is in the middle of a job."""
    if chance.random() < BUSY:
        for _ in range(100):
            if busy := fleet.busy():
                time.sleep(chance.uniform(0, JOB_S))
                return chance.choice(busy)
            time.sleep(0.01)
    return chance.choice(fleet.workers)


def _signal_host(worker: Program, number: int) -> None:
    for pid in worker.children():
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _flood(fleet: Fleet, load: Load, chance: random.Random) -> None:
    queue = JobQueue(fleet.broker.url)
    known = [promise.job_id for promise in load.promises[-100:]]
    with suppress(redis.RedisError):
        for name in QUEUES:
            fleet.broker.client.rpush(name, *(chance.choice(GARBAGE) for _ in range(FLOOD)))
    for number in range(FLOOD):
        job_id = chance.choice([*known, str(uuid4()), "no id", ""]) if number % 4 else str(uuid4())
        queue.send(job_id, chance.choice(QUEUES))
    queue.close()
