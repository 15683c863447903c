"""Several builds of one definition and weight version at once, which differ in options and profiles.

All of them are made and can be run on one platform, so that one worker can compare the engines.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from app.artifacts.store import ArtifactStore
from app.bindings import service as bindings
from app.bindings.service import Pair
from app.database import Database
from app.definitions.profiles import parse_profiles, settle_shapes
from app.definitions.service import inputs_of
from app.engines.benchmarks import check_bytes
from app.engines.checks import Order, settle, settle_verify
from app.engines.crashes import avoid_crashes
from app.engines.enqueue import EnginePlacement
from app.engines.own_weights import weights_of_definition
from app.engines.schemas import BuildRequest
from app.engines.targets import Target, choose_target, settle_target
from app.engines.verifications import find_default, require_blobs
from app.errors import FieldError, Invalid, json_pointer
from app.fleet.offers import fleet_offers
from app.jobs.queue import queue_of
from app.json_digest import json_digest
from app.registry.service import get_model
from app.registry.tables import Model
from app.settings import Settings

T = TypeVar("T")
OF_VARIANT = ("/options", "/profiles", "/shapes")  # faults there concern one variant, all others every one


@dataclass(frozen=True, slots=True)
class Variant:
    """One engine of several.

    `pointer` is where the request says what sets it apart from the others. `places` is where it says so of each option,
    and under "profiles" of the profiles; what is left out there is the same for all.
    """

    label: str
    options: Mapping[str, Any]
    profiles: Sequence[Any]
    pointer: str
    places: Mapping[str, str]

    def place(self, pointer: str) -> str:
        """Return where in the request a fault lies that a build's request has at `pointer`."""
        parts = pointer.split("/")
        if parts[:2] == ["", "options"] and len(parts) > 2:
            names = {json_pointer(name)[1:]: name for name in self.places}
            found = self.places.get(names.get(parts[2], ""))
            return pointer if found is None else "/".join([found, *parts[3:]])
        if parts[:2] == ["", "profiles"] and "profiles" in self.places:
            return "/".join([self.places["profiles"], *parts[2:]])
        return pointer


@dataclass(frozen=True, slots=True)
class Builds:
    """Builds whose checks are done, in the order of their variants, and the queue of the workers that take them.

    `shapes` are those that every engine can be run with. `recipe` digests what is compiled.
    """

    model_id: int
    definition: int
    weights: int
    backend: str
    queue: str
    recipe: str
    shapes: Mapping[str, tuple[int, ...]]
    placements: tuple[EnginePlacement, ...]

    def require_blobs(self, session: Session) -> None:
        """Keep what the engines are verified with, as `verifications.require_blobs` does.

        This locks the blobs. So it comes before the model is locked, in the order of every other request.
        """
        require_blobs(session, self.placements[0].verify, "/verify")


def settle_variants(
    database: Database,
    store: ArtifactStore,
    settings: Settings,
    model: str,
    body: BuildRequest,
    variants: Sequence[Variant],
    shapes: Mapping[str, Sequence[int]],
) -> Builds:
    """Check all that these builds need; the options and profiles of `body` are not looked at.

    Raises Invalid for the first variant with a fault, "equal_variants" if two are the same engine, "no_common_worker"
    if no platform makes and runs all, and Conflict "compiler_crashes".
    """
    weights = body.weights or weights_of_definition(database, model, body.definition)
    with database.reading() as session:
        model_row = get_model(session, model)
        target = choose_target(fleet_offers(session, settings), body.backend, body.device)
        pair = bindings.load(session, model_row.id, body.definition, weights)
        default = find_default(session, pair.definition.id)
    target = _common_target(target, variants)
    orders = _orders(model_row, pair, target, store, body, variants)
    _check_unequal(variants, orders)
    if not body.retry_crashed:
        target = _spared_target(database, target, variants, orders)
        orders = [replace(order, target=target) for order in orders]
    verify = settle_verify(body.verify, target, default)
    return Builds(
        model_id=model_row.id,
        definition=pair.definition.version,
        weights=pair.weights.version,
        backend=target.backend,
        queue=queue_of(target.backend, target.platform),
        recipe=json_digest(sorted(order.recipe for order in orders)),
        shapes=_common_shapes(shapes, inputs_of(pair.definition), variants, orders),
        placements=tuple(
            EnginePlacement(order, verify, reuse=body.reuse, retry_crashed=body.retry_crashed) for order in orders
        ),
    )


def _orders(
    model: Model,
    pair: Pair,
    target: Target,
    store: ArtifactStore,
    body: BuildRequest,
    variants: Sequence[Variant],
) -> list[Order]:
    """Check each variant; the weights are bound once for all of them."""
    orders: list[Order] = []
    report = None
    for variant in variants:
        order, report = _of(
            variant,
            settle,
            model,
            pair,
            target,
            store,
            profiles=variant.profiles,
            options=variant.options,
            rules=body.rules,
            allow_non_finite=body.allow_non_finite,
            checked=report,
        )
        orders.append(order)
    return orders


def _common_target(target: Target, variants: Sequence[Variant]) -> Target:
    """Return the workers of one platform that take the options of every variant and can run the engines."""
    if not target.members:
        return target
    takers = [_of(variant, settle_target, target, variant.options)[0].members for variant in variants]
    common = [one for one in target.members if one.said.runs and all(one in members for members in takers)]
    if not common:
        raise Invalid(
            f"No single platform of the backend '{target.backend}' takes the options of every variant and runs the "
            "engines, so they cannot be compared. Compare those with like options in a sweep each. GET /v1/workers "
            "shows the options of each worker.",
            code="no_common_worker",
            errors=[FieldError("", "no worker alive takes all variants")],
        )
    chosen = target.narrowed(tuple(one for one in common if one.platform == common[0].platform))
    return replace(chosen, platform=common[0].platform)  # also if others come to the fleet later


def _spared_target(database: Database, target: Target, variants: Sequence[Variant], orders: Sequence[Order]) -> Target:
    with database.reading() as session:
        for variant, order in zip(variants, orders, strict=True):
            target, crash = avoid_crashes(
                session,
                target,
                definition_id=order.definition_id,
                profiles=order.profiles,
                options=order.options,
            )
            if crash is not None:
                crash.detail = f"Variant '{variant.label}': {crash.detail}"
                raise crash
    return target


def _check_unequal(variants: Sequence[Variant], orders: Sequence[Order]) -> None:
    seen: dict[str, Variant] = {}
    for variant, order in zip(variants, orders, strict=True):
        other = seen.setdefault(order.fingerprint, variant)
        if other is not variant:
            detail = f"is the same engine as '{other.label}': what is left out has its default"
            raise Invalid(
                f"Variant '{variant.label}' {detail}. Leave one of them out.",
                code="equal_variants",
                errors=[FieldError(variant.pointer, detail)],
            )


def _common_shapes(
    given: Mapping[str, Sequence[int]], inputs: Sequence[Any], variants: Sequence[Variant], orders: Sequence[Order]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every input that all engines are run with: as given, or as the first variant has it best."""
    shapes: Mapping[str, Any] = given
    for variant, order in zip(variants, orders, strict=True):
        settled = _of(variant, settle_shapes, shapes, inputs, parse_profiles(order.profiles, inputs))
        shapes = settled
    check_bytes(settled, inputs)
    return settled


def _of(variant: Variant, check: Callable[..., T], *args: Any, **kwargs: Any) -> T:  # noqa: ANN401 - those of `check`
    """Return what a check returns; if it refuses the variant, the error says which one that is."""
    try:
        return check(*args, **kwargs)
    except Invalid as refused:
        if any(one.pointer.startswith(OF_VARIANT) for one in refused.errors):
            refused.detail = f"Variant '{variant.label}': {refused.detail}"
        refused.errors = tuple(FieldError(variant.place(one.pointer), one.detail) for one in refused.errors)
        raise
