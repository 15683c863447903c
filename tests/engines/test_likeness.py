"""Of which earlier jobs a new one is expected to take as long."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from app.database import Database, now
from app.engines.requests import (
    request_benchmark,
    request_build,
    request_engine,
    request_materialise,
    request_refit,
    request_run,
    request_verify,
)
from app.engines.schemas import BenchmarkRequest, BuildRequest, EngineRequest, RefitRequest, RunRequest, VerifyRequest
from app.engines.work import BuildWork, MaterialiseWork, RefitWork, Verification, Work
from app.jobs import lease, service
from app.jobs.lease import Claim, JobError
from app.jobs.tables import Job
from app.registry.service import create_model
from app.settings import Settings
from tests.engines.workbench import Workbench, digest_of, tensor

PROFILES: list[Any] = [{"x": {"min": [1, 8], "opt": [4, 8], "max": [16, 8]}}]
DONE = {"engine": 1, "reused": False, "method": "build", "seconds": {"total": 75.0}}
REUSED = {"engine": 1, "reused": True, "method": "reuse"}
QUEUE = "enginesmith.tensorrt"
RECIPE = "sha256:00"
BUILD = BuildWork(
    definition_id=1,
    weights_id=1,
    binding_id=1,
    backend="tensorrt",
    profiles=[],
    options={},
    rules=[],
    fingerprint="sha256:01",
    verify=Verification(),
    reuse=True,
)


@dataclass(frozen=True, slots=True)
class History:
    """Jobs that are made, and such as took so many seconds."""

    database: Database
    settings: Settings
    model_id: int

    def post(self, work: Work = BUILD, recipe: str = RECIPE, queue: str = QUEUE, model_id: int | None = None) -> Job:
        """Queue a job."""
        owner = model_id or self.model_id
        likeness = work.likeness(model_id=owner, queue=queue, recipe=recipe)
        with self.database.transaction() as session:
            return service.create(
                session, kind=work.kind, model_id=owner, queue=queue, request=work.to_json(), likeness=likeness
            )

    def claim(self, job: Job) -> Claim:
        """Have a worker begin with a job."""
        held = lease.claim(self.database, job.id, worker="w", settings=self.settings)
        assert held is not None
        return held

    def finish(self, job: Job, seconds: float, *, was_ready: bool = False) -> None:
        """Let a job succeed that took so long."""
        held = self.claim(job)
        with self.database.transaction() as session:
            lease.succeed(session, held, REUSED if was_ready else DONE, was_ready=was_ready)
            session.flush()
            ended = session.get_one(Job, job.id)
            assert ended.finished_at is not None
            ended.started_at = ended.finished_at - timedelta(seconds=seconds)

    def began(self, job: Job, seconds: float) -> None:
        """Let it be so long that a running job began."""
        with self.database.transaction() as session:
            session.get_one(Job, job.id).started_at = now() - timedelta(seconds=seconds)

    def eta(self, job: Job) -> float | None:
        """What is told of a job now."""
        with self.database.reading() as session:
            return service.eta_seconds(service.get_job(session, job.id))


@pytest.fixture
def history(database: Database, settings: Settings) -> History:
    with database.transaction() as session:
        return History(database, settings, create_model(session, "minilm", "", {}).id)


def test_a_job_is_expected_to_take_as_long_as_most_of_the_last_like_ones(history: History) -> None:
    for seconds in (500.0, 70.0, 75.0, 80.0, 1.0, 900.0):
        history.finish(history.post(), seconds)
    same = BUILD.model_copy(update={"weights_id": 2, "fingerprint": "sha256:02", "reuse": False})
    assert history.post(same).expected_s == 75.0


@pytest.mark.parametrize(
    "unlike",
    [
        {"backend": "onnxruntime"},
        {"definition_id": 2},
        {"binding_id": 2},
        {"options": {"level": 5}},
        {"verify": Verification(against="none")},
    ],
)
def test_an_unlike_job_says_nothing(history: History, unlike: dict[str, Any]) -> None:
    history.finish(history.post(), 75.0)
    assert history.post(BUILD.model_copy(update=unlike)).expected_s is None


def test_neither_does_one_of_another_kind_queue_model_or_recipe(history: History) -> None:
    history.finish(history.post(), 75.0)
    with history.database.transaction() as session:
        other = create_model(session, "other", "", {}).id
    assert history.post(queue=f"{QUEUE}.h100").expected_s is None
    assert history.post(model_id=other).expected_s is None
    assert history.post(recipe="other").expected_s is None
    assert history.post(MaterialiseWork(engine_id=1)).expected_s is None
    assert history.post().expected_s == 75.0


def test_a_job_that_found_its_result_says_nothing(history: History) -> None:
    history.finish(history.post(), 0.01, was_ready=True)
    assert history.post().expected_s is None


def test_jobs_that_found_their_results_do_not_hide_one_that_worked(history: History) -> None:
    history.finish(history.post(), 75.0)
    for _ in range(service.HISTORY):
        history.finish(history.post(), 0.01, was_ready=True)
        with history.database.transaction() as session:
            service.create_finished(
                session, kind="build", model_id=history.model_id, queue=QUEUE, request=BUILD.to_json(), result=REUSED
            )
    assert history.post().expected_s == 75.0


def test_a_job_that_was_taken_up_again_says_nothing(history: History) -> None:
    job = history.post()
    lease.retry(history.database, history.claim(job), JobError("engine_host_died", "It died."))
    history.finish(job, 30.0)
    assert history.post().expected_s is None


def test_a_job_that_failed_says_nothing(history: History) -> None:
    lease.fail(history.database, history.claim(history.post()), JobError("bad", "Do better."))
    assert history.post().expected_s is None


REFIT = RefitWork(
    parent_id=1, weights_id=1, binding_id=1, rules=[], fingerprint="sha256:01", verify=Verification(), reuse=True
)


@pytest.mark.parametrize(
    ("one", "another"),
    [(REFIT, REFIT.model_copy(update={"parent_id": 2})), (MaterialiseWork(engine_id=1), MaterialiseWork(engine_id=2))],
)
def test_an_engine_to_work_on_counts_by_its_recipe(history: History, one: Work, another: Work) -> None:
    history.finish(history.post(one), 75.0)
    assert history.post(another).expected_s == 75.0
    assert history.post(one, recipe="other").expected_s is None


def test_jobs_know_nothing_of_what_is_made_by_them() -> None:
    script = "import sys, app.jobs.router; sys.exit('app.engines' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_how_long_a_job_needs_yet_is_unknown_once_it_takes_longer(history: History) -> None:
    history.finish(history.post(), 75.0)
    job = history.post()
    assert history.eta(job) == 75.0
    history.claim(job)
    history.began(job, 25.0)
    left = history.eta(job)
    assert left is not None
    assert 40.0 < left <= 50.0
    history.began(job, 76.0)
    assert history.eta(job) is None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_last_like_jobs_are_found_by_their_index(database: Database) -> None:
    statement = service.EARLIER.params(likeness="x").compile(database.engine, compile_kwargs={"literal_binds": True})
    with database.engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}").all()
    assert [row[-1] for row in plan] == ["SEARCH jobs USING INDEX ix_jobs_likeness_state_id (likeness=? AND state=?)"]


class TestOfEngines:
    """Jobs as they are requested, on engines and for engines of one recipe."""

    @pytest.fixture
    def bench(self, history: History) -> Workbench:
        bench = Workbench(history.database, history.settings)
        bench.add_definition()
        for epoch in range(1, 6):
            bench.add_epoch(epoch)
        bench.add_worker()
        return bench

    @pytest.fixture
    def engine(self, bench: Workbench) -> int:
        return bench.publish(bench.submit(request_build, BuildRequest(definition=1, weights=1)))

    def test_a_build_of_other_weights_is_like_the_first(self, bench: Workbench, history: History) -> None:
        history.finish(bench.submit(request_build, BuildRequest(definition=1, weights=1)), 0.5)
        assert bench.submit(request_build, BuildRequest(definition=1, weights=2)).expected_s == 0.5
        assert bench.submit(request_engine, EngineRequest(weights=2)).expected_s == 0.5

    @pytest.mark.parametrize(
        "unlike",
        [
            {"backend": "tensorrt"},
            {"definition": 2},
            {"profiles": PROFILES},
            {"options": {"optimization": "none"}},
            {"verify": {"against": "none"}},
        ],
    )
    def test_a_build_with_anything_else_is_not(
        self, bench: Workbench, history: History, unlike: dict[str, Any]
    ) -> None:
        bench.add_definition("second")
        body = {"definition": 1, "weights": 1}
        history.finish(bench.submit(request_build, BuildRequest.model_validate(body)), 0.5)
        assert bench.submit(request_build, BuildRequest.model_validate(body | unlike)).expected_s is None

    def test_each_refit_of_a_line_is_like_the_last(self, bench: Workbench, history: History, engine: int) -> None:
        first = bench.submit(request_refit, RefitRequest(engine=engine, weights=2))
        assert first.expected_s is None
        child = bench.publish(first)
        history.finish(first, 0.2)
        assert bench.submit(request_refit, RefitRequest(engine=child, weights=3)).expected_s == 0.2
        cheapest = bench.submit(request_engine, EngineRequest(weights=4))
        assert (cheapest.kind, cheapest.expected_s) == ("refit", 0.2)

    def test_a_lazy_refit_is_like_lazy_ones_only(self, bench: Workbench, history: History, engine: int) -> None:
        history.finish(bench.submit(request_refit, RefitRequest(engine=engine, weights=2)), 2.0)
        lazy = bench.submit(request_refit, RefitRequest(engine=engine, weights=3, materialise="lazy"))
        assert lazy.expected_s is None
        history.finish(lazy, 0.1)
        assert bench.submit(
            request_refit, RefitRequest(engine=engine, weights=4, materialise="lazy")
        ).expected_s == pytest.approx(0.1)

    @pytest.mark.parametrize("unlike", [{"options": {"optimization": "none"}}, {"definition": 2}])
    def test_a_refit_of_an_engine_of_another_recipe_is_unlike(
        self, bench: Workbench, history: History, engine: int, unlike: dict[str, Any]
    ) -> None:
        bench.add_definition("second")
        history.finish(bench.submit(request_refit, RefitRequest(engine=engine, weights=2)), 0.2)
        body = BuildRequest.model_validate({"definition": 1, "weights": 1} | unlike)
        other = bench.publish(bench.submit(request_build, body))
        assert bench.submit(request_refit, RefitRequest(engine=other, weights=2)).expected_s is None

    def test_weights_that_bind_in_another_way_are_unlike(self, bench: Workbench, history: History, engine: int) -> None:
        history.finish(bench.submit(request_refit, RefitRequest(engine=engine, weights=2)), 0.2)
        cast = bench.add_weights(tensor("w", (4, 8), "w", "F16"), tensor("b", (4,), "b"))
        assert bench.submit(request_refit, RefitRequest(engine=engine, weights=cast)).expected_s is None

    def test_what_is_done_with_an_engine_is_like_the_same_with_its_relatives(
        self, bench: Workbench, history: History, engine: int
    ) -> None:
        relatives = [self._lazily_refitted(bench, engine, weights) for weights in (2, 3)]
        for seconds, job in enumerate(self._jobs_on(bench, relatives[0]), 1):
            assert job.expected_s is None
            history.finish(job, seconds)
        assert [job.expected_s for job in self._jobs_on(bench, relatives[1])] == [1, 2, 3, 4]

    def test_a_run_on_other_inputs_is_unlike(self, bench: Workbench, history: History, engine: int) -> None:
        first, other = digest_of("checkpoint"), digest_of("first")
        history.finish(bench.submit(request_run, RunRequest(engine=engine, inputs=first)), 0.1)
        assert bench.submit(request_run, RunRequest(engine=engine, inputs=other)).expected_s is None
        assert bench.submit(request_run, RunRequest(engine=engine, inputs=first)).expected_s == pytest.approx(0.1)

    def _lazily_refitted(self, bench: Workbench, engine: int, weights: int) -> int:
        body = RefitRequest(engine=engine, weights=weights, materialise="lazy")
        return bench.publish(bench.submit(request_refit, body))

    def _jobs_on(self, bench: Workbench, number: int) -> Sequence[Job]:
        database, settings = bench.database, bench.settings
        return [
            bench.submit(request_run, RunRequest(engine=number, inputs=digest_of("checkpoint"))),
            bench.submit(request_benchmark, BenchmarkRequest(engine=number)),
            bench.place(request_verify(database, settings, "minilm", number, VerifyRequest())),
            bench.place(request_materialise(database, settings, "minilm", number)),
        ]
