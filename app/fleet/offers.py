"""What the workers alive now can compile, and the checks of a request's options against it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from app.errors import FieldError, Invalid, json_pointer
from app.fleet.backend_offer import BackendOffer, read_offers
from app.fleet.option_schemas import OptionConflict, OptionFault, Schema, fault_of, is_default, reasons_against
from app.fleet.refit_patterns import RefitPatternError, RefitPatterns
from app.fleet.service import alive
from app.settings import Settings

BUILD_ONLY = "build-only"  # stands for the platform of a worker that compiles for others and loads nothing


@dataclass(frozen=True, slots=True)
class Offer:
    """One backend as several workers offer it together; it has no `versions` if none of them offers it.

    `makes` are the platforms that engines can be compiled for, each worker's default first. `loads` are the platforms
    whose engines can be run and refitted. `options` maps each build option to the schemas that workers declare for
    it; a value is good if one of these accepts it. `lacks` gives the reason for each option ("name") and value
    ("name=value") that a worker does not support. `conflicts` are the conflicts that every worker declares.
    `unavailable` are the reasons of the workers that have the backend installed but cannot use it.
    """

    versions: frozenset[str] = frozenset()
    makes: tuple[str, ...] = ()
    loads: tuple[str, ...] = ()
    options: Mapping[str, Sequence[Schema]] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)
    conflicts: Sequence[OptionConflict] = ()
    unavailable: tuple[str, ...] = ()

    @property
    def platforms(self) -> frozenset[str]:
        """Every platform that some worker compiles for or loads engines of."""
        return frozenset({*self.makes, *self.loads})


@dataclass(frozen=True, slots=True)
class Member:
    """One backend of one worker alive; `said` is what the worker says of it."""

    device: str
    backend: str
    said: BackendOffer

    @property
    def platform(self) -> str:
        """The platform whose queue the worker listens to, and that it compiles for if nothing else is asked."""
        return self.said.makes[0] if self.said.runs else BUILD_ONLY

    @property
    def offer(self) -> Offer:
        """What this worker offers by itself."""
        return Fleet((self,)).offer(self.backend)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The backends of all workers alive, in the order in which the workers started."""

    members: tuple[Member, ...] = ()

    @property
    def backends(self) -> frozenset[str]:
        """The names of the backends that at least one worker can use."""
        return frozenset(member.backend for member in self.members if member.said.available)

    def offer(self, backend: str) -> Offer:
        """Put together what the workers say of one backend."""
        every = [member.said for member in self.members if member.backend == backend]
        usable = [said for said in every if said.available]
        capabilities = [said.capabilities for said in usable]
        return Offer(
            versions=frozenset(said.version for said in usable),
            makes=_each(platform for said in usable for platform in said.makes),
            loads=_each(platform for said in usable for platform in said.loads),
            options=_declared(can.options for can in capabilities),
            lacks={name: reason for can in capabilities for name, reason in can.lacks.items()},
            conflicts=_shared([can.conflicts for can in capabilities]),
            unavailable=_each(said.unavailable for said in every if said.unavailable is not None),
        )

    def offering(self, backend: str) -> tuple[Member, ...]:
        """Return the members that can use a backend."""
        return tuple(member for member in self.members if member.backend == backend and member.said.available)

    def on(self, device: str) -> "Fleet":
        """Return the members with this device."""
        return Fleet(tuple(member for member in self.members if member.device == device))

    def devices(self, backend: str) -> tuple[str, ...]:
        """Return the names of the devices that offer a backend."""
        return _each(member.device for member in self.offering(backend))


def fleet_offers(session: Session, settings: Settings) -> Fleet:
    """Return what is offered at this moment."""
    return Fleet(
        tuple(
            Member(worker.device["name"], backend, offer)
            for worker in alive(session, settings)
            for backend, offer in read_offers(worker.backends).items()
        )
    )


def settle_options(backend: str, offer: Offer, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check options against the declared schemas, and return those that differ from their default.

    If no worker offers the backend, only the patterns of "refit" are checked here. The worker that takes the job
    checks the rest. Raises Invalid "invalid_options".
    """
    faults = option_faults(offer, options)
    if faults:
        raise Invalid(
            f"The backend '{backend}' does not take these options: "
            + "; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults[:5])
            + ". GET /v1/workers shows the options of each backend.",
            code="invalid_options",
            errors=faults,
        )
    return {
        name: value
        for name, value in options.items()
        if value is not None and not is_default(value, offer.options.get(name, ()))
    }


def option_faults(offer: Offer, options: Mapping[str, Any]) -> list[FieldError]:
    """Return the first fault of each option, then the reasons of the conflicts that the options fall under."""
    found = {name: _fault(name, value, offer) for name, value in options.items()}
    faults = [
        FieldError(json_pointer("options", name, *fault.path), fault.detail) for name, fault in found.items() if fault
    ]
    excluded = reasons_against(options, offer.options, offer.conflicts)
    return faults + [FieldError("/options", reason) for reason in excluded]


def _fault(name: str, value: object, offer: Offer) -> OptionFault | None:
    left_out = value is None and name in offer.options
    fault = fault_of(name, value, offer.options, offer.lacks) if offer.versions and not left_out else None
    return fault or (_pattern_fault(value) if name == "refit" and isinstance(value, list) else None)


def _pattern_fault(patterns: Sequence[object]) -> OptionFault | None:
    try:
        RefitPatterns.parse(patterns)
    except RefitPatternError as error:
        return OptionFault((error.index,), error.detail)
    return None


def _declared(declarations: Iterator[Mapping[str, Schema]]) -> dict[str, tuple[Schema, ...]]:
    schemas: dict[str, tuple[Schema, ...]] = {}
    for options in declarations:
        for name, schema in options.items():
            earlier = schemas.get(name, ())
            schemas[name] = earlier if schema in earlier else (*earlier, schema)
    return schemas


def _shared(lists: Sequence[Sequence[OptionConflict]]) -> tuple[OptionConflict, ...]:
    """Return the conflicts that every list has."""
    first, *others = lists or [()]
    return tuple(one for one in first if all(one in other for other in others))


def _each(values: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
