"""Equal builds that are under way at once: one is done, and the others take its engine."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from app.database import now
from app.jobs.sweep import sweep
from app.jobs.tables import Job
from tests.workers.networks import Network, Weights
from tests.workers.service import Service, service_with
from workers.channel.messages import BackendError
from workers.consuming import do_ready_job
from workers.jobs import build, kinds
from workers.jobs.attempt import run_job
from workers.jobs.worker import Worker

BUILD: dict[str, Any] = {"definition": 1, "weights": 1}


@pytest.fixture
def net(client: TestClient, worker: Worker, network: Network, weights: Weights) -> Service:
    """A service with definition 1 and weights 1."""
    return service_with(client, worker, network, weights)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Say of what every build fails."""

    def script(error: Exception) -> None:
        def compute(*_: object) -> None:
            raise error

        monkeypatch.setitem(kinds.KINDS, "build", replace(kinds.KINDS["build"], compute=compute))

    return script


def post(net: Service, **changes: object) -> str:
    job_id: str = net.post("/builds", BUILD | changes)["id"]
    return job_id


def told(net: Service, job_id: str) -> list[str]:
    return [event["type"] for event in net.client.get(f"/v1/jobs/{job_id}/events").json()["data"]]


def test_equal_builds_under_way_become_one(net: Service) -> None:
    first, second, third = (post(net) for _ in range(3))
    assert net.job(second)["waiting"]["code"] == "same_under_way"
    assert first in net.job(third)["waiting"]["detail"]
    assert not run_job(net.worker, second)
    assert do_ready_job(net.worker)
    assert not do_ready_job(net.worker)
    assert net.job(first)["result"]["method"] == "build"
    for job in map(net.job, (second, third)):
        assert (job["state"], job["attempt"], job["waiting"]) == ("succeeded", 0, None)
        assert job["result"] == {"engine": 1, "reused": True, "method": "reuse"}
        assert job["started_at"]
        assert told(net, job["id"])[-2:] == ["shared", "succeeded"]
    assert len(net.engines()) == 1


def test_a_build_that_would_be_verified_otherwise_or_wants_a_new_engine_goes_its_own_way(net: Service) -> None:
    post(net, verify={"against": "none"})
    for own in (post(net), post(net, reuse=False), post(net, options={"optimization": "none"})):
        assert net.job(own)["waiting"]["code"] == "no_worker"  # as nobody has reported
    assert net.job(post(net))["waiting"]["code"] == "same_under_way"


@pytest.mark.parametrize("begun", [False, True])
def test_if_the_first_is_canceled_the_next_does_the_work(net: Service, *, begun: bool) -> None:
    first, second, third = (post(net) for _ in range(3))
    if begun:
        with net.worker.database.transaction() as session:  # as a worker that has just died
            session.execute(update(Job).where(Job.id == first).values(state="running", lease_until=now()))
    net.client.post(f"/v1/jobs/{first}/cancel")
    if begun:
        assert net.job(second)["waiting"]["code"] == "same_under_way"
        sweep(net.worker.database, net.worker.settings)
    assert net.job(first)["state"] == "canceled"
    assert second in net.job(third)["waiting"]["detail"]
    assert told(net, second)[-1] == "took_over"
    run_job(net.worker, second)
    assert net.job(second)["result"]["method"] == "build"
    assert net.job(third)["result"] == {"engine": 1, "reused": True, "method": "reuse"}


def test_if_the_first_fails_for_a_reason_that_lasts_all_do(net: Service, fails: Callable[[Exception], None]) -> None:
    fails(BackendError("graph_refused", "No kernel for Foo."))
    first, second = post(net), post(net)
    run_job(net.worker, first)
    error = net.job(second)["error"]
    assert (net.job(second)["state"], error["code"]) == ("failed", "graph_refused")
    assert first in error["detail"]
    assert "Foo" in error["detail"]


def test_if_the_first_fails_for_a_reason_that_may_pass_the_next_does_the_work(
    net: Service, fails: Callable[[Exception], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(OSError("odd"))
    first, second = post(net), post(net)
    for _ in range(net.worker.settings.max_attempts):
        run_job(net.worker, first)
    assert [net.job(one)["state"] for one in (first, second)] == ["failed", "queued"]
    monkeypatch.setitem(kinds.KINDS, "build", build.STEPS)
    run_job(net.worker, second)
    assert net.job(second)["result"]["method"] == "build"


def test_if_the_worker_of_the_first_is_lost_for_good_the_next_does_the_work(net: Service) -> None:
    first, second = post(net), post(net)
    lost = {"state": "running", "attempt": net.worker.settings.max_attempts, "worker": "gone"}
    with net.worker.database.transaction() as session:
        session.execute(update(Job).where(Job.id == first).values(lease_until=now() - timedelta(1), **lost))
    sweep(net.worker.database, net.worker.settings)
    assert net.job(first)["error"]["code"] == "worker_lost"
    assert net.job(second)["waiting"]["code"] != "same_under_way"
    assert run_job(net.worker, second)


def test_a_canceled_follower_leaves_the_others_alone(net: Service) -> None:
    first, second, third = (post(net) for _ in range(3))
    net.client.post(f"/v1/jobs/{second}/cancel")
    run_job(net.worker, first)
    assert [net.job(one)["state"] for one in (first, second, third)] == ["succeeded", "canceled", "succeeded"]
