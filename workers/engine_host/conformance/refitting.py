"""What a backend promises of refits, if it says that it refits."""

from pathlib import Path

from workers.channel.messages import EngineFile, Refit
from workers.engine_host.conformance.harness import (
    Check,
    Harness,
    keep,
    outputs,
    refusal,
    refused,
    weights,
)


def check_a_refit_equals_a_fresh_build(harness: Harness) -> None:
    """A resident engine that is refitted computes the same as an engine built with the new weights."""
    sources = harness.sources(weights(2))
    expected = harness.fresh(sources)
    parent, resident = harness.engine(harness.sources(weights(1)))
    harness.keep_equal(outputs(harness.refit(Refit(parent, sources, None), resident)), expected, "a refitted engine")


def check_a_refit_needs_no_resident_engine(harness: Harness) -> None:
    """If no engine is resident, a refit loads the parent's plan first."""
    sources = harness.sources(weights(2))
    expected = harness.fresh(sources)
    parent, _ = harness.engine(harness.sources(weights(1)))
    harness.keep_equal(outputs(harness.refit(Refit(parent, sources, None))), expected, "a refit of a parent at rest")


def check_a_refit_says_whether_an_engine_was_resident(harness: Harness) -> None:
    """`warm` is true if a refit was given a resident engine, and false otherwise."""
    parent, resident = harness.engine(harness.sources(weights(1)))
    request = Refit(parent, harness.sources(weights(2)), None)
    for engine in (None, resident):
        refitted, _ = harness.backend.refit(request, engine, harness.messages.append)
        keep(refitted.warm == (engine is not None), f"warm is {refitted.warm}")


def check_a_refit_counts_the_parameters_that_changed(harness: Harness) -> None:
    """`changed` counts the parameters whose values differ from the parent's, whatever else a refit touches."""
    first, second = weights(1), weights(2)
    for count in (0, 1, len(first)):
        parent, resident = harness.engine(harness.sources(first))
        sources = harness.sources(first | dict([*second.items()][:count]))
        refitted, _ = harness.backend.refit(Refit(parent, sources, None), resident, harness.messages.append)
        keep(refitted.changed == count, f"{count} parameters changed and {refitted.changed} are told")


def check_a_refit_never_changes_the_parents_plan(harness: Harness) -> None:
    """The plan of a published engine stays as it is."""
    parent, resident = harness.engine(harness.sources(weights(1)))
    before = Path(parent.plan).read_bytes()
    harness.refit(Refit(parent, harness.sources(weights(2)), None), resident)
    keep(Path(parent.plan).read_bytes() == before, "the parent's plan was changed")


def check_a_refit_that_fails_says_so(harness: Harness) -> None:
    """A refit that fails raises BackendError, and the parent can be loaded again."""
    parent, resident = harness.engine(harness.sources(weights(1)))
    before = outputs(harness.load(parent))
    refused(lambda: harness.refit(_doomed(harness, parent), resident), "file_failed", "a refit with lost files")
    harness.keep_equal(outputs(harness.load(parent)), before, "the parent after a refit that failed")


def check_a_refit_wants_every_parameter(harness: Harness) -> None:
    """A refit without weights for a parameter is "missing_weights"; it does not keep those of the parent."""
    parent, resident = harness.engine(harness.sources(weights(1)))
    request = Refit(parent, harness.sources(weights(2))[1:], None)
    refused(lambda: harness.refit(request, resident), "missing_weights", "a refit without weights for one parameter")


def check_a_refit_wants_weights_that_fit(harness: Harness) -> None:
    """Weights of another shape than the parameter's are "wrong_weights"."""
    parent, resident = harness.engine(harness.sources(weights(1)))
    other = weights(2)
    request = Refit(parent, harness.sources(other | {"0.weight": other["0.weight"][:4]}), None)
    refused(lambda: harness.refit(request, resident), "wrong_weights", "a refit with [4, 8] for [8, 8]")


def check_the_resident_engine_becomes_the_new_one(harness: Harness) -> None:
    """A refit in place changes the engine that it is given, because there may be no room for two."""
    parent, resident = harness.engine(harness.sources(weights(1)))
    refitted = harness.refit(Refit(parent, harness.sources(weights(2)), None), resident)
    harness.keep_equal(outputs(resident), outputs(refitted), "the resident engine after a refit in place")


def check_a_refit_leaves_the_resident_parent_as_it_was(harness: Harness) -> None:
    """A refit that is not in place makes an engine beside its parent, which still computes with its own weights."""
    parent, resident = harness.engine(harness.sources(weights(1)))
    before = outputs(resident)
    harness.refit(Refit(parent, harness.sources(weights(2)), None), resident)
    harness.keep_equal(outputs(resident), before, "the parent after a refit")


def check_a_refit_that_fails_leaves_the_resident_parent_as_it_was(harness: Harness) -> None:
    """If refits are not in place, the parent is still good after a refit that failed."""
    parent, resident = harness.engine(harness.sources(weights(1)))
    before = outputs(resident)
    refusal(lambda: harness.refit(_doomed(harness, parent), resident), "a refit with lost files")
    harness.keep_equal(outputs(resident), before, "the parent after a refit that failed")


REFITTING: tuple[Check, ...] = (
    check_a_refit_equals_a_fresh_build,
    check_a_refit_needs_no_resident_engine,
    check_a_refit_says_whether_an_engine_was_resident,
    check_a_refit_counts_the_parameters_that_changed,
    check_a_refit_never_changes_the_parents_plan,
    check_a_refit_that_fails_says_so,
    check_a_refit_wants_every_parameter,
    check_a_refit_wants_weights_that_fit,
)
REFITTING_IN_PLACE: tuple[Check, ...] = (check_the_resident_engine_becomes_the_new_one,)
REFITTING_BESIDE: tuple[Check, ...] = (
    check_a_refit_leaves_the_resident_parent_as_it_was,
    check_a_refit_that_fails_leaves_the_resident_parent_as_it_was,
)


def _doomed(harness: Harness, parent: EngineFile) -> Refit:
    """Return a refit with new weights whose file is gone."""
    sources = harness.sources(weights(2))
    Path(sources[0].tensors[0].path).unlink()
    return Refit(parent, sources, None)
