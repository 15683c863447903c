"""Which parameters a verification sees: those whose change it would notice.

A verification that would pass with another weight proves nothing of that weight. So the reference is run with one
parameter changed at a time, and its outputs are compared with its own by the tolerance in force. A parameter that no
change of 1% shows is also tried with the values of another of its shape.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from app.definitions.parameter import InputSpec
from app.weights.dtypes import DTYPES
from workers.channel.messages import BackendError, Sight
from workers.engine_host.backends.base import Arrays
from workers.engine_host.comparison import Comparison
from workers.engine_host.deviations import changed
from workers.engine_host.references import Reference
from workers.engine_host.tensors import Array, dtype_name
from workers.engine_host.trials import Trial

SATURATED = 0.9  # the share of an output's values that are its least or its greatest one
MAX_NAMED = 50
NOT_LOOKED_INTO = 'it was not looked into why; "coverage": "full" takes the time for it'
WORTHWHILE = 0.05  # of the parameters have to be seen in addition, as other inputs may take longer in each refit


def measure(
    reference: Reference, inputs: Arrays, comparison: Comparison, seconds: float, only: Sequence[str] | None = None
) -> Sight:
    """Change one parameter after another, in an order of chance, until all are done or the seconds are over.

    `only` names those to look at. Raises BackendError if the reference cannot be run on the inputs.
    """
    started = time.monotonic()
    names = list(reference.weights) if only is None else list(only)
    order = [names[index] for index in np.random.Generator(np.random.PCG64(2)).permutation(len(names))]
    base = reference.run(inputs)
    seen: dict[str, bool] = {}
    for name in order:
        if time.monotonic() - started > seconds:
            break
        change = {name: changed(reference.weights[name])}
        seen[name] = _notices(reference, inputs, base, change, comparison)
    unseen = tuple(sorted(name for name, one in seen.items() if not one))
    alike = _others_of_shape(reference.weights)
    hidden = [
        name
        for name in unseen
        if name in alike
        and time.monotonic() - started <= seconds
        and not _notices(reference, inputs, base, _swapped(reference.weights, name, alike[name]), comparison)
    ]
    return Sight(
        parameters=len(seen) - len(unseen),
        of=len(reference.weights),
        tried=len(seen),
        unseen=unseen,
        unseen_swapped=tuple(hidden),
        in_part=tuple(sorted(name for name in reference.tables if seen.get(name))),
        saturated=tuple(name for name, array in base.items() if unseen and is_saturated(array)),
        seconds=time.monotonic() - started,
    )


def widest(
    reference: Reference,
    specs: Sequence[InputSpec],
    comparison: Comparison,
    known: tuple[Sight, Trial],
    others: Sequence[Trial],
    seconds: float,
) -> tuple[Sight, Trial]:
    """Return the sight of the inputs that see the most, and these: `known`, or one of `others`.

    Each of these is asked for those that are missed first; the one that sees most of them is measured whole. It is
    taken if that is worthwhile.
    """
    deadline = time.monotonic() + seconds
    gains: list[tuple[int, int]] = []
    for index, trial in enumerate(others):
        try:
            inputs = trial.inputs(specs)
            gained = measure(reference, inputs, comparison, deadline - time.monotonic(), missed(known[0])).parameters
        except BackendError:
            continue
        gains.append((gained, -index))
    if not gains or max(gains)[0] == 0:
        return known
    trial = others[-max(gains)[1]]
    sight = measure(reference, trial.inputs(specs), comparison, deadline - time.monotonic())
    better = (sight, trial) if sight.parameters >= known[0].parameters + WORTHWHILE * sight.of else known
    return replace(better[0], seconds=known[0].seconds + seconds - (deadline - time.monotonic())), better[1]


def missed(sight: Sight) -> list[str]:
    """Return the parameters that are not seen although outputs depend on them."""
    return [name for name in sight.unseen if name not in sight.without_effect]


def shortened(sight: Sight) -> Sight:
    """Return the sight with as many names of each kind as are told, and a reason for each that is unseen."""
    unseen = sight.unseen[:MAX_NAMED]
    without_reason = {name: NOT_LOOKED_INTO for name in unseen if name not in sight.reasons}
    return replace(
        sight,
        unseen=unseen,
        unseen_swapped=sight.unseen_swapped[:MAX_NAMED],
        without_effect=sight.without_effect[:MAX_NAMED],
        reasons=dict(list(sight.reasons.items())[:MAX_NAMED]) | without_reason,
        in_part=sight.in_part[:MAX_NAMED],
    )


def is_saturated(array: Array) -> bool:
    """Return whether nearly all values are the least or the greatest one, as behind a steep sigmoid or softmax."""
    if array.size < 2 or DTYPES[dtype_name(array)].kind != "float":
        return False
    wide = array.astype(np.float64)
    least, greatest = wide.min(), wide.max()
    extreme = np.isclose(wide, least, rtol=1e-6) | np.isclose(wide, greatest, rtol=1e-6)
    return bool(extreme.mean() >= SATURATED)


def _notices(reference: Reference, inputs: Arrays, base: Arrays, change: Arrays, comparison: Comparison) -> bool:
    try:
        outputs = reference.run(inputs, change)
        return any(
            comparison.fault(name, comparison.difference(name, array, base[name])) for name, array in outputs.items()
        )
    except BackendError:  # it does not run any more, or gives outputs of other shapes
        return True


def _others_of_shape(weights: Mapping[str, Array]) -> dict[str, str]:
    """Return for each parameter the next one of its shape and dtype, if there is one."""
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, value in weights.items():
        groups.setdefault((dtype_name(value), value.shape), []).append(name)
    return {
        name: group[(index + 1) % len(group)]
        for group in groups.values()
        if len(group) > 1
        for index, name in enumerate(group)
    }


def _swapped(weights: Mapping[str, Array], one: str, other: str) -> dict[str, Array]:
    return {one: weights[other], other: weights[one]}
