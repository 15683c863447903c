"""What a backend that refits promises of its plans: that they hold the weights, or that they hold none."""

import hashlib
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from workers.channel.messages import EngineFile, Materialised, Refit
from workers.engine_host.backends.base import LoadedEngine
from workers.engine_host.conformance.harness import Check, Harness, keep, outputs, refusal, weights


def check_a_refit_has_no_plan_yet(harness: Harness) -> None:
    """If plans hold weights, a refitted engine has no plan of its own until it is materialised."""
    parent, resident = harness.engine(harness.sources(weights(1)))
    request = Refit(parent, harness.sources(weights(2)), None)
    refitted, _ = harness.backend.refit(request, resident, harness.messages.append)
    keep((refitted.plan, refitted.plan_digest) == (None, None), f"the refit says that its plan is {refitted.plan}")


def check_an_engine_without_a_plan_is_loaded_from_another_ones(harness: Harness) -> None:
    """The engine computes with its `parameters`, not with the `plan_parameters` that the plan was made with."""
    first, second = harness.sources(weights(1)), harness.sources(weights(2))
    expected = harness.fresh(second)
    parent, _ = harness.engine(first)
    file = replace(parent, parameters=second, plan_parameters=first)
    harness.keep_equal(outputs(harness.load(file)), expected, "an engine loaded from its parent's plan")


def check_an_engine_without_a_plan_can_be_refitted(harness: Harness) -> None:
    """A refit sets the values that differ from the plan it starts from, not those that differ from the parent's."""
    first, second = harness.sources(weights(1)), harness.sources(weights(2))
    third = harness.sources(weights(2) | {"0.bias": weights(3)["0.bias"]})
    expected = harness.fresh(third)
    root, _ = harness.engine(first)
    parent = replace(root, parameters=second, plan_parameters=first)
    harness.keep_equal(outputs(harness.refit(Refit(parent, third, None))), expected, "a refit of what has no plan")


def check_a_materialised_plan_lies_where_it_is_said_to(harness: Harness) -> None:
    """The whole plan lies at the path asked for, and its digest and size are told."""
    _, engine = _refitted(harness)
    made = _materialised(harness, engine)
    data = Path(made.plan).read_bytes()
    keep(made.plan_digest == f"sha256:{hashlib.sha256(data).hexdigest()}", "the digest is not that of the plan")
    keep(made.nbytes == len(data), f"the plan has {len(data)} bytes, not {made.nbytes}")


def check_a_materialised_plan_computes_the_same(harness: Harness) -> None:
    """An engine and the one that is loaded from its plan give the same outputs."""
    file, engine = _refitted(harness)
    made = _materialised(harness, engine)
    again = harness.load(replace(file, plan=made.plan, plan_parameters=None))
    harness.keep_equal(outputs(again), outputs(engine), "an engine loaded from its materialised plan")


def check_a_materialised_plan_can_be_refitted(harness: Harness) -> None:
    """A materialised plan is as good a parent as a compiled one."""
    third = harness.sources(weights(3))
    expected = harness.fresh(third)
    file, engine = _refitted(harness)
    parent = replace(file, plan=_materialised(harness, engine).plan, plan_parameters=None)
    harness.keep_equal(outputs(harness.refit(Refit(parent, third, None))), expected, "a refit of a materialised plan")


def check_a_plan_is_written_when_its_block_ends(harness: Harness) -> None:
    """When the block has ended, the future is done and its callbacks have run."""
    _, engine = _refitted(harness)
    told: list[Future[Materialised]] = []
    with harness.backend.materialising(str(harness.path("plan")), engine, harness.messages.append) as writing:
        writing.add_done_callback(told.append)
    keep(writing.done() and told == [writing], "the block ended before the plan was written")


def check_a_refit_has_its_parents_plan(harness: Harness) -> None:
    """If plans hold no weights, all engines of one compiled plan share it."""
    parent, resident = harness.engine(harness.sources(weights(1)))
    request = Refit(parent, harness.sources(weights(2)), None)
    refitted, _ = harness.backend.refit(request, resident, harness.messages.append)
    keep(refitted.plan == parent.plan, f"the refit says that its plan is {refitted.plan}")
    keep(refitted.plan_digest == parent.root_plan, "the refit says another digest than its parent's plan has")


def check_a_plan_without_weights_serves_any(harness: Harness) -> None:
    """The engine has the weights that it is loaded with, whichever weights it was compiled with."""
    second = harness.sources(weights(2))
    expected = harness.fresh(second)
    parent, _ = harness.engine(harness.sources(weights(1)))
    harness.keep_equal(outputs(harness.load(replace(parent, parameters=second))), expected, "a plan with other weights")


def check_there_is_nothing_to_materialise(harness: Harness) -> None:
    """A plan without weights is there from the start, and is not written again."""
    _, engine = harness.engine(harness.sources(weights(1)))
    refusal(lambda: _materialised(harness, engine), "writing a plan that holds no weights once more")


HELD_PLANS: tuple[Check, ...] = (
    check_a_refit_has_no_plan_yet,
    check_an_engine_without_a_plan_is_loaded_from_another_ones,
    check_an_engine_without_a_plan_can_be_refitted,
    check_a_materialised_plan_lies_where_it_is_said_to,
    check_a_materialised_plan_computes_the_same,
    check_a_materialised_plan_can_be_refitted,
    check_a_plan_is_written_when_its_block_ends,
)
WEIGHTLESS_PLANS: tuple[Check, ...] = (
    check_a_refit_has_its_parents_plan,
    check_a_plan_without_weights_serves_any,
    check_there_is_nothing_to_materialise,
)


def _refitted(harness: Harness) -> tuple[EngineFile, LoadedEngine]:
    """Return an engine that was refitted and has no plan of its own yet."""
    first, second = harness.sources(weights(1)), harness.sources(weights(2))
    parent, resident = harness.engine(first)
    engine = harness.refit(Refit(parent, second, None), resident)
    return replace(parent, parameters=second, plan_parameters=first), engine


def _materialised(harness: Harness, engine: LoadedEngine) -> Materialised:
    plan = str(harness.path("plan"))
    with harness.backend.materialising(plan, engine, harness.messages.append) as writing:
        made = writing.result()
    keep(made.plan == plan, f"the plan is said to lie at {made.plan}, not at {plan}")
    return made
