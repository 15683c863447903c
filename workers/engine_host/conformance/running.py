"""What a backend promises of loading and running, on a device that can run its engines."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from app.bindings.transforms import Transpose
from workers.engine_host.conformance.harness import (
    LAYERS,
    Check,
    Harness,
    Weights,
    inputs,
    keep,
    outputs,
    refusal,
    weights,
)
from workers.engine_host.tensors import Array

ITERATIONS = 3


def check_an_engine_computes_its_definition(harness: Harness) -> None:
    """An engine gives the definition's outputs, in the definition's dtypes, for any shape within a profile."""
    _, engine = harness.engine(harness.sources(weights(1)))
    for batch in (1, 3):
        given = inputs(batch)
        harness.keep_equal(outputs(engine, given), _computed(weights(1), given["x"]), f"a run on a batch of {batch}")


def check_a_run_depends_on_its_inputs_alone(harness: Harness) -> None:
    """Earlier runs leave no trace in the outputs of a run."""
    sources, other = harness.sources(weights(1)), inputs(seed=8)
    _, used = harness.engine(sources)
    outputs(used)
    _, unused = harness.engine(sources)
    harness.keep_equal(outputs(used, other), outputs(unused, other), "a second run on other inputs")


def check_an_engine_loaded_again_computes_the_same(harness: Harness) -> None:
    """A compiled plan can be loaded later; that engine computes the same as the one that the build returned."""
    file, engine = harness.engine(harness.sources(weights(1)))
    harness.keep_equal(outputs(harness.load(file)), outputs(engine), "an engine loaded from its plan")


def check_engines_side_by_side_keep_their_own_weights(harness: Harness) -> None:
    """Several engines of one definition can be resident at once."""
    _, first = harness.engine(harness.sources(weights(1)))
    before = outputs(first)
    harness.engine(harness.sources(weights(2)))
    harness.keep_equal(outputs(first), before, "an engine after another one was built")


def check_transforms_are_applied(harness: Harness) -> None:
    """A parameter's value is what its binding's transforms make of the stored tensors."""
    plain = weights(1)
    turned = plain | {"0.weight": np.ascontiguousarray(plain["0.weight"].T)}
    sources = harness.sources(turned, {"0.weight": (Transpose((1, 0)),)})
    expected = harness.fresh(harness.sources(plain))
    harness.keep_equal(harness.fresh(sources), expected, "an engine of a weight that is stored transposed")


def check_a_damaged_plan_is_refused(harness: Harness) -> None:
    """Half a plan is a BackendError, not a crash."""
    file, _ = harness.engine(harness.sources(weights(1)))
    data = Path(file.plan).read_bytes()
    half = harness.path("plan")
    half.write_bytes(data[: len(data) // 2])
    refusal(lambda: harness.load(replace(file, plan=str(half))), "a load of half a plan")


def check_an_engine_says_what_memory_it_keeps(harness: Harness) -> None:
    """`nbytes` decides which engines are given up when memory runs short."""
    _, engine = harness.engine(harness.sources(weights(1)))
    least = sum(array.nbytes for array in weights(1).values())
    keep(engine.nbytes >= least, f"the engine says it keeps {engine.nbytes} bytes; its weights alone have {least}")


def check_every_measured_run_is_told(harness: Harness) -> None:
    """`measure` returns the seconds of each run that was asked for, and none of the warm-up."""
    _, engine = harness.engine(harness.sources(weights(1)))
    seconds = engine.measure(inputs(), iterations=ITERATIONS, warmup=1)
    keep(len(seconds) == ITERATIONS, f"{ITERATIONS} runs were asked for and {len(seconds)} measured")
    keep(all(one >= 0 for one in seconds), "a run took less than no time")


def check_layers_and_inspection_can_be_recorded(harness: Harness) -> None:
    """A benchmark writes both to its report, as JSON."""
    _, engine = harness.engine(harness.sources(weights(1)))
    layers = engine.layers(inputs())
    keep(all(seconds >= 0 for _, seconds in layers), "a layer took less than no time")
    try:
        json.dumps([layers, engine.inspect()])
    except TypeError as error:
        keep(is_kept=False, otherwise=f"layers or inspection are not JSON: {error}")


RUNNING: tuple[Check, ...] = (
    check_an_engine_computes_its_definition,
    check_a_run_depends_on_its_inputs_alone,
    check_an_engine_loaded_again_computes_the_same,
    check_engines_side_by_side_keep_their_own_weights,
    check_transforms_are_applied,
    check_a_damaged_plan_is_refused,
    check_an_engine_says_what_memory_it_keeps,
    check_every_measured_run_is_told,
    check_layers_and_inspection_can_be_recorded,
)


def _computed(values: Weights, x: Array) -> Array:
    for layer in range(LAYERS):
        x = np.maximum(x @ values[f"{layer}.weight"] + values[f"{layer}.bias"], 0)
    return x
