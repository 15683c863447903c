"""Whether an engine computes what its definition says: both are run on the same inputs and compared."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from app.definitions.parameter import InputSpec
from workers.channel.messages import (
    DEVICE_FAILED,
    DEVICE_OUT_OF_MEMORY,
    BackendError,
    Build,
    Check,
    EngineFile,
    Report,
    Sight,
    Verified,
    Verify,
)
from workers.engine_host.backends.base import Arrays, Backend, LoadedEngine, ShowsInnerValues
from workers.engine_host.backends.stopwatch import Stopwatch, under_deadline
from workers.engine_host.comparison import Comparison, finiteness_fault, says_something, tolerance_of
from workers.engine_host.coverage import shortened
from workers.engine_host.impossible import Impossible, given_do_not_fit, no_guess_fits, no_reference
from workers.engine_host.measuring import measured
from workers.engine_host.references import Reference, References
from workers.engine_host.run_inputs import check_inputs, digest_of
from workers.engine_host.tensors import Array, read_tensors
from workers.engine_host.trials import Trial, trials

TRYING_S = 30.0  # what no shape is found for in this time may fail for another reason


@dataclass(frozen=True, slots=True)
class Fed:
    """The inputs of a verification. `trial` says how they were made up, None if they were given.

    `expected` are the outputs to expect, as far as they are known without another engine. `outputs` are those of the
    engine itself if it was run already. `inner` names values inside the graph that `expected` has as well.
    """

    inputs: Arrays
    trial: Trial | None
    expected: Mapping[str, Array] | None = None
    sees: Sight | None = None
    outputs: Mapping[str, Array] | None = None
    inner: tuple[str, ...] = ()


def verify(
    request: Verify, engine: LoadedEngine, backend: Backend, references: References, scratch: Path, report: Report
) -> Verified:
    """Run and compare as `request.check` says; see `Check`.

    "reference": the definition as it stands, with the same weights. "rebuild": an engine built afresh, whose plan lies
    in `scratch` meanwhile. "finite": no comparison, outputs must hold no NaN and no infinity. "none": nothing is run.

    Raises BackendError "verification_impossible" if the definition cannot be computed on the inputs, unless the engine
    is to be published all the same.
    """
    check = request.check
    comparison = _comparison(request, references)
    tolerance = asdict(comparison.tolerance)
    watch = Stopwatch(report)
    if check.against == "none":
        return Verified(ok=True, against="none", outputs={}, tolerance=tolerance, inputs="", detail="", stages={})
    try:
        with under_deadline(report, "verification"):
            fed = _fed(request, engine, backend, references, comparison, watch)
    except Impossible as error:
        if check.if_impossible == "fail":
            raise error.error from error
        return Verified(None, _against(check), {}, tolerance, "", error.error.detail, watch.stages)
    with watch.phase("verify"):
        with under_deadline(report, "verification"):
            outputs = _run(engine, fed) if fed.outputs is None else fed.outputs
        expected = fed.expected
        if check.against == "rebuild" and expected is None:
            rebuilt = _rebuilt(request.engine, backend, scratch, report)
            with under_deadline(report, "verification"):
                expected = rebuilt.run(fed.inputs)
    return _compared(check, fed, outputs, expected, comparison, watch)


def _comparison(request: Verify, references: References) -> Comparison:
    """Return how outputs are compared.

    By their logarithms only what the definition computes is, and not if a client says which difference is none.
    """
    engine, check = request.engine, request.check
    traits = references.traits(engine.definition)
    is_quantised = check.against == "reference" and traits.quantises
    tolerance = tolerance_of(engine.parameters, engine.options, is_quantised=is_quantised).given(check.tolerance)
    is_lenient = "max_abs" in check.tolerance or check.expected is not None
    return Comparison(tolerance, frozenset() if is_lenient else traits.probabilities)


def _run(engine: LoadedEngine, fed: Fed) -> Mapping[str, Array]:
    if fed.inner and isinstance(engine, ShowsInnerValues):
        return engine.run_showing(fed.inputs, fed.inner)
    return engine.run(fed.inputs)


def _compared(
    check: Check,
    fed: Fed,
    outputs: Mapping[str, Array],
    expected: Mapping[str, Array] | None,
    comparison: Comparison,
    watch: Stopwatch,
) -> Verified:
    with watch.phase("verify"):
        known = expected or {}
        differences = {name: comparison.difference(name, one, known.get(name)) for name, one in outputs.items()}
        if expected is None:
            faults = [finiteness_fault(name, one) for name, one in differences.items()]
        else:
            faults = [comparison.fault(name, one) for name, one in differences.items()]
            told = _without(outputs, fed.inner)
            faults += [*_emptiness(told), *_missing(told, _without(expected, fed.inner))]
    detail = "; ".join(filter(None, faults))
    return Verified(
        ok=not detail,
        against=_against(check),
        outputs={name: one for name, one in differences.items() if name not in fed.inner},
        tolerance=asdict(comparison.tolerance),
        inputs=digest_of(fed.inputs),
        detail=detail,
        stages=watch.stages,
        made_up=None if fed.trial is None else fed.trial.to_json(),
        sees=fed.sees,
        inner={name: one for name, one in differences.items() if name in fed.inner},
    )


def _emptiness(outputs: Mapping[str, Array]) -> list[str]:
    """Say that there is nothing to compare. Outputs without any element are right if they have the right shape."""
    if says_something(outputs) or not any(array.size for array in outputs.values()):
        return []
    return ["the outputs hold nothing but NaN and infinity, so the comparison says nothing"]


def _missing(outputs: Mapping[str, Array], expected: Mapping[str, Array]) -> list[str]:
    if not expected.keys() & outputs.keys():
        return [f"no output is expected: give at least one of {', '.join(sorted(outputs))}"]
    return [f"the engine has no output {name}, which is expected" for name in sorted(expected.keys() - outputs.keys())]


def _against(check: Check) -> Any:  # noqa: ANN401 - a literal of `Verified`
    return "expected" if check.expected is not None else check.against


def _fed(
    request: Verify,
    engine: LoadedEngine,
    backend: Backend,
    references: References,
    comparison: Comparison,
    watch: Stopwatch,
) -> Fed:
    """Return inputs that the definition can be run on, with what to expect of them. Raises Impossible."""
    check = request.check
    if check.against in {"rebuild", "finite"}:
        with watch.phase("verify"):
            given = None if check.inputs is None else Fed(_given(request, backend, check.inputs), None)
            return given or _runnable(request, engine, references)
    with watch.phase("verify"):
        reference = _opened(request, references)
        if reference is not None and not check.coverage_s:
            reference = _showing(reference, engine, () if check.expected is not None else check.inner)
        fed = _found(request, backend, reference)
    if not check.coverage_s or reference is None:
        return fed
    with watch.phase("coverage"):
        return _covered(request, engine, reference, fed, comparison)


def _showing(reference: Reference, engine: LoadedEngine, inner: tuple[str, ...]) -> Reference:
    """Have these inner values computed as well, if the engine shows any."""
    return reference.showing(inner) if inner and isinstance(engine, ShowsInnerValues) else reference


def _opened(request: Verify, references: References) -> Reference | None:
    """Open the reference. If outputs are given it is only good for coverage, and is done without if it fails."""
    try:
        return references.open(request.engine)
    except BackendError as error:
        if request.check.expected is not None:
            return None
        if error.code not in {"reference_failed", "not_implemented", "invalid_graph"}:
            raise
        raise Impossible(no_reference(error)) from error


def _found(request: Verify, backend: Backend, reference: Reference | None) -> Fed:
    check = request.check
    if check.inputs is not None:
        inputs = _given(request, backend, check.inputs)
        if check.expected is not None:
            return Fed(inputs, None, read_tensors(check.expected))
        if reference is not None:
            try:
                return Fed(inputs, None, reference.run(inputs), inner=reference.inner)
            except BackendError as error:
                raise Impossible(given_do_not_fit(error)) from error
    if reference is None:
        raise BackendError("bad_inputs", "Outputs are expected of inputs that were not given. Give `inputs` as well.")
    return _made_up(request, reference)


def _given(request: Verify, backend: Backend, path: str | None) -> Arrays:
    inputs = read_tensors(path or "")
    try:
        negative = backend.offered.negative_indices
        check_inputs(inputs, request.engine.inputs, request.engine.profiles, negative_indices=negative)
    except BackendError as error:
        raise BackendError("bad_inputs", f"The inputs to verify with do not fit: {error.detail}") from error
    return inputs


def _made_up(request: Verify, reference: Reference) -> Fed:
    """Make inputs up that the definition can be run on; what was found is remembered for other weights."""
    engine, check = request.engine, request.check
    key = "trial", repr(engine.profiles)
    known = Trial.from_json(check.made_up) if check.made_up else reference.found.get(key)
    tried: list[Trial] = []
    first: BackendError | None = None
    deadline = time.monotonic() + TRYING_S
    for trial in chain([known] if known else [], trials(engine.inputs, engine.profiles)):
        if time.monotonic() > deadline:
            break
        tried.append(trial)
        inputs = trial.inputs(engine.inputs)
        try:
            outputs = reference.run(inputs)
        except BackendError as error:
            first = first or error
            continue
        fed = _that_says_something(engine.inputs, reference, Fed(inputs, trial, outputs, inner=reference.inner))
        reference.found[key] = fed.trial
        return fed
    raise Impossible(no_guess_fits(engine.inputs, tried, first))


def _that_says_something(specs: tuple[InputSpec, ...], reference: Reference, fed: Fed) -> Fed:
    """Return inputs of the same shapes without negative values if nothing finite comes of what there is."""
    if fed.trial is None or fed.expected is None or says_something(_without(fed.expected, fed.inner)):
        return fed
    positive = Trial(fed.trial.shapes, "positive", fed.trial.seed)
    inputs = positive.inputs(specs)
    try:
        outputs = reference.run(inputs)
    except BackendError:
        return fed
    is_better = says_something(_without(outputs, fed.inner))
    return replace(fed, inputs=inputs, trial=positive, expected=outputs) if is_better else fed


def _without(values: Mapping[str, Array], inner: tuple[str, ...]) -> dict[str, Array]:
    return {name: array for name, array in values.items() if name not in inner}


def _runnable(request: Verify, engine: LoadedEngine, references: References) -> Fed:
    """Return made-up inputs that the engine takes. If it takes the first ones the reference is not asked."""
    specs, profiles = request.engine.inputs, request.engine.profiles
    trial = next(trials(specs, profiles))
    inputs = trial.inputs(specs)
    try:
        outputs = engine.run(inputs)
    except BackendError as error:
        if error.code in {DEVICE_FAILED, DEVICE_OUT_OF_MEMORY}:
            raise
        reference = _opened(request, references)
        fed = _made_up(request, reference) if reference is not None else Fed(inputs, trial)
        if fed.trial == trial:
            raise error from None  # the definition takes them: it is the engine's own fault
        return Fed(fed.inputs, fed.trial)
    return Fed(inputs, trial, outputs=outputs)


def _covered(request: Verify, engine: LoadedEngine, reference: Reference, fed: Fed, comparison: Comparison) -> Fed:
    """Measure what the comparison would notice, and take other made-up inputs if it notices more of them."""
    key = "sight", digest_of(fed.inputs), comparison, request.check.coverage_s, request.engine.root_plan
    if key not in reference.found:
        sight, trial = measured(request, engine, reference, (fed.inputs, fed.trial), comparison)
        reference.found[key] = shortened(sight), trial
    sight, trial = reference.found[key]
    showing = _showing(reference, engine, sight.inner)
    if trial != fed.trial:
        reference.found["trial", repr(request.engine.profiles)] = trial
        inputs = trial.inputs(request.engine.inputs)
        return Fed(inputs, trial, showing.run(inputs), sight, inner=showing.inner)
    if not showing.inner:
        return replace(fed, sees=sight)
    return replace(fed, expected=showing.run(fed.inputs), sees=sight, inner=showing.inner)


def _rebuilt(engine: EngineFile, backend: Backend, scratch: Path, report: Report) -> LoadedEngine:
    with tempfile.TemporaryDirectory(prefix="rebuild-", dir=scratch) as folder:
        plan = str(Path(folder) / "plan")
        request = Build(
            engine.backend, engine.definition, engine.parameters, engine.inputs, plan, engine.profiles, engine.options
        )
        rebuilt = backend.build(request, report)[1]
    if rebuilt is None:
        raise BackendError("cannot_rebuild", f"{engine.backend} compiles here but runs nothing: verify on its device.")
    return rebuilt
