"""What a verification sees, with the inputs of which it sees the most."""

from app.definitions.parameter import InputSpec
from app.weights.dtypes import DTYPES
from workers.channel.messages import BackendError, Sight, Verify
from workers.engine_host.backends.base import Arrays, LoadedEngine
from workers.engine_host.comparison import Comparison
from workers.engine_host.coverage import measure, missed, widest
from workers.engine_host.inner_values import look_inside
from workers.engine_host.references import Reference
from workers.engine_host.run_inputs import Values
from workers.engine_host.trials import Trial, longer, trials

OTHER_VALUES: tuple[Values, ...] = ("small", "unit")  # what saturates outputs with normal values may not with these


def measured(
    request: Verify,
    engine: LoadedEngine,
    reference: Reference,
    fed: tuple[Arrays, Trial | None],
    comparison: Comparison,
) -> tuple[Sight, Trial | None]:
    """Return what a verification of `request` sees, and how the inputs are made up that see it, None if they are given.

    Outputs are looked at first, then inner values, and then other inputs, each of which cost more in every refit. `fed`
    are the inputs so far.
    """
    inputs, trial = fed
    seconds = request.check.coverage_s
    try:
        sight = measure(reference, inputs, comparison, seconds)
    except BackendError:  # the outputs were given, and the reference cannot be run on these inputs
        return Sight(0, len(reference.weights), 0, (), (), (), (), 0.0), trial
    if request.check.expected is not None:
        return sight, trial
    specs, others = request.engine.inputs, [] if trial is None else _others(request, trial)
    made = [one.inputs(specs) for one in others[:2]]
    sight = look_inside(reference, engine, inputs, comparison, sight, seconds - sight.seconds, made)
    if trial is None or not missed(sight) or sight.seconds >= seconds / 2:
        return sight, trial
    better, chosen = widest(reference, specs, comparison, (sight, trial), others, seconds - sight.seconds)
    if chosen == trial:
        return better, trial
    left = seconds - better.seconds
    return look_inside(reference, engine, chosen.inputs(specs), comparison, better, left, [inputs, *made]), chosen


def _others(request: Verify, trial: Trial) -> list[Trial]:
    """Return inputs that may see more: other values, and other shapes of the profiles."""
    specs, profiles = request.engine.inputs, request.engine.profiles
    shapes = [one.shapes for one in trials(specs, profiles)] if profiles else [longer(specs, trial.shapes)]
    larger = [Trial(one, trial.values, trial.seed) for one in shapes if one != trial.shapes]
    other_values = [Trial(trial.shapes, values, trial.seed) for values in OTHER_VALUES if _holds_floats(specs)]
    return [Trial(trial.shapes, trial.values, trial.seed + 1), *larger[:2], *other_values]


def _holds_floats(specs: tuple[InputSpec, ...]) -> bool:
    return any(DTYPES[spec.dtype].kind == "float" for spec in specs)
