"""What the workers alive now can compile, and what of a request can be checked against it."""

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

BUILD_ONLY = "build-only"  # stands for the platform of workers that compile for others and load nothing


@dataclass(frozen=True, slots=True)
class Offer:
    """One backend as several workers have it together; without versions where none of them offers it.

    `makes` are the platforms that engines can be compiled for, a worker's default first; `loads` those whose engines
    can be run and refitted. `options` maps each build option to the schemas declared for it, of which any may
    accept a value; `conflicts` are those of all of them. `unavailable` are the reasons of workers that have it
    installed but cannot use it.
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
        """Every platform whose engines are of use to somebody."""
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
    """The backends of all workers alive, in the order these started."""

    members: tuple[Member, ...] = ()

    @property
    def backends(self) -> frozenset[str]:
        """The backends that somebody offers."""
        return frozenset(member.backend for member in self.members if member.said.available)

    def offer(self, backend: str) -> Offer:
        """Put together what the workers say of one backend."""
        every = [member.said for member in self.members if member.backend == backend]
        usable = [one for one in every if one.available]
        capabilities = [one.capabilities for one in usable]
        return Offer(
            versions=frozenset(one.version for one in usable),
            makes=_each(platform for one in usable for platform in one.makes),
            loads=_each(platform for one in usable for platform in one.loads),
            options=_declared(one.options for one in capabilities),
            lacks={name: reason for one in capabilities for name, reason in one.lacks.items()},
            conflicts=_shared([one.conflicts for one in capabilities]),
            unavailable=_each(one.unavailable for one in every if one.unavailable is not None),
        )

    def offering(self, backend: str) -> tuple[Member, ...]:
        """Return those that can use a backend."""
        return tuple(member for member in self.members if member.backend == backend and member.said.available)

    def on(self, device: str) -> "Fleet":
        """Return the part of the fleet with this device."""
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
    """Check options against what is declared, and leave out those that have their default; Invalid.

    Where no worker offers the backend only patterns can be checked here: the worker that takes the job does the rest.
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
    """Return what is wrong with the options, the first fault of each, and which of them exclude each other."""
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
    """Return what stands in each list."""
    first, *others = lists or [()]
    return tuple(one for one in first if all(one in other for other in others))


def _each(values: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
