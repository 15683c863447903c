"""What a job's row says of its work, across releases."""

from typing import Any, get_args

import pytest

from app.engines.work import (
    VERSION,
    BenchmarkWork,
    BuildWork,
    CompareWork,
    MaterialiseWork,
    RefitWork,
    RunWork,
    Verification,
    VerifyWork,
    Work,
)
from app.errors import ServiceError
from app.jobs.kinds import Kind
from workers.jobs.kinds import steps_of

INPUTS = "sha256:" + "0" * 64
WORKS: list[Work] = [
    BuildWork(
        definition_id=1,
        weights_id=2,
        binding_id=3,
        backend="tensorrt",
        profiles=[{"x": {"min": [1, 8], "opt": [4, 8], "max": [16, 8]}}],
        options={"fp16": True},
        rules=[{"ignore": "head"}],
        fingerprint="sha256:01",
        verify=Verification(against="finite"),
        reuse=False,
    ),
    RefitWork(
        parent_id=4,
        weights_id=2,
        binding_id=3,
        rules=[],
        fingerprint="sha256:01",
        verify=Verification(),
        reuse=True,
        materialise="lazy",
    ),
    MaterialiseWork(engine_id=5),
    RunWork(engine_id=5, inputs=INPUTS),
    VerifyWork(engine_id=5, verify=Verification(against="rebuild")),
    BenchmarkWork(engine_id=5, iterations=7, warmup=1, shapes={"x": (2, 8)}, against="not_refittable", layers=False),
    CompareWork(sweep_id=3, iterations=7, warmup=1, repeats=2, shapes={"x": (2, 8)}, inputs=None),
]
# Rows as the release wrote them that knew no version.
MAKES = {
    "weights_id": 2,
    "rules": [],
    "fingerprint": "sha256:01",
    "verify": {"against": "reference"},
    "reuse": True,
    "binding_id": 3,
}
VERSION_0: list[tuple[Kind, dict[str, Any], Work]] = [
    (
        "build",
        {"definition_id": 1, "backend": "tensorrt", "profiles": [], "options": {}, **MAKES},
        BuildWork(
            definition_id=1,
            weights_id=2,
            binding_id=3,
            backend="tensorrt",
            profiles=[],
            options={},
            rules=[],
            fingerprint="sha256:01",
            verify=Verification(),
            reuse=True,
        ),
    ),
    (
        "refit",
        {"parent_id": 4, **MAKES},
        RefitWork(
            parent_id=4,
            weights_id=2,
            binding_id=3,
            rules=[],
            fingerprint="sha256:01",
            verify=Verification(),
            reuse=True,
        ),
    ),
    ("materialise", {"engine_id": 5}, MaterialiseWork(engine_id=5)),
    (
        "run",
        {"engine_id": 5, "inputs": INPUTS, "backend": "onnxruntime"},
        RunWork(engine_id=5, inputs=INPUTS),
    ),
    (
        "verify",
        {"engine_id": 5, "verify": {"against": "reference"}},
        VerifyWork(engine_id=5, verify=Verification()),
    ),
    (
        "benchmark",
        {"engine_id": 5, "iterations": 7, "warmup": 1, "shapes": {"x": [2, 8]}, "against": None, "layers": True},
        BenchmarkWork(engine_id=5, iterations=7, warmup=1, shapes={"x": (2, 8)}, against=None, layers=True),
    ),
    (
        "compare",
        {"sweep_id": 3, "iterations": 7, "warmup": 1, "repeats": 2, "shapes": {"x": [2, 8]}},
        CompareWork(sweep_id=3, iterations=7, warmup=1, repeats=2, shapes={"x": (2, 8)}),
    ),
]


def test_every_kind_is_tried_here() -> None:
    assert {work.kind for work in WORKS} == {kind for kind, _, _ in VERSION_0} == set(get_args(Kind))


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.kind)
def test_a_worker_reads_what_was_written(work: Work) -> None:
    assert steps_of(work.kind).work.read(work.to_json()) == work


@pytest.mark.parametrize(("kind", "row", "work"), VERSION_0, ids=[kind for kind, _, _ in VERSION_0])
def test_a_worker_reads_what_the_release_before_has_queued(kind: Kind, row: dict[str, Any], work: Work) -> None:
    assert steps_of(kind).work.read(row) == work


def test_a_row_of_a_newer_release_is_refused_with_the_remedy() -> None:
    row = MaterialiseWork(engine_id=5).to_json() | {"version": VERSION + 1}
    with pytest.raises(ServiceError, match="upgrade this worker") as caught:
        MaterialiseWork.read(row)
    assert caught.value.code == "unknown_work"


def test_a_row_that_lacks_something_is_refused_by_name() -> None:
    with pytest.raises(ServiceError, match="inputs: Field required") as caught:
        RunWork.read({"version": VERSION, "engine_id": 5})
    assert caught.value.code == "unknown_work"


def test_a_kind_that_this_release_does_not_have_is_refused() -> None:
    with pytest.raises(ServiceError, match="its kind is 'distil', and this worker knows build, refit") as caught:
        steps_of("distil")
    assert caught.value.code == "unknown_work"


def test_what_jobs_of_the_release_before_were_alike_by_is_the_same_now() -> None:
    _, _, work = VERSION_0[0]
    assert (
        work.likeness(model_id=1, queue="enginesmith.tensorrt", recipe="sha256:00")
        == "e7e8922126dae8f6bcf1e1a80e2ad337"
    )
