"""The checks of a request that need no device, and the choices that they settle.

Nothing here needs a session: binding alone may take seconds, and no transaction may stay open that long.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from json import dumps
from typing import Any

from app.artifacts.store import ArtifactStore
from app.bindings.report import BindingReport, BindingWarning
from app.bindings.service import Pair, UnsavedReport
from app.definitions.parameter import InputSpec
from app.definitions.profiles import example_profile, parse_profiles, to_json
from app.definitions.service import inputs_of
from app.engines import fingerprint as digests
from app.engines.queries import Values
from app.engines.refit_reach import beyond, parameter_contents
from app.engines.schemas import VerifyChoice
from app.engines.tables import Engine, VerificationDefault
from app.engines.targets import Target, settle_target
from app.engines.verifications import settle_verification
from app.engines.work import Verification
from app.errors import FieldError, Invalid
from app.fleet.refit_patterns import RefitPatterns
from app.registry.tables import Model
from app.weights.manifest import Manifest

MAX_FAULTS = 1000  # the most entries in `errors` of one answer
MAX_WARNINGS = 20  # of a binding that are told as events of the job
MAX_NAMED = 5  # the most names in the sentence of an error


@dataclass(frozen=True, slots=True)
class Order:
    """An engine that can be made, as far as can be told without a device.

    Its definition, weights and target exist, and the weights bind. `target` says where the engine is made. `binding`
    holds the columns in which the report of the binding is stored, and `warnings` are those of the report that the job
    tells of. Two orders have equal fingerprints if definition, weights, binding, backend, profiles and options are
    equal. They have equal recipes if definition, backend, profiles and options are equal.
    """

    model_id: int
    definition_id: int
    definition_digest: str
    weights_id: int
    target: Target
    profiles: Sequence[Any]
    options: Mapping[str, Any]
    rules: Sequence[Any]
    binding: UnsavedReport
    warnings: tuple[BindingWarning, ...]
    fingerprint: str
    recipe: str


def settle(
    model: Model,
    pair: Pair,
    target: Target,
    store: ArtifactStore,
    *,
    profiles: Sequence[Any],
    options: Mapping[str, Any],
    rules: Sequence[Any],
    allow_non_finite: bool,
    checked: BindingReport | None = None,
) -> tuple[Order, BindingReport]:
    """Check all that a build needs; return its order and how the weights bind; raises Invalid with every fault.

    Some values of the weights are read from `store`, for warnings. `checked` is what this returned of the same pair and
    rules before, since to bind may take seconds.
    The order's target is `target`, narrowed to the workers that take the options. The order's options are those that
    differ from the default.
    """
    narrowed, settled = settle_target(target, options)
    inputs = inputs_of(pair.definition)
    canonical = to_json(parse_profiles(profiles, inputs))
    if narrowed.needs_profiles and not canonical:
        _check_static(narrowed.backend, inputs)
    _check_patterns(model, pair, settled)
    report = checked or _report(model, pair, rules, store, allow_non_finite=allow_non_finite)
    order = _order(model, pair, narrowed, profiles=canonical, options=settled, rules=rules, report=report)
    return order, report


def settle_verify(asked: VerifyChoice | None, target: Target, default: VerificationDefault | None) -> Verification:
    """Return how a new engine is verified: as asked, or against the reference if nothing was asked.

    If the device that makes the engine cannot run it, the engine is not verified. Raises Invalid "cannot_verify" if
    a verification was asked for all the same.
    """
    if target.runs:
        return settle_verification(asked or VerifyChoice(), default)
    if asked is not None and asked.against != "none":
        raise _cannot_verify(target, asked)
    return Verification(against="none")


def settle_refit(
    model: Model,
    pair: Pair,
    target: Target,
    parent: Engine,
    store: ArtifactStore,
    *,
    rules: Sequence[Any] | None,
    allow_non_finite: bool,
    held: Values | None,
) -> Order:
    """Check all that a refit needs, and return its order; raises Invalid if the refit cannot be done.

    The columns profiles, options and rules of `parent` must have been read. Its profiles and options were accepted
    before, so they are not checked again. The weights are bound by `rules`, or by the parent's rules if that is None.
    `held` are the values of the parent's parameters. It is given if some parameter of the parent may not be changeable
    by a refit. Some values of the weights are read from `store`, for warnings.
    """
    if not parent.refittable:
        raise Invalid(
            f"Engine {parent.number} cannot be refitted. Build one that can with POST …/builds, or let the "
            "service choose the way with POST …/engines.",
            code="engine_not_refittable",
            errors=[FieldError("/engine", "not refittable")],
        )
    by = parent.rules if rules is None else rules
    report = _report(model, pair, by, store, allow_non_finite=allow_non_finite)
    order = _order(model, pair, target, profiles=parent.profiles, options=parent.options, rules=by, report=report)
    if held is not None and (names := parameters_out_of_reach(order, report, pair, held)):
        raise _out_of_reach_error(model, pair, parent, names)
    return order


def parameters_out_of_reach(order: Order, report: BindingReport, pair: Pair, held: Values) -> list[str]:
    """Return, sorted, the parameters in which an order differs from `held` and that no refit can change.

    `report` says how the order's weights bind. `held` are the values of the engine that would be refitted.
    """
    before = _contents(BindingReport.from_json(held.binding), held.rows)
    after = _contents(report, pair.tensors)
    return beyond(before, after, RefitPatterns.of(order.options), held.facts.fixed_parameters)


def _contents(report: BindingReport, rows: Sequence[Any]) -> dict[str, Hashable]:
    return parameter_contents(report, Manifest.from_json(rows).tensors)


def _report(
    model: Model, pair: Pair, rules: Sequence[Any], store: ArtifactStore, *, allow_non_finite: bool
) -> BindingReport:
    """Bind; raises Invalid if the weights do not bind, or hold NaN or infinities that are neither meant nor allowed."""
    report = pair.check(rules, store.read)
    if not report.ok:
        raise _binding_failed(model, pair, report)
    names = [name for name, meant in pair.non_finite(report).items() if not meant]
    if names and not allow_non_finite:
        raise _non_finite(pair, names)
    return report


def _order(
    model: Model,
    pair: Pair,
    target: Target,
    *,
    profiles: Sequence[Any],
    options: Mapping[str, Any],
    rules: Sequence[Any],
    report: BindingReport,
) -> Order:
    digest = pair.definition.digest
    return Order(
        model_id=model.id,
        definition_id=pair.definition.id,
        definition_digest=digest,
        weights_id=pair.weights.id,
        target=target,
        profiles=profiles,
        options=options,
        rules=rules,
        binding=UnsavedReport.of(report),
        warnings=report.warnings[:MAX_WARNINGS],
        fingerprint=digests.fingerprint(
            definition_digest=digest,
            weights_digest=pair.weights.digest,
            binding_digest=report.digest,
            backend=target.backend,
            profiles=profiles,
            options=options,
        ),
        recipe=digests.recipe(definition_digest=digest, backend=target.backend, profiles=profiles, options=options),
    )


def _check_static(backend: str, inputs: Sequence[InputSpec]) -> None:
    """Raise Invalid "profiles_required" if an input is dynamic."""
    example = example_profile(inputs)
    if not example:
        return
    raise Invalid(
        f"The inputs {', '.join(example)} have dynamic dimensions, and {backend} compiles for ranges of shapes. "
        f'Give at least one profile with the sizes you need, such as "profiles": {dumps([example])}.',
        code="profiles_required",
        errors=[
            FieldError("/profiles", f"{spec.name} {list(spec.shape)} is dynamic") for spec in inputs if spec.dynamic
        ],
    )


def _check_patterns(model: Model, pair: Pair, options: Mapping[str, Any]) -> None:
    """Raise Invalid "invalid_options" if a pattern of the option "refit" matches no parameter of the definition."""
    patterns = RefitPatterns.of(options)
    idle = frozenset(patterns.idle([parameter.name for parameter in pair.parameters]) if patterns else ())
    if not idle:
        return
    faults = [
        FieldError(f"/options/refit/{index}", f"{text!r:.120} fits no parameter")
        for index, text in enumerate(options["refit"])
        if text in idle
    ]
    version = pair.definition.version
    raise Invalid(
        f"The option 'refit' lists what no parameter of definition {version} is called: "
        + "; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults[:MAX_NAMED])
        + f". GET /v1/models/{model.name}/definitions/{version}/parameters shows their names. Give whole names, or "
        "regular expressions that match whole names, such as 'encoder.*'.",
        code="invalid_options",
        errors=faults,
    )


def _cannot_verify(target: Target, asked: VerifyChoice) -> Invalid:
    devices = ", ".join(dict.fromkeys(member.device for member in target.members))
    return Invalid(
        f"The workers that would make this engine ({devices}) compile '{target.backend}' for other devices and "
        f'cannot run it, which a verification against "{asked.against}" needs. Ask with "verify": {{"against": '
        '"none"}, or leave verify out, and verify the engine where it runs.',
        code="cannot_verify",
        errors=[FieldError("/verify/against", f"{asked.against} needs a worker that runs the engine; give none")],
    )


def _binding_failed(model: Model, pair: Pair, report: BindingReport) -> Invalid:
    count = len(report.problems)
    shown = f"; the first {MAX_FAULTS} are listed" if count > MAX_FAULTS else ""
    return Invalid(
        f"Weights {pair.weights.version} do not bind to definition {pair.definition.version}: {count} "
        f"problem{'' if count == 1 else 's'}{shown}. POST /v1/models/{model.name}/bindings/check answers the whole "
        "report and lets you try rules until it is ok.",
        code="binding_failed",
        errors=[FieldError("/weights", problem.detail) for problem in report.problems[:MAX_FAULTS]],
    )


def _non_finite(pair: Pair, names: Sequence[str]) -> Invalid:
    count = len(names)
    named = ", ".join(names[:MAX_NAMED]) + (f" and {count - MAX_NAMED} more" if count > MAX_NAMED else "")
    return Invalid(
        f"Weights {pair.weights.version} would feed NaN or infinities to parameters: {named}. Upload a checkpoint that "
        'was saved before the training diverged. If they are meant, as in a mask, ask with "allow_non_finite": true.',
        code="non_finite_weights",
        errors=[FieldError("/weights", f"{name} is not finite") for name in names[:MAX_FAULTS]],
    )


def _out_of_reach_error(model: Model, pair: Pair, parent: Engine, names: Sequence[str]) -> Invalid:
    count = len(names)
    named = ", ".join(names[:MAX_NAMED]) + (f" and {count - MAX_NAMED} more" if count > MAX_NAMED else "")
    return Invalid(
        f"Weights {pair.weights.version} change {named}, which a refit of engine {parent.number} cannot: its option "
        f"'refit' does not name {'it' if count == 1 else 'them'}, or it was not kept when the engine was compiled "
        "(see its facts). Let the service choose the way with POST "
        f"/v1/models/{model.name}/engines, or build an engine.",
        code="parameters_not_refittable",
        errors=[FieldError("/weights", f"changes {name}") for name in names[:MAX_FAULTS]],
    )
