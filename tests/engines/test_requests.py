from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from app.artifacts.service import collect_orphans, record
from app.artifacts.store import ArtifactStore
from app.artifacts.tables import Blob, BlobUse
from app.bindings.report import BindingReport
from app.database import Database
from app.engines.requests import request_build, request_engine, request_refit, request_run, request_verify
from app.engines.schemas import BuildRequest, EngineRequest, RefitRequest, RunRequest, VerifyChoice, VerifyRequest
from app.errors import Invalid, NotFound
from app.jobs.service import Place
from app.jobs.tables import Job, JobEvent
from app.registry.service import create_model
from app.settings import Settings
from tests.engines.workbench import Workbench, digest_of, tensor

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
    report = BindingReport.from_json(request.pop("binding"))
    assert {binding.parameter for binding in report.bindings} == {"w", "b"}
    assert request.pop("fingerprint").startswith("sha256:")
    assert request == {
        "definition_id": 1,
        "weights_id": 1,
        "backend": "onnxruntime",
        "profiles": PROFILES,
        "options": {"optimization": "none"},
        "rules": [],
        "verify": {"against": "reference"},
        "reuse": True,
    }


def test_a_refit_tells_its_worker_everything(bench: Workbench) -> None:
    bench.add_epoch(2)
    parent = built(bench)
    job = bench.submit(request_refit, RefitRequest(engine=parent, weights=2, verify=VerifyChoice(against="finite")))
    assert (job.kind, job.state) == ("refit", "queued")
    request = bench.request_of(job)
    assert BindingReport.from_json(request.pop("binding")).ok
    assert request.pop("fingerprint") != bench.engine(parent).fingerprint
    assert request == {
        "parent_id": bench.engine(parent).id,
        "weights_id": 2,
        "rules": [],
        "verify": {"against": "finite"},
        "reuse": True,
    }


def test_an_equal_engine_is_answered_with_a_finished_job(bench: Workbench) -> None:
    number = built(bench)
    job = bench.submit(request_build, BUILD)
    assert job.state == "succeeded"
    assert job.result == {"engine": number, "reused": True, "method": "reuse"}


def test_an_equal_engine_published_while_the_request_was_prepared_is_reused(bench: Workbench) -> None:
    prepared = request_build(bench.database, bench.settings, "minilm", BUILD)
    number = built(bench)
    assert bench.place(prepared).result == {"engine": number, "reused": True, "method": "reuse"}


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


def test_a_job_for_which_there_is_a_worker_says_nothing(bench: Workbench) -> None:
    bench.add_worker()
    assert list(events_of(bench, bench.submit(request_build, BUILD))) == ["queued"]


def test_an_engine_of_another_backend_version_is_pointed_out(bench: Workbench) -> None:
    number = built(bench)
    bench.add_worker(version="1.33.0")
    job = bench.submit(verification_of(number), VerifyRequest())
    assert list(events_of(bench, job)) == ["queued", "other_backend_version"]


def verification_of(number: int) -> Callable[[Database, Settings, str, VerifyRequest], Place]:
    return lambda database, settings, model, body: request_verify(database, settings, model, number, body)


def test_a_verification_tells_its_worker_what_to_compare_with(bench: Workbench) -> None:
    number = built(bench)
    job = bench.submit(verification_of(number), VerifyRequest(against="rebuild"))
    assert job.kind == "verify"
    assert bench.request_of(job) == {"engine_id": bench.engine(number).id, "verify": {"against": "rebuild"}}


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
    request = bench.request_of(job)
    assert request == {
        "engine_id": bench.engine(number).id,
        "inputs": digest_of("inputs"),
        "backend": "onnxruntime",
    }


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
            {"rules": [{"ignore": "head"}]},
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
            request_engine(bench.database, bench.settings, "empty", EngineRequest(weights=1))

    def test_decides_by_the_engines_there_are_when_the_job_is_made(self, bench: Workbench) -> None:
        bench.add_epoch(2)
        prepared = request_engine(bench.database, bench.settings, "minilm", EngineRequest(weights=2))
        parent = built(bench)
        assert bench.request_of(bench.place(prepared))["parent_id"] == bench.engine(parent).id
