"""Turns a request for a sweep into its placement."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from sqlalchemy.orm import Session

from app.artifacts.service import keep, require
from app.artifacts.store import ArtifactStore
from app.database import Database
from app.engines.preflight import Preflights
from app.engines.variants import Builds, Variant, settle_variants
from app.engines.work import CompareWork
from app.errors import FieldError, Invalid, json_pointer
from app.jobs import service as jobs
from app.jobs.state import FINAL
from app.jobs.tables import Job
from app.registry.service import next_number
from app.settings import Settings
from app.sweeps.schemas import MAX_LABEL, MAX_VARIANTS, SweepRequest
from app.sweeps.tables import Sweep, SweepVariant

PROFILES = "profiles"  # what may be varied besides options


@dataclass(frozen=True, slots=True)
class SweepPlacement:
    """Makes the jobs of a sweep: one for each variant, and one that measures once these have ended."""

    builds: Builds
    labels: tuple[str, ...]
    tolerance: float | None
    iterations: int
    warmup: int
    repeats: int
    inputs: str | None

    def place(self, session: Session) -> Job:
        """Queue the jobs, and return the one that measures."""
        builds = self.builds
        if self.inputs is not None:
            require(session, self.inputs, "/inputs")
        builds.require_blobs(session)
        sweep = self._sweep(session)
        made = [placement.place(session) for placement in builds.placements]
        for position, (label, placement, job) in enumerate(zip(self.labels, builds.placements, made, strict=True)):
            order = placement.order
            settled = {"options": dict(order.options), "profiles": list(order.profiles)}
            session.add(SweepVariant(sweep_id=sweep.id, position=position, label=label, job_id=job.id, **settled))
        work = self._work(sweep.id)
        job = jobs.create(
            session,
            kind=work.kind,
            model_id=builds.model_id,
            queue=builds.queue,
            request=work.to_json(),
            likeness=work.likeness(model_id=builds.model_id, queue=builds.queue, recipe=builds.recipe),
            after=[one.id for one in made if one.state not in FINAL],
        )
        if self.inputs is not None:
            keep(session, self.inputs, f"job:{job.id}")
        sweep.job_id = job.id
        session.flush()
        return job

    def _sweep(self, session: Session) -> Sweep:
        builds = self.builds
        sweep = Sweep(
            model_id=builds.model_id,
            number=next_number(session, builds.model_id, "sweep"),
            definition=builds.definition,
            weights=builds.weights,
            backend=builds.backend,
            tolerance=self.tolerance,
            measurement=self._work(0).model_dump(mode="json", exclude={"sweep_id"}),
        )
        session.add(sweep)
        session.flush()
        return sweep

    def _work(self, sweep_id: int) -> CompareWork:
        return CompareWork(
            sweep_id=sweep_id,
            iterations=self.iterations,
            warmup=self.warmup,
            repeats=self.repeats,
            shapes=dict(self.builds.shapes) if self.inputs is None else {},
            inputs=self.inputs,
        )


def request_sweep(
    database: Database, store: ArtifactStore, settings: Settings, model: str, body: SweepRequest
) -> SweepPlacement:
    """Check a request for a sweep, and return the placement that queues its jobs."""
    variants = list(_variants(body))
    builds = settle_variants(database, store, settings, model, body, variants, body.shapes)
    return SweepPlacement(
        builds,
        labels=tuple(variant.label for variant in variants),
        tolerance=body.tolerance,
        iterations=body.iterations,
        warmup=body.warmup,
        repeats=body.repeats,
        inputs=body.inputs,
    )


async def vet_sweep(preflights: Preflights, placement: SweepPlacement) -> SweepPlacement:
    """Return a sweep for the workers that take the definition with the profiles and options of every variant.

    Raises Invalid "preflight_refused" if there is none (`Preflights.vet_order`).
    """
    builds = placement.builds
    target = builds.placements[0].order.target
    for label, build in zip(placement.labels, builds.placements, strict=True):
        try:
            target = (await preflights.vet_order(replace(build.order, target=target))).target
        except Invalid as refused:
            refused.detail = f"Variant '{label}': {refused.detail}"
            raise
    vetted = tuple(replace(build, order=replace(build.order, target=target)) for build in builds.placements)
    return replace(placement, builds=replace(builds, placements=vetted))


def _variants(body: SweepRequest) -> Iterator[Variant]:
    if body.vary is not None:
        yield from _combinations(body, body.vary)
        return
    taken = {one.label for one in body.variants or () if one.label is not None}
    for index, one in enumerate(body.variants or ()):
        profiles = body.profiles if one.profiles is None else one.profiles
        label = one.label or _label(one.options | ({} if one.profiles is None else {PROFILES: index}), index, taken)
        places = {name: json_pointer("variants", index, "options", name) for name in one.options}
        if one.profiles is not None:
            places[PROFILES] = json_pointer("variants", index, PROFILES)
        yield Variant(label, body.options | one.options, profiles, json_pointer("variants", index), places)


def _combinations(body: SweepRequest, vary: Mapping[str, list[Any]]) -> Iterator[Variant]:
    count = prod(len(values) for values in vary.values())
    if count > MAX_VARIANTS:
        raise Invalid(
            f"These values make {count} combinations, and a sweep has at most {MAX_VARIANTS} variants. Vary less, or "
            "list the combinations that matter in `variants`.",
            code="too_many_variants",
            errors=[FieldError("/vary", f"{count} combinations, at most {MAX_VARIANTS}")],
        )
    taken: set[str] = set()
    for index, places in enumerate(product(*(range(len(values)) for values in vary.values()))):
        place_of = dict(zip(vary, places, strict=True))
        chosen = {name: vary[name][place] for name, place in place_of.items()}
        label = _label(chosen | ({PROFILES: place_of[PROFILES]} if PROFILES in chosen else {}), index, taken)
        pointers = {name: json_pointer("vary", name, place) for name, place in place_of.items()}
        profiles = chosen.pop(PROFILES, body.profiles)
        if not isinstance(profiles, list):
            raise Invalid(
                "Each value of `profiles` is a list of profiles.",
                code="invalid_profiles",
                errors=[FieldError(pointers[PROFILES], "not a list")],
            )
        yield Variant(label, body.options | chosen, profiles, "/vary", pointers)


def _label(values: Mapping[str, Any], position: int, taken: set[str]) -> str:
    """Return what sets a variant apart, in a line that no other has, and add it to `taken`; profiles are numbered.

    Lines may be alike because they are cut off.
    """
    line = ", ".join(f"{name}={_word(value)}" for name, value in values.items())[:MAX_LABEL] or "as given"
    label = f"{line[: MAX_LABEL - 5]} (#{position})" if line in taken else line
    taken.add(label)
    return label


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
