from typing import Any

import pytest

from app.definitions.parameter import InputSpec
from app.engines.benchmarks import settle_benchmark
from app.engines.schemas import BenchmarkRequest
from app.engines.tables import Engine
from app.engines.work import BenchmarkWork
from app.errors import FieldError, Invalid
from app.fleet.offers import Offer

INPUTS = (InputSpec("x", "F32", ("batch", 8)), InputSpec("mask", "I64", ("batch",)))
PROFILES: list[Any] = [{"x": {"min": [1, 8], "opt": [4, 8], "max": [16, 8]}}]
WITH_REFIT = Offer(versions=frozenset({"8.6.1"}), options={"refit": [{"enum": ["all", "none"], "default": "all"}]})
WITHOUT = Offer(
    versions=frozenset({"1.32.0"}),
    options={"optimization": [{"type": "string"}]},
    lacks={"refit": "it never holds any"},
)


def engine(**fields: Any) -> Engine:  # noqa: ANN401 - columns
    return Engine(**{"id": 7, "number": 2, "backend": "tensorrt", "refittable": True, "profiles": [], **fields})


def settled(offer: Offer = WITH_REFIT, of: Engine | None = None, **body: Any) -> BenchmarkWork:  # noqa: ANN401 - JSON
    return settle_benchmark(of or engine(), INPUTS, offer, BenchmarkRequest.model_validate({"engine": 2, **body}))


def refused(offer: Offer = WITH_REFIT, of: Engine | None = None, **body: Any) -> tuple[str, tuple[FieldError, ...]]:  # noqa: ANN401 - JSON
    with pytest.raises(Invalid) as raised:
        settled(offer, of, **body)
    return raised.value.code, raised.value.errors


def test_what_is_left_out_has_its_default() -> None:
    shapes = {"x": (2, 8), "mask": (2,)}
    assert settled() == BenchmarkWork(engine_id=7, iterations=100, warmup=10, shapes=shapes, against=None, layers=True)


def test_the_worker_is_told_the_shape_of_every_input() -> None:
    assert settled(shapes={"mask": [5]}).shapes == {"x": (5, 8), "mask": (5,)}
    assert settled(of=engine(profiles=PROFILES)).shapes == {"x": (4, 8), "mask": (4,)}


def test_shapes_beyond_the_profiles_of_the_engine_are_refused() -> None:
    code, (fault,) = refused(of=engine(profiles=PROFILES), shapes={"x": [17, 8]})
    assert (code, fault.pointer) == ("invalid_shapes", "/shapes/x")
    assert "[16, 8]" in fault.detail


def test_inputs_that_would_fill_the_memory_are_refused() -> None:
    assert settled(shapes={"x": [2**20, 8]}).shapes["mask"] == (2**20,)
    code, (fault,) = refused(shapes={"x": [2**31 - 1, 8]})
    assert (code, fault.pointer) == ("invalid_shapes", "/shapes")


def test_an_engine_is_compared_where_its_backend_compiles_without_refit_support() -> None:
    assert settled(against="not_refittable").against == "not_refittable"


def test_a_comparison_that_nobody_alive_can_judge_waits_for_a_worker() -> None:
    assert settled(Offer(), against="not_refittable").against == "not_refittable"


def test_an_engine_without_refit_support_has_nothing_to_be_compared_with() -> None:
    code, (fault,) = refused(of=engine(refittable=False), against="not_refittable")
    assert (code, fault.pointer) == ("engine_not_refittable", "/against")
    assert settled(of=engine(refittable=False)).engine_id == 7


def test_a_backend_that_always_refits_says_why_there_is_no_comparison() -> None:
    code, (fault,) = refused(WITHOUT, engine(backend="onnxruntime"), against="not_refittable")
    assert (code, fault.pointer) == ("cannot_compare", "/against")
    assert "it never holds any" in fault.detail
