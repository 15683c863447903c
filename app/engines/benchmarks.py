"""The checks of a benchmark's request that need no device."""

from collections.abc import Mapping, Sequence
from math import prod

from app.definitions.parameter import InputSpec
from app.definitions.profiles import parse_profiles, settle_shapes
from app.engines.schemas import BenchmarkRequest
from app.engines.tables import Engine
from app.engines.work import BenchmarkWork
from app.errors import FieldError, Invalid
from app.fleet.offers import Offer, settle_options
from app.weights.dtypes import DTYPES

MAX_INPUT_BYTES = 1 << 30


def settle_benchmark(
    engine: Engine, inputs: Sequence[InputSpec], offer: Offer, body: BenchmarkRequest
) -> BenchmarkWork:
    """Return the job's work, with the shape of every input; raises Invalid with a pointer to each fault.

    The engine must be loaded with its profiles. `inputs` are the inputs of its definition. `offer` is what the workers
    alive offer of its backend.
    """
    shapes = settle_shapes(body.shapes, inputs, parse_profiles(engine.profiles, inputs))
    check_bytes(shapes, inputs)
    if body.against == "not_refittable":
        _check_comparable(engine, offer)
    return BenchmarkWork(
        engine_id=engine.id,
        iterations=body.iterations,
        warmup=body.warmup,
        shapes=shapes,
        against=body.against,
        layers=body.layers,
    )


def check_bytes(shapes: Mapping[str, tuple[int, ...]], inputs: Sequence[InputSpec]) -> None:
    """Raise Invalid "invalid_shapes" if inputs of these shapes are too large to be made up."""
    nbytes = sum(prod(shapes[spec.name]) * DTYPES[spec.dtype].itemsize for spec in inputs)
    if nbytes > MAX_INPUT_BYTES:
        detail = f"the inputs would take {nbytes} bytes, at most {MAX_INPUT_BYTES} are allowed"
        raise Invalid(
            f"These shapes are too large: {detail}. Ask for smaller ones.",
            code="invalid_shapes",
            errors=[FieldError("/shapes", detail)],
        )


def _check_comparable(engine: Engine, offer: Offer) -> None:
    """Raise Invalid if the engine has no refit support, or its backend cannot compile one without refit support."""
    if not engine.refittable:
        raise _incomparable("engine_not_refittable", f"engine {engine.number} itself has no refit support")
    try:
        settle_options(engine.backend, offer, {"refit": "none"})
    except Invalid as refused:
        reason = "; ".join(fault.detail for fault in refused.errors)
        raise _incomparable(
            "cannot_compare", f"{engine.backend} does not take the option refit=none ({reason})"
        ) from refused


def _incomparable(code: str, detail: str) -> Invalid:
    return Invalid(
        f"There is nothing to compare with: {detail}. Leave out against to measure the engine alone.",
        code=code,
        errors=[FieldError("/against", detail)],
    )
