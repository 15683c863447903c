"""A worker that is cut off claims nothing until it is no longer."""

import time
from collections.abc import Callable

import pytest

from app.artifacts.local import LocalStore
from app.errors import Unavailable
from workers.channel.host import EngineHost, EngineHostNotStarted
from workers.jobs import fitness
from workers.jobs import worker as worker_module
from workers.jobs.faults import ShuttingDown
from workers.jobs.worker import Worker

DETAIL = "The artifact store does not answer."


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness, "FIRST_PAUSE_S", 0.0)


def probed(worker: Worker) -> bool:
    """Begin a probe if none runs, and return what has come of it."""
    regained = worker.fitness.regained()
    worker.io.submit(lambda: None).result(10)  # the pool has one thread, so the probe before this has ended
    return regained or worker.fitness.regained()


def test_a_worker_whose_store_fails_waits_until_it_answers(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Exception | None] = [None, OSError("still gone"), Unavailable(DETAIL, code="store_unavailable")]

    def check(_store: LocalStore) -> None:
        if (fault := answers.pop()) is not None:
            raise fault

    monkeypatch.setattr(LocalStore, "check", check)
    assert worker.fitness.regained()
    worker.fitness.lost_store("The store has failed.")
    assert worker.report().trouble == "The store has failed."
    assert not probed(worker)
    assert worker.report().trouble == DETAIL
    assert not probed(worker)
    assert probed(worker)
    assert worker.report().trouble is None


def test_probes_become_rarer(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(fitness, "FIRST_PAUSE_S", 1.0)
    tried: list[float] = []

    def start(_host: EngineHost, _tick: Callable[[], None]) -> None:
        tried.append(clock[0])
        raise EngineHostNotStarted("killed", status=-9)

    monkeypatch.setattr(EngineHost, "greet", start)
    worker.fitness.lost_host("killed")
    for _ in range(40):
        worker.fitness.regained()
        clock[0] += 1.0
    assert tried == [101.0, 103.0, 107.0, 112.0, 117.0, 122.0, 127.0, 132.0, 137.0]


def test_an_engine_host_is_started_anew(worker: Worker) -> None:
    worker.fitness.lost_host("The engine host was killed by SIGKILL.")
    assert worker.fitness.regained()
    assert worker.host.pid is not None


def test_a_worker_that_stops_starts_no_engine_host(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_host: EngineHost, tick: Callable[[], None]) -> None:
        tick()

    monkeypatch.setattr(EngineHost, "greet", start)
    worker.fitness.lost_host("killed")
    worker.stopping.set()
    with pytest.raises(ShuttingDown):
        worker.fitness.regained()


def test_a_job_that_waited_for_the_store_ends_its_workers_trouble(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "OUTAGE_PAUSES_S", (0.001, 0.001))
    troubles: list[str | None] = []

    def write() -> str:
        troubles.append(worker.fitness.trouble)
        if len(troubles) < 3:
            raise Unavailable("The store is full.", code="store_full")
        return "written"

    assert worker.through_outage(write) == "written"
    assert troubles == [None, "The store is full.", "The store is full."]
    assert worker.fitness.trouble is None


def test_a_job_that_waited_for_the_store_does_not_end_another_trouble(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "OUTAGE_PAUSES_S", (0.001, 0.001))
    worker.fitness.lost_host("It was killed.")
    failures = iter([Unavailable("The store is full.", code="store_full")])

    def write() -> None:
        for failure in failures:
            raise failure

    worker.through_outage(write)
    assert worker.fitness.trouble == "It was killed."
