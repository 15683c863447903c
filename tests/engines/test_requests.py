from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from app.artifacts.service import collect_orphans, record
from app.artifacts.store import ArtifactStore
from app.artifacts.tables import Blob, BlobUse
from app.database import Database
from app.definitions.parameter import InputSpec
from app.definitions.tables import Definition
from app.engines.requests import (
    request_benchmark,
    request_build,
    request_engine,
    request_refit,
    request_run,
    request_verify,
)
from app.engines.schemas import (
    BenchmarkRequest,
    BuildRequest,
    EngineRequest,
    RefitRequest,
    RunRequest,
    VerifyChoice,
    VerifyRequest,
)
from app.engines.tables import Engine
from app.engines.work import VERSION, RunWork, Verification, VerifyWork
from app.errors import Invalid, NotFound
from app.fleet.tables import ReportedWorker
from app.jobs.submission import Placement
from app.jobs.tables import Job, JobDependency, JobEvent
from app.registry.service import create_model
from app.settings import Settings
from app.weights.tables import WeightVersion
from tests.engines.workbench import REFIT_OPTION, Workbench, digest_of, tensor

BUILD = BuildRequest(definition=1, weights=1)
PROFILES: list[Any] = [{"x": {"min": [1, 8], "opt": [4, 8], "max": [16, 8]}}]
RENAME: list[Any] = [{"parameter": "(.*)", "tensors": [r"model.\1"]}]


def events_of(bench: Workbench, job: Job) -> dict[str, dict[str, Any]]:
    with bench.database.reading() as session:
        rows = session.scalars(select(JobEvent).where(JobEvent.job_id == job.id).order_by(JobEvent.seq))
        return {row.type: row.data for row in rows}


def built(bench: Workbench, **fields: object) -> int:
    return bench.publish(
        bench.submit(request_build, BuildRequest.model_validate({"definition": 1, "weights": 1, **fields}))
    )


def test_a_build_tells_its_worker_everything(bench: Workbench) -> None:
    bench.add_worker()
    body = BuildRequest(definition=1, weights=1, profiles=PROFILES, options={"optimization": "none"})
    job = bench.submit(request_build, body)
    assert (job.kind, job.state, job.queue) == ("build", "queued", "enginesmith.onnxruntime")
    request = bench.request_of(job)
    report = bench.binding_of(request.pop("binding_id"))
    assert {binding.parameter for binding in report.bindings} == {"w", "b"}
    assert request.pop("fingerprint").startswith("sha256:")
    assert request == {
        "version": VERSION,
        "definition_id": 1,
        "weights_id": 1,
        "backend": "onnxruntime",
        "profiles": PROFILES,
        "options": {"optimization": "none"},
        "rules": [],
        "verify": {"against": "reference"},
        "reuse": True,
        "retry_crashed": False,
    }


def test_a_refit_tells_its_worker_everything(bench: Workbench) -> None:
    bench.add_epoch(2)
    parent = built(bench)
    job = bench.submit(request_refit, RefitRequest(engine=parent, weights=2, verify=VerifyChoice(against="finite")))
    assert (job.kind, job.state) == ("refit", "queued")
    request = bench.request_of(job)
    assert bench.binding_of(request.pop("binding_id")).ok
    assert request.pop("fingerprint") != bench.engine(parent).fingerprint
    assert request == {
        "version": VERSION,
        "parent_id": bench.engine(parent).id,
        "weights_id": 2,
        "rules": [],
        "verify": {"against": "finite"},
        "reuse": True,
        "materialise": "eager",
    }


def test_an_equal_engine_is_answered_with_a_finished_job(bench: Workbench) -> None:
    number = built(bench)
    job = bench.submit(request_build, BUILD)
    assert job.state == "succeeded"
    assert job.result == {"engine": number, "reused": True, "method": "reuse"}


def test_an_equal_engine_published_while_the_request_was_prepared_is_reused(bench: Workbench) -> None:
    prepared = request_build(bench.database, bench.store, bench.settings, "minilm", BUILD)
    number = built(bench)
    assert bench.place(prepared).result == {"engine": number, "reused": True, "method": "reuse"}


def test_what_a_binding_warns_of_is_an_event_of_the_job(bench: Workbench) -> None:
    job = bench.submit(request_build, BuildRequest(definition=1, weights=1, rules=[{"ignore": "none"}]))
    told = events_of(bench, job)["binding_warning"]
    assert told["rule"] == 0
    assert "No unused tensor matches" in told["detail"]


def test_reuse_false_compiles_again(bench: Workbench) -> None:
    built(bench)
    job = bench.submit(request_build, BuildRequest(definition=1, weights=1, reuse=False))
    assert job.state == "queued"
    assert bench.request_of(job)["reuse"] is False


def test_rules_that_come_to_the_same_binding_reuse_the_engine(bench: Workbench) -> None:
    number = built(bench)
    rules = [{"parameter": "w", "tensors": ["w"]}]
    job = bench.submit(request_build, BuildRequest(definition=1, weights=1, rules=rules))
    assert job.result is not None
    assert job.result["engine"] == number


def test_an_engine_of_a_version_no_longer_alive_is_not_reused(bench: Workbench) -> None:
    built(bench)
    bench.add_worker(version="1.33.0")
    assert bench.submit(request_build, BUILD).state == "queued"


def test_of_equal_engines_the_one_the_fleet_can_load_is_reused(bench: Workbench) -> None:
    bench.add_worker(version="1.32.0")
    number = built(bench)
    again = bench.submit(request_build, BuildRequest(definition=1, weights=1, reuse=False))
    bench.publish(again, version="1.31.0")
    job = bench.submit(request_build, BUILD)
    assert job.result is not None
    assert job.result["engine"] == number


def test_refitting_an_engine_with_its_own_weights_gives_that_engine(bench: Workbench) -> None:
    number = built(bench)
    job = bench.submit(request_refit, RefitRequest(engine=number, weights=1))
    assert job.result == {"engine": number, "reused": True, "method": "reuse"}


def test_a_refit_keeps_the_rules_profiles_and_options_of_its_parent(bench: Workbench) -> None:
    bench.add_worker()
    for epoch in (1, 2):
        bench.add_weights(tensor("model.w", (4, 8), "w"), tensor("model.b", (4,), f"b{epoch}"))
    parent = built(bench, weights=2, rules=RENAME, profiles=PROFILES, options={"optimization": "none"})
    child = bench.publish(bench.submit(request_refit, RefitRequest(engine=parent, weights=3)))
    assert bench.engine(child).recipe == bench.engine(parent).recipe
    body = BuildRequest(definition=1, weights=3, rules=RENAME, profiles=PROFILES, options={"optimization": "none"})
    job = bench.submit(request_build, body)
    assert job.result is not None
    assert job.result["engine"] == child


def test_a_refit_takes_rules_of_its_own(bench: Workbench) -> None:
    bench.add_worker()
    bench.add_weights(tensor("model.w", (4, 8), "other"), tensor("model.b", (4,), "b2"))
    parent = built(bench, profiles=PROFILES)
    with pytest.raises(Invalid) as unbound:
        bench.submit(request_refit, RefitRequest(engine=parent, weights=2))
    assert unbound.value.code == "binding_failed"
    job = bench.submit(request_refit, RefitRequest(engine=parent, weights=2, rules=RENAME))
    request = bench.request_of(job)
    assert (job.kind, request["rules"]) == ("refit", RENAME)
    fed = {one.parameter: one.tensors for one in bench.binding_of(request["binding_id"]).bindings}
    assert fed == {"w": ("model.w",), "b": ("model.b",)}
    child = bench.engine(bench.publish(job))
    assert child.recipe == bench.engine(parent).recipe
    back = bench.submit(request_refit, RefitRequest(engine=child.number, weights=1, rules=[]))
    assert back.result is not None
    assert back.result["engine"] == parent


def test_rules_of_a_refit_that_cannot_be_read_are_refused_where_they_stand(bench: Workbench) -> None:
    parent = built(bench)
    with pytest.raises(Invalid) as caught:
        bench.submit(request_refit, RefitRequest(engine=parent, weights=1, rules=[{"nonsense": 1}]))
    assert [fault.pointer for fault in caught.value.errors] == ["/rules/0"]


def test_an_engine_that_cannot_be_refitted_is_refused_with_the_way_out(bench: Workbench) -> None:
    bench.add_epoch(2)
    number = bench.publish(bench.submit(request_build, BUILD), refittable=False)
    with pytest.raises(Invalid, match=r"POST …/engines") as caught:
        bench.submit(request_refit, RefitRequest(engine=number, weights=2))
    assert caught.value.code == "engine_not_refittable"


def test_weights_that_do_not_bind_name_every_problem(bench: Workbench) -> None:
    bench.add_weights(tensor("w", (8, 4), "w"), tensor("extra", (1,), "e"))
    with pytest.raises(Invalid, match="3 problems") as caught:
        bench.submit(request_build, BuildRequest(definition=1, weights=2))
    error = caught.value
    assert error.code == "binding_failed"
    assert "POST /v1/models/minilm/bindings/check" in error.detail
    assert {fault.pointer for fault in error.errors} == {"/weights"}
    details = [fault.detail for fault in error.errors]
    assert len(details) == 3
    assert any("w" in detail and "[4, 8]" in detail and "[8, 4]" in detail for detail in details)
    assert any("extra" in detail for detail in details)


def test_a_refit_whose_weights_do_not_bind_is_refused(bench: Workbench) -> None:
    bench.add_weights(tensor("w", (4, 8), "w"))
    number = built(bench)
    with pytest.raises(Invalid) as caught:
        bench.submit(request_refit, RefitRequest(engine=number, weights=2))
    assert caught.value.code == "binding_failed"


def test_a_rule_that_cannot_be_read_is_refused_where_it_stands(bench: Workbench) -> None:
    body = BuildRequest(definition=1, weights=1, rules=[{"ignore": "x"}, {"nonsense": 1}])
    with pytest.raises(Invalid) as caught:
        bench.submit(request_build, body)
    assert [fault.pointer for fault in caught.value.errors] == ["/rules/1"]


def test_profiles_that_do_not_fit_are_refused_where_they_stand(bench: Workbench) -> None:
    profiles = [{"x": {"min": [1, 9], "opt": [4, 8], "max": [16, 8]}}]
    with pytest.raises(Invalid) as caught:
        bench.submit(request_build, BuildRequest(definition=1, weights=1, profiles=profiles))
    assert caught.value.code == "invalid_profiles"
    assert [fault.pointer for fault in caught.value.errors] == ["/profiles/0/x/min/1"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (BuildRequest(definition=9, weights=1), "definition_not_found"),
        (BuildRequest(definition=1, weights=9), "weights_not_found"),
    ],
)
def test_a_build_of_what_there_is_not_is_refused(bench: Workbench, body: BuildRequest, code: str) -> None:
    with pytest.raises(NotFound) as caught:
        bench.submit(request_build, body)
    assert caught.value.code == code


def test_a_refused_request_leaves_no_job(bench: Workbench) -> None:
    with pytest.raises(Invalid):
        bench.submit(request_build, BuildRequest(definition=1, weights=1, backend="nonsense"))
    with bench.database.reading() as session:
        assert session.scalars(select(Job)).all() == []


def test_a_job_for_which_there_is_no_worker_says_so(bench: Workbench) -> None:
    job = bench.submit(request_build, BuildRequest(definition=1, weights=1, backend="tensorrt"))
    assert job.state == "queued"
    told = events_of(bench, job)
    assert list(told) == ["queued", "no_worker"]
    assert told["no_worker"]["backend"] == "tensorrt"


def test_a_job_of_a_backend_that_cannot_be_used_says_why(bench: Workbench) -> None:
    bench.add_idle_worker("tensorrt", "The driver is too old: install 535 or newer.")
    job = bench.submit(request_build, BuildRequest(definition=1, weights=1, backend="tensorrt"))
    assert job.queue == "enginesmith.tensorrt"
    assert "The driver is too old: install 535 or newer." in events_of(bench, job)["no_worker"]["detail"]


def test_a_job_for_which_there_is_a_worker_says_nothing(bench: Workbench) -> None:
    bench.add_worker()
    assert list(events_of(bench, bench.submit(request_build, BUILD))) == ["queued"]


def test_an_engine_of_another_backend_version_is_pointed_out(bench: Workbench) -> None:
    number = built(bench)
    bench.add_worker(version="1.33.0")
    job = bench.submit(verification_of(number), VerifyRequest())
    assert list(events_of(bench, job)) == ["queued", "other_backend_version"]


def verification_of(number: int) -> Callable[[Database, Settings, str, VerifyRequest], Placement]:
    return lambda database, settings, model, body: request_verify(database, settings, model, number, body)


def test_a_verification_tells_its_worker_what_to_compare_with(bench: Workbench) -> None:
    number = built(bench)
    job = bench.submit(verification_of(number), VerifyRequest(against="rebuild"))
    assert job.kind == "verify"
    work = VerifyWork(engine_id=bench.engine(number).id, verify=Verification(against="rebuild"))
    assert bench.request_of(job) == work.to_json()


def test_a_run_needs_its_inputs_uploaded(bench: Workbench) -> None:
    number = built(bench)
    body = RunRequest(engine=number, inputs=digest_of("inputs"))
    with pytest.raises(Invalid) as caught:
        bench.submit(request_run, body)
    assert caught.value.code == "blob_not_found"
    assert [fault.pointer for fault in caught.value.errors] == ["/inputs"]
    with bench.database.transaction() as session:
        record(session, digest_of("inputs"), 10)
    job = bench.submit(request_run, body)
    work = RunWork(engine_id=bench.engine(number).id, inputs=digest_of("inputs"))
    assert bench.request_of(job) == work.to_json()


def test_the_inputs_of_a_run_are_kept_for_its_worker(bench: Workbench, store: ArtifactStore) -> None:
    number = built(bench)
    kept, unused = digest_of("inputs"), digest_of("other inputs")
    with bench.database.transaction() as session:
        record(session, kept, 10)
        record(session, unused, 10)
    job = bench.submit(request_run, RunRequest(engine=number, inputs=kept))
    collect_orphans(bench.database, store, older_than_s=0)
    with bench.database.reading() as session:
        assert session.get(Blob, unused) is None
        assert session.get(Blob, kept) is not None
        assert session.scalars(select(BlobUse.owner).where(BlobUse.digest == kept)).all() == [f"job:{job.id}"]


def test_a_run_of_an_engine_there_is_not_is_refused(bench: Workbench) -> None:
    with pytest.raises(NotFound) as caught:
        bench.submit(request_run, RunRequest(engine=7, inputs=digest_of("inputs")))
    assert caught.value.code == "engine_not_found"


class TestCheapestWay:
    """What POST …/engines decides."""

    def test_builds_where_there_is_no_engine(self, bench: Workbench) -> None:
        job = bench.submit(request_engine, EngineRequest(weights=1))
        assert job.kind == "build"
        assert events_of(bench, job)["chosen"] == {"method": "build", "parent": None}

    def test_reuses_an_equal_engine(self, bench: Workbench) -> None:
        number = built(bench)
        job = bench.submit(request_engine, EngineRequest(weights=1))
        assert job.state == "succeeded"
        assert job.result == {"engine": number, "reused": True, "method": "reuse"}

    def test_refits_the_newest_engine_of_the_same_recipe(self, bench: Workbench) -> None:
        bench.add_epoch(2)
        bench.add_epoch(3)
        built(bench)
        newest = built(bench, weights=2)
        job = bench.submit(request_engine, EngineRequest(weights=3))
        assert job.kind == "refit"
        assert bench.request_of(job)["parent_id"] == bench.engine(newest).id
        assert events_of(bench, job)["chosen"] == {"method": "refit", "parent": newest}

    @pytest.mark.parametrize(
        "other",
        [
            {"profiles": PROFILES},
            {"options": {"optimization": "none"}},
            {"definition": 2},
        ],
    )
    def test_does_not_refit_an_engine_that_differs_in_more_than_weights(
        self, bench: Workbench, other: dict[str, Any]
    ) -> None:
        bench.add_worker()
        bench.add_definition("second")
        bench.add_epoch(2)
        built(bench)
        job = bench.submit(request_engine, EngineRequest.model_validate({"definition": 1, "weights": 2, **other}))
        assert job.kind == "build"

    def test_refits_an_engine_that_was_bound_by_other_rules(self, bench: Workbench) -> None:
        bench.add_weights(tensor("model.w", (4, 8), "other"), tensor("model.b", (4,), "b1"))
        plain = built(bench)
        job = bench.submit(request_engine, EngineRequest(weights=2, rules=RENAME))
        assert (job.kind, bench.request_of(job)["parent_id"]) == ("refit", bench.engine(plain).id)
        renamed = bench.publish(job)
        back = bench.submit(request_engine, EngineRequest(weights=1, rules=[{"ignore": "head"}]))
        assert back.state == "succeeded"  # as it is bound like the first, it is the first
        bench.add_epoch(2)
        again = bench.submit(request_engine, EngineRequest(weights=3, rules=[]))
        assert (again.kind, bench.request_of(again)["parent_id"]) == ("refit", bench.engine(renamed).id)

    def test_does_not_refit_an_engine_of_another_backend(self, bench: Workbench) -> None:
        bench.add_epoch(2)
        built(bench, backend="tensorrt")
        assert bench.submit(request_engine, EngineRequest(weights=2)).kind == "build"
        assert bench.submit(request_engine, EngineRequest(weights=2, backend="tensorrt")).kind == "refit"

    def test_passes_over_an_engine_that_cannot_be_refitted(self, bench: Workbench) -> None:
        bench.add_epoch(2)
        older = built(bench)
        again = bench.submit(request_build, BuildRequest(definition=1, weights=1, reuse=False))
        bench.publish(again, refittable=False)
        job = bench.submit(request_engine, EngineRequest(weights=2))
        assert bench.request_of(job)["parent_id"] == bench.engine(older).id

    def test_passes_over_an_engine_whose_backend_version_is_gone(self, bench: Workbench) -> None:
        bench.add_epoch(2)
        built(bench)
        bench.add_worker(version="1.33.0")
        assert bench.submit(request_engine, EngineRequest(weights=2)).kind == "build"

    def test_takes_the_newest_definition(self, bench: Workbench) -> None:
        bench.add_definition("second")
        assert bench.request_of(bench.submit(request_engine, EngineRequest(weights=1)))["definition_id"] == 2

    def test_takes_what_is_left_out_from_the_newest_engine_of_the_definition(self, bench: Workbench) -> None:
        bench.add_worker()
        bench.add_weights(tensor("model.w", (4, 8), "w"), tensor("model.b", (4,), "b1"))
        bench.add_weights(tensor("model.w", (4, 8), "w"), tensor("model.b", (4,), "b2"))
        parent = built(bench, weights=2, rules=RENAME, profiles=PROFILES, options={"optimization": "none"})
        job = bench.submit(request_engine, EngineRequest(weights=3))
        assert job.kind == "refit"
        assert bench.request_of(job)["parent_id"] == bench.engine(parent).id

    def test_needs_a_definition(self, bench: Workbench) -> None:
        with bench.database.transaction() as session:
            create_model(session, "empty", "", {})
        with pytest.raises(NotFound, match="no definition yet"):
            request_engine(bench.database, bench.store, bench.settings, "empty", EngineRequest(weights=1))

    def test_decides_by_the_engines_there_are_when_the_job_is_made(self, bench: Workbench) -> None:
        bench.add_epoch(2)
        prepared = request_engine(bench.database, bench.store, bench.settings, "minilm", EngineRequest(weights=2))
        parent = built(bench)
        assert bench.request_of(bench.place(prepared))["parent_id"] == bench.engine(parent).id

    def test_refits_at_once_or_lazily_as_it_is_asked(self, bench: Workbench) -> None:
        bench.add_epoch(2)
        built(bench)
        job = bench.submit(request_engine, EngineRequest(weights=2, materialise="lazy"))
        assert (job.kind, bench.request_of(job)["materialise"]) == ("refit", "lazy")


H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100"
ON_H100, ON_A100 = f"8.6.1/{H100}", f"8.6.1/{A100}"
TENSORRT = {"definition": 1, "weights": 1, "backend": "tensorrt"}


def add_gpu(bench: Workbench, device: str = H100, version: str = "8.6.1", **said: object) -> None:
    bench.add_worker("tensorrt", version, device=device, platforms=[f"{version}/{device}"], **said)


def built_on(bench: Workbench, device: str, **fields: object) -> int:
    body = BuildRequest.model_validate(TENSORRT | {"device": device, "reuse": False, **fields})
    return bench.publish(bench.submit(request_build, body), "8.6.1", f"8.6.1/{device}")


class TestPlatforms:
    """Engines work on some machines only."""

    def test_a_build_goes_to_any_worker_of_the_backend(self, bench: Workbench) -> None:
        add_gpu(bench)
        job = bench.submit(request_build, BuildRequest.model_validate(TENSORRT))
        assert job.queue == "enginesmith.tensorrt"
        assert list(events_of(bench, job)) == ["queued"]

    def test_a_build_that_names_a_device_goes_there(self, bench: Workbench) -> None:
        add_gpu(bench, A100)
        add_gpu(bench, H100)
        job = bench.submit(request_build, BuildRequest.model_validate(TENSORRT | {"device": H100}))
        assert job.queue == "enginesmith.tensorrt.8.6.1-nvidia-h100-80gb-hbm3"
        assert list(events_of(bench, job)) == ["queued"]

    def test_a_device_without_the_backend_is_refused(self, bench: Workbench) -> None:
        bench.add_worker()
        with pytest.raises(Invalid) as build:
            bench.submit(request_build, BuildRequest.model_validate(TENSORRT | {"device": H100}))
        with pytest.raises(Invalid) as engine:
            bench.submit(request_engine, EngineRequest(weights=1, backend="tensorrt", device=H100))
        assert (build.value.code, engine.value.code) == ("device_unknown", "device_unknown")

    def test_jobs_on_an_engine_go_to_those_who_load_it(self, bench: Workbench) -> None:
        add_gpu(bench)
        bench.add_epoch(2)
        number = built_on(bench, H100)
        with bench.database.transaction() as session:
            record(session, digest_of("inputs"), 10)
        jobs = [
            bench.submit(request_refit, RefitRequest(engine=number, weights=2)),
            bench.submit(verification_of(number), VerifyRequest()),
            bench.submit(request_run, RunRequest(engine=number, inputs=digest_of("inputs"))),
        ]
        assert {job.queue for job in jobs} == {"enginesmith.tensorrt.8.6.1-nvidia-h100-80gb-hbm3"}
        assert [list(events_of(bench, job)) for job in jobs] == [["queued"]] * 3

    @pytest.mark.parametrize(("device", "version"), [(A100, "8.6.1"), (H100, "10.0")])
    def test_a_job_on_an_engine_that_nobody_loads_says_what_it_waits_for(
        self, bench: Workbench, device: str, version: str
    ) -> None:
        add_gpu(bench)
        number = built_on(bench, H100)
        with bench.database.transaction() as session:
            session.execute(delete(ReportedWorker))
        add_gpu(bench, device, version)
        job = bench.submit(verification_of(number), VerifyRequest())
        told = events_of(bench, job)
        assert list(told) == ["queued", "no_worker"]
        assert told["no_worker"]["platform"] == ON_H100
        assert f"'{ON_H100}'" in told["no_worker"]["detail"]
        assert f"'{version}/{device}'" in told["no_worker"]["detail"]

    def test_every_job_on_an_engine_of_a_fleet_that_is_gone_says_what_it_waits_for(self, bench: Workbench) -> None:
        add_gpu(bench)
        bench.add_epoch(2)
        number = built_on(bench, H100)
        with bench.database.transaction() as session:
            session.execute(delete(ReportedWorker))
            record(session, digest_of("inputs"), 10)
        bench.add_idle_worker("tensorrt", "The driver is too old.")
        jobs = [
            bench.submit(request_refit, RefitRequest(engine=number, weights=2)),
            bench.submit(verification_of(number), VerifyRequest()),
            bench.submit(request_run, RunRequest(engine=number, inputs=digest_of("inputs"))),
            bench.submit(request_benchmark, BenchmarkRequest(engine=number)),
        ]
        for job in jobs:
            detail = events_of(bench, job)["no_worker"]["detail"]
            assert f"'{ON_H100}'" in detail
            assert "The driver is too old. Start a worker" in detail

    def test_an_engine_of_a_platform_that_nobody_has_is_not_reused(self, bench: Workbench) -> None:
        add_gpu(bench, A100)
        number = built_on(bench, A100)
        assert bench.submit(request_build, BuildRequest.model_validate(TENSORRT)).result is not None
        with bench.database.transaction() as session:
            session.get_one(Engine, bench.engine(number).id).platform = ON_H100
        assert bench.submit(request_build, BuildRequest.model_validate(TENSORRT)).state == "queued"

    def test_an_engine_that_was_compiled_for_others_is_reused_but_not_refitted(self, bench: Workbench) -> None:
        bench.add_epoch(2)
        bench.add_worker("tensorrt", "8.6.1", device="CPU", makes=[ON_H100], loads=[])
        body = BuildRequest.model_validate(TENSORRT)
        number = bench.publish(bench.submit(request_build, body), "8.6.1", ON_H100)
        assert bench.submit(request_build, body).result == {"engine": number, "reused": True, "method": "reuse"}
        assert bench.submit(request_engine, EngineRequest(weights=2, backend="tensorrt")).kind == "build"

    def test_with_a_device_only_its_engines_are_reused(self, bench: Workbench) -> None:
        add_gpu(bench, A100)
        add_gpu(bench, H100)
        number = built_on(bench, A100)
        same, other = (
            bench.submit(request_build, BuildRequest.model_validate(TENSORRT | {"device": device}))
            for device in (A100, H100)
        )
        assert same.result == {"engine": number, "reused": True, "method": "reuse"}
        assert other.state == "queued"

    def test_with_a_device_the_cheapest_way_refits_its_engines_only(self, bench: Workbench) -> None:
        add_gpu(bench, A100)
        add_gpu(bench, H100)
        bench.add_epoch(2)
        on_h100, _ = built_on(bench, H100), built_on(bench, A100)
        job = bench.submit(request_engine, EngineRequest(weights=2, device=H100))
        assert job.queue == "enginesmith.tensorrt.8.6.1-nvidia-h100-80gb-hbm3"
        assert bench.request_of(job)["parent_id"] == bench.engine(on_h100).id


RTX = {"definition": 1, "weights": 1, "backend": "tensorrt_rtx"}


class TestMixedFleet:
    """A GPU and a CPU that compiles for one, both of the same backend."""

    @pytest.fixture
    def mixed(self, bench: Workbench) -> Workbench:
        self.add_compiler(bench)
        options = {"refit": {"enum": ["all", "none"], "default": "all"}}
        platforms = [f"1.7/{H100}"]
        bench.add_worker("tensorrt_rtx", "1.7", device=H100, platforms=platforms, capabilities={"options": options})
        return bench

    def add_compiler(self, bench: Workbench) -> None:
        options = {"refit": {"enum": ["none"], "default": "none"}, "compute_capability": {"enum": ["SM80", "SM86"]}}
        bench.add_worker(
            "tensorrt_rtx", "1.7", device="CPU", makes=["1.7/SM80"], loads=[], capabilities={"options": options}
        )

    def build(self, bench: Workbench, **fields: object) -> Job:
        return bench.submit(request_build, BuildRequest.model_validate(RTX | fields))

    def test_a_build_goes_to_the_gpu_and_is_verified(self, mixed: Workbench) -> None:
        job = self.build(mixed)
        assert job.queue == "enginesmith.tensorrt_rtx.1.7-nvidia-h100-80gb-hbm3"
        assert mixed.request_of(job)["verify"] == {"against": "reference"}
        assert list(events_of(mixed, job)) == ["queued"]

    @pytest.mark.parametrize("wish", [{"options": {"compute_capability": "SM86"}}, {"device": "CPU"}])
    def test_a_build_for_others_goes_to_those_that_compile_for_others(
        self, mixed: Workbench, wish: dict[str, Any]
    ) -> None:
        job = self.build(mixed, **wish)
        assert job.queue == "enginesmith.tensorrt_rtx.build-only"
        assert mixed.request_of(job)["verify"] == {"against": "none"}
        assert list(events_of(mixed, job)) == ["queued"]

    def test_an_engine_compiled_for_others_is_not_taken_for_one_of_the_gpu(self, bench: Workbench) -> None:
        self.add_compiler(bench)
        for_others = bench.publish(self.build(bench), "1.7", "1.7/SM80", refittable=False)
        bench.add_worker(
            "tensorrt_rtx", "1.7", device=H100, platforms=[f"1.7/{H100}"], capabilities={"options": {"refit": {}}}
        )
        assert self.build(bench).state == "queued"
        assert self.build(bench, device="CPU").result == {"engine": for_others, "reused": True, "method": "reuse"}

    def test_what_nothing_can_run_is_not_verified_unless_it_is_asked_for(self, bench: Workbench) -> None:
        self.add_compiler(bench)
        assert bench.request_of(self.build(bench))["verify"] == {"against": "none"}
        job = bench.submit(request_engine, EngineRequest(weights=1, backend="tensorrt_rtx"))
        assert bench.request_of(job)["verify"] == {"against": "none"}
        assert bench.request_of(self.build(bench, verify={"against": "none"}))["verify"] == {"against": "none"}

    @pytest.mark.parametrize("against", ["reference", "rebuild", "finite"])
    def test_a_verification_that_nothing_can_do_is_refused_with_the_way_out(
        self, bench: Workbench, against: str
    ) -> None:
        self.add_compiler(bench)
        verify = {"against": against}
        cheapest = EngineRequest.model_validate({"weights": 1, "backend": "tensorrt_rtx", "verify": verify})
        with pytest.raises(Invalid, match=r'\(CPU\) .*"verify": \{"against": "none"\}') as build:
            self.build(bench, verify=verify)
        with pytest.raises(Invalid) as engine:
            bench.submit(request_engine, cheapest)
        assert (build.value.code, engine.value.code) == ("cannot_verify", "cannot_verify")
        assert [fault.pointer for fault in build.value.errors] == ["/verify/against"]


class TestProfiles:
    """Backends that compile for ranges of shapes only."""

    def test_are_required_where_an_input_is_dynamic(self, bench: Workbench) -> None:
        add_gpu(bench, capabilities={"profiles": "required for dynamic inputs"})
        with pytest.raises(Invalid) as caught:
            bench.submit(request_build, BuildRequest.model_validate(TENSORRT))
        assert caught.value.code == "profiles_required"
        assert [fault.pointer for fault in caught.value.errors] == ["/profiles"]
        example = '"profiles": [{"x": {"min": [1, 8], "opt": [2, 8], "max": [8, 8]}}]'
        assert example in caught.value.detail
        assert bench.submit(request_build, BuildRequest.model_validate(TENSORRT | {"profiles": PROFILES})).id

    def test_may_be_left_out_where_workers_do_without_or_nobody_is_alive_to_tell(self, bench: Workbench) -> None:
        assert bench.submit(request_build, BuildRequest.model_validate(TENSORRT)).state == "queued"
        add_gpu(bench, capabilities={"profiles": "optional"})
        assert bench.submit(request_build, BuildRequest.model_validate(TENSORRT)).state == "queued"

    def test_of_static_inputs_follow_from_the_definition(self, bench: Workbench) -> None:
        add_gpu(bench, capabilities={"profiles": "required for dynamic inputs"})
        with bench.database.transaction() as session:
            session.execute(update(Definition).values(inputs=[InputSpec("x", "F32", (4, 8)).to_json()]))
        assert bench.submit(request_build, BuildRequest.model_validate(TENSORRT)).state == "queued"


class TestRefitOfSomeParameters:
    """The option "refit" names the parameters that refits may change; here it is "b", and epochs differ in it."""

    @pytest.fixture
    def gpu(self, bench: Workbench) -> Workbench:
        add_gpu(bench, capabilities={"options": {"refit": REFIT_OPTION}})
        bench.add_epoch(2)
        bench.add_weights(tensor("w", (4, 8), "other w"), tensor("b", (4,), "b3"))
        bench.add_weights(tensor("w", (4, 8), "other w"), tensor("b", (4,), "b4"))
        return bench

    @pytest.mark.parametrize("patterns", [["b"], ["[a-c]", "w.*"]])
    def test_a_refit_may_change_what_they_name(self, gpu: Workbench, patterns: list[str]) -> None:
        number = built_on(gpu, H100, options={"refit": patterns})
        assert gpu.submit(request_refit, RefitRequest(engine=number, weights=2)).kind == "refit"

    def test_a_refit_that_changes_others_is_refused_with_their_names(self, gpu: Workbench) -> None:
        number = built_on(gpu, H100, options={"refit": ["b"]})
        with pytest.raises(Invalid, match=r"Weights 3 change w, .*POST /v1/models/minilm/engines") as caught:
            gpu.submit(request_refit, RefitRequest(engine=number, weights=3))
        assert caught.value.code == "parameters_not_refittable"
        assert [(fault.pointer, fault.detail) for fault in caught.value.errors] == [("/weights", "changes w")]

    def test_a_pattern_must_match_the_whole_name(self, gpu: Workbench) -> None:
        gpu.add_weights(tensor("w", (4, 8), "w"), tensor("b", (4,), "b5"))
        number = built_on(gpu, H100, options={"refit": ["w?"]})
        with pytest.raises(Invalid, match="change b,"):
            gpu.submit(request_refit, RefitRequest(engine=number, weights=5))

    @pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])  # the second is offered by nobody
    def test_a_pattern_that_fits_no_parameter_is_refused_with_the_way_to_their_names(
        self, gpu: Workbench, backend: str
    ) -> None:
        options = {"refit": ["b", "no.such.parameter", "w.+", "[w]"]}
        build = BuildRequest.model_validate(TENSORRT | {"backend": backend, "options": options})
        cheapest = EngineRequest.model_validate({"weights": 1, "backend": backend, "options": options})
        with pytest.raises(Invalid, match="GET /v1/models/minilm/definitions/1/parameters") as caught:
            gpu.submit(request_build, build)
        assert caught.value.code == "invalid_options"
        assert [(fault.pointer, fault.detail) for fault in caught.value.errors] == [
            ("/options/refit/1", "'no.such.parameter' fits no parameter"),
            ("/options/refit/2", "'w.+' fits no parameter"),
        ]
        with pytest.raises(Invalid, match="fits no parameter"):
            gpu.submit(request_engine, cheapest)

    def test_the_cheapest_way_refits_what_it_can(self, gpu: Workbench) -> None:
        number = built_on(gpu, H100, options={"refit": ["b"]})
        job = gpu.submit(request_engine, EngineRequest(weights=2))
        assert (job.kind, gpu.request_of(job)["parent_id"]) == ("refit", gpu.engine(number).id)

    def test_the_cheapest_way_builds_where_other_parameters_change(self, gpu: Workbench) -> None:
        built_on(gpu, H100, options={"refit": ["b"]})
        assert gpu.submit(request_engine, EngineRequest(weights=3)).kind == "build"

    def test_the_cheapest_way_finds_an_older_engine_that_agrees_in_the_rest(self, gpu: Workbench) -> None:
        older = built_on(gpu, H100, weights=3, options={"refit": ["b"]})
        built_on(gpu, H100, weights=1, options={"refit": ["b"]})
        job = gpu.submit(request_engine, EngineRequest(weights=4))
        assert (job.kind, gpu.request_of(job)["parent_id"]) == ("refit", gpu.engine(older).id)

    def test_the_cheapest_way_never_refits_what_was_built_without(self, gpu: Workbench) -> None:
        job = gpu.submit(request_build, BuildRequest.model_validate(TENSORRT | {"options": {"refit": "none"}}))
        gpu.publish(job, "8.6.1", ON_H100, refittable=False)
        assert gpu.submit(request_engine, EngineRequest(weights=2)).kind == "build"

    def test_what_the_compiled_form_has_not_kept_takes_a_build(self, gpu: Workbench) -> None:
        job = gpu.submit(request_build, BuildRequest.model_validate(TENSORRT))
        number = gpu.publish(job, "8.6.1", ON_H100, fixed_parameters=["w"])
        assert gpu.submit(request_refit, RefitRequest(engine=number, weights=2)).kind == "refit"
        with pytest.raises(Invalid, match=r"Weights 3 change w, .*not kept when the engine was compiled") as caught:
            gpu.submit(request_refit, RefitRequest(engine=number, weights=3))
        assert caught.value.code == "parameters_not_refittable"
        assert gpu.submit(request_engine, EngineRequest(weights=2)).kind == "refit"
        assert gpu.submit(request_engine, EngineRequest(weights=3)).kind == "build"

    def test_all_is_the_same_as_nothing_said(self, gpu: Workbench) -> None:
        job = gpu.submit(request_build, BuildRequest.model_validate(TENSORRT | {"options": {"refit": "all"}}))
        assert gpu.request_of(job)["options"] == {}


@pytest.mark.parametrize("body", [BuildRequest(definition=2), EngineRequest(definition=2), EngineRequest()])
def test_weights_left_out_are_those_embedded_in_the_definition(
    bench: Workbench, body: BuildRequest | EngineRequest
) -> None:
    bench.add_epoch(2)
    bench.add_definition("second", weights=2)
    job = bench.submit(request_build if isinstance(body, BuildRequest) else request_engine, body)
    assert bench.request_of(job)["weights_id"] == 2


def test_a_definition_without_parameters_needs_no_weights(bench: Workbench) -> None:
    definition = bench.add_definition("rules", parameters=())
    bench.add_worker()
    number = bench.publish(bench.submit(request_build, BuildRequest(definition=definition)))
    engine = bench.engine(number)
    again = bench.submit(request_engine, EngineRequest(definition=definition))
    assert again.result == {"engine": number, "reused": True, "method": "reuse"}
    with bench.database.reading() as session:
        version = session.scalars(select(WeightVersion).where(WeightVersion.id == engine.weights_id)).one()
        assert (version.tensor_count, version.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("request_it", "body"), [(request_build, BuildRequest(definition=1)), (request_engine, EngineRequest())]
)
def test_a_definition_with_parameters_and_nothing_embedded_needs_weights(
    bench: Workbench, request_it: Callable[..., Placement], body: BuildRequest | EngineRequest
) -> None:
    with pytest.raises(Invalid) as error:
        bench.submit(request_it, body)
    assert error.value.code == "weights_required"
    assert "2 parameters" in error.value.detail
    assert "POST /v1/models/minilm/weights" in error.value.detail
    assert [fault.pointer for fault in error.value.errors] == ["/weights"]


def test_of_equal_requests_at_the_same_moment_one_is_done(bench: Workbench) -> None:
    prepared = [request_build(bench.database, bench.store, bench.settings, "minilm", BUILD) for _ in range(8)]
    with ThreadPoolExecutor(len(prepared)) as pool:
        jobs = [job.id for job in pool.map(bench.place, prepared)]
    with bench.database.reading() as session:
        waits = session.execute(select(JobDependency.job_id, JobDependency.awaited_id)).all()
    (leader,) = {row.awaited_id for row in waits}
    assert sorted([leader, *(row.job_id for row in waits)]) == sorted(jobs)
