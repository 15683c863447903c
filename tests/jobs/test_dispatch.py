from collections.abc import Iterator
from threading import Event

import pytest

from app.database import Database
from app.jobs import service
from app.jobs.dispatch import Dispatch
from app.jobs.state import State

QUEUE = "enginesmith.onnxruntime"


class Hung:
    """A broker that answers nothing until it is let."""

    def __init__(self) -> None:
        self.answers = Event()
        self.said: list[str] = []

    def send(self, job_id: str, _queue: str) -> None:
        self.answers.wait()
        self.said.append(f"sent {job_id}")
        if job_id == "refused":
            raise LookupError(job_id)

    def announce(self, job_id: str, state: State) -> None:
        self.answers.wait()
        self.said.append(f"announced {job_id} {state}")

    def close(self) -> None:
        self.said.append("closed")


@pytest.fixture
def broker() -> Iterator[Hung]:
    hung = Hung()
    yield hung
    hung.answers.set()


@pytest.fixture
def dispatch(broker: Hung) -> Dispatch:
    return Dispatch(broker, broker.announce)


def test_a_broker_that_hangs_holds_up_neither_a_post_nor_a_cancel(
    database: Database, broker: Hung, dispatch: Dispatch, model_id: int
) -> None:
    with database.transaction() as session:
        service.bind_dispatch(session, dispatch)
        job = service.create(session, kind="run", model_id=model_id, queue=QUEUE, request={}, likeness="any")
    with database.transaction() as session:
        service.bind_dispatch(session, dispatch)
        assert service.request_cancel(session, job.id).state == State.CANCELED
    assert broker.said == []


def test_one_after_the_other_is_sent_whatever_became_of_the_one_before(broker: Hung, dispatch: Dispatch) -> None:
    dispatch.send("refused", QUEUE)
    dispatch.send("next", QUEUE)
    broker.answers.set()
    dispatch._thread.shutdown(wait=True)
    assert broker.said == ["sent refused", "sent next"]


def test_what_still_waits_at_the_end_is_left_to_the_sweep(broker: Hung, dispatch: Dispatch) -> None:
    for job_id in ("first", "second", "third"):
        dispatch.send(job_id, QUEUE)
    dispatch.close()
    broker.answers.set()
    dispatch._thread.shutdown(wait=True)
    assert "sent third" not in broker.said
