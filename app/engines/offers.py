"""What the workers alive now can compile, and what of a request can be checked against it.

A worker says of each backend {"version", "makes": [...], "loads": [...], "capabilities": {...}}, with the platforms
it compiles for and those whose engines it can load, or {"version", "unavailable": reason} where it is installed
but cannot be used. `capabilities["options"]` maps the name of each build option to a JSON Schema with a
default, and `capabilities["lacks"]` maps options ("name") and values ("name=value") it has not to the reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from app.engines.option_schemas import Fault, Schema, fault_of, is_default
from app.engines.refit_option import RefitPatternError, RefitPatterns
from app.errors import FieldError, Invalid
from app.fleet.service import alive
from app.jobs.queue import BUILD_ONLY
from app.settings import Settings

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt_rtx")
PROFILES_REQUIRED = "required for dynamic inputs"  # what a worker says of "profiles" that cannot do without


@dataclass(frozen=True, slots=True)
class Offer:
    """One backend as several workers have it together; without versions where none of them offers it.

    `makes` are the platforms that engines can be compiled for, a worker's default first; `loads` those whose engines
    can be run and refitted. `options` maps each build option to the schemas declared for it, of which any may
    accept a value. `unavailable` are the reasons of workers that have it installed but cannot use it.
    """

    versions: frozenset[str] = frozenset()
    makes: tuple[str, ...] = ()
    loads: tuple[str, ...] = ()
    options: Mapping[str, Sequence[Schema]] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)
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
    said: Mapping[str, Any]

    @property
    def available(self) -> bool:
        """Whether the worker can use it."""
        return "unavailable" not in self.said

    @property
    def runs(self) -> bool:
        """Whether the worker can run what it compiles; one without a GPU may compile for others only."""
        return any(platform in self.said.get("loads", ()) for platform in self.said.get("makes", ())[:1])

    @property
    def platform(self) -> str:
        """The platform whose queue the worker listens to, and that it compiles for where nothing else is asked."""
        return str(self.said["makes"][0]) if self.runs else BUILD_ONLY

    @property
    def needs_profiles(self) -> bool:
        """Whether it compiles for given ranges of shapes only, where inputs are dynamic."""
        return bool(self.said.get("capabilities", {}).get("profiles") == PROFILES_REQUIRED)

    @property
    def offer(self) -> "Offer":
        """What this worker offers by itself."""
        return Fleet((self,)).offer(self.backend)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The backends of all workers alive, in the order these started."""

    members: tuple[Member, ...] = ()

    @property
    def backends(self) -> frozenset[str]:
        """The backends that somebody offers."""
        return frozenset(member.backend for member in self.members if member.available)

    def offer(self, backend: str) -> Offer:
        """Put together what the workers say of one backend."""
        members = [member for member in self.members if member.backend == backend]
        said = [member.said for member in self.offering(backend)]
        capabilities = [one.get("capabilities", {}) for one in said]
        return Offer(
            versions=frozenset(one["version"] for one in said),
            makes=_each(platform for one in said for platform in one.get("makes", ())),
            loads=_each(platform for one in said for platform in one.get("loads", ())),
            options=_declared(one.get("options", {}) for one in capabilities),
            lacks={name: reason for one in capabilities for name, reason in one.get("lacks", {}).items()},
            unavailable=_each(member.said["unavailable"] for member in members if not member.available),
        )

    def offering(self, backend: str) -> tuple[Member, ...]:
        """Return those that can use a backend."""
        return tuple(member for member in self.members if member.backend == backend and member.available)

    def on(self, device: str) -> "Fleet":
        """Return the part of the fleet with this device."""
        return Fleet(tuple(member for member in self.members if member.device == device))

    def devices(self, backend: str) -> tuple[str, ...]:
        """Return the names of the devices that offer a backend."""
        return _each(member.device for member in self.offering(backend))


@dataclass(frozen=True, slots=True)
class Target:
    """Where an engine may be made: a backend and what is offered of it, by one device where one was asked for.

    `members` are the workers alive that may make it. `platform` is that whose workers shall, or `BUILD_ONLY`; None
    where any worker of the backend may.
    """

    backend: str
    offer: Offer
    members: tuple[Member, ...] = ()
    platform: str | None = None

    @property
    def runs(self) -> bool:
        """Whether the engine can be run where it is made, as far as somebody is alive to tell."""
        return not self.members or any(member.runs for member in self.members)

    @property
    def needs_profiles(self) -> bool:
        """Whether it cannot be made without profiles where its inputs are dynamic."""
        return any(member.needs_profiles for member in self.members)


def fleet_offers(session: Session, settings: Settings) -> Fleet:
    """Return what is offered at this moment."""
    return Fleet(
        tuple(
            Member(worker.device["name"], backend, said)
            for worker in alive(session, settings)
            for backend, said in worker.backends.items()
        )
    )


def choose_target(fleet: Fleet, backend: str | None, device: str | None) -> Target:
    """Settle where an engine is made; Invalid "backend_unknown" or "device_unknown".

    A backend left out is tensorrt where it is offered, by that device if one is named, and otherwise onnxruntime.
    One that is known but that no worker offers at the moment is accepted without a device: its jobs wait.
    """
    if device is None:
        chosen = choose_backend(fleet, backend)
        return Target(chosen, fleet.offer(chosen), fleet.offering(chosen))
    chosen = choose_backend(fleet if backend else fleet.on(device), backend)
    members = fleet.on(device).offering(chosen)
    if not members:
        raise _device_unknown(device, chosen, fleet.devices(chosen), fleet.on(device).offer(chosen))
    return Target(chosen, Fleet(members).offer(chosen), members, members[0].platform)


def settle_target(target: Target, options: Mapping[str, Any]) -> tuple[Target, dict[str, Any]]:
    """Narrow a target to the workers that take these options, and settle these by what they declare; Invalid.

    Of several, those that run what they compile are preferred. Where that leaves out anybody who listens to the
    queue of the whole backend, the engine is made on the platform of the first that is left.
    """
    settled = settle_options(target.backend, target.offer, options)
    faults = {member: _first_fault(member, options) for member in target.members}
    takers = [member for member, fault in faults.items() if fault is None]
    if faults and not takers:
        raise _taken_by_nobody(target.backend, [(member, fault) for member, fault in faults.items() if fault])
    preferred = tuple(member for member in takers if member.runs) or tuple(takers)
    if len(preferred) == len(target.members):
        return target, settled
    offer = Fleet(preferred).offer(target.backend)
    narrowed = Target(target.backend, offer, preferred, preferred[0].platform)
    return narrowed, settle_options(target.backend, offer, options)


def choose_backend(fleet: Fleet, asked: str | None) -> str:
    """Return the backend asked for, or else tensorrt where a worker offers it and onnxruntime where none does."""
    offered = fleet.backends
    if asked is None:
        return "tensorrt" if "tensorrt" in offered else "onnxruntime"
    known = sorted({*BACKENDS, *offered})
    if asked not in known:
        raise Invalid(
            f"There is no backend '{asked}'. Known are {', '.join(known)}; GET /v1/workers shows which are "
            "offered now. Leave it out for the best one offered.",
            code="backend_unknown",
            errors=[FieldError("/backend", f"not one of {', '.join(known)}")],
        )
    return asked


def settle_options(backend: str, offer: Offer, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check options against what is declared, and leave out those that have their default; Invalid.

    Where no worker offers the backend only patterns can be checked here: the worker that takes the job does the rest.
    """
    found = {name: _fault(name, value, offer) for name, value in options.items()}
    faults = [FieldError(_pointer(name, fault.path), fault.detail) for name, fault in found.items() if fault]
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


def _first_fault(member: Member, options: Mapping[str, Any]) -> FieldError | None:
    """Return why a worker does not take an option; one without a value is left out and disturbs nobody."""
    offer = member.offer
    for name, value in options.items():
        if value is not None and (fault := _fault(name, value, offer)):
            return FieldError(_pointer(name, fault.path), fault.detail)
    return None


def _taken_by_nobody(backend: str, faults: Sequence[tuple[Member, FieldError]]) -> Invalid:
    refused = [FieldError(fault.pointer, f"{member.device}: {fault.detail}") for member, fault in faults[:5]]
    return Invalid(
        f"No single worker of the backend '{backend}' takes all of these options: "
        + "; ".join(f"{fault.pointer}: {fault.detail}" for fault in refused)
        + ". Leave out what one of them refuses. GET /v1/workers shows the options of each.",
        code="invalid_options",
        errors=refused,
    )


def _fault(name: str, value: object, offer: Offer) -> Fault | None:
    left_out = value is None and name in offer.options
    fault = fault_of(name, value, offer.options, offer.lacks) if offer.versions and not left_out else None
    return fault or (_pattern_fault(value) if name == "refit" and isinstance(value, list) else None)


def _pattern_fault(patterns: Sequence[object]) -> Fault | None:
    try:
        RefitPatterns.parse(patterns)
    except RefitPatternError as error:
        return Fault((error.index,), error.detail)
    return None


def _pointer(name: str, path: Sequence[str | int]) -> str:
    return "".join(f"/{_escape(str(part))}" for part in ("options", name, *path))


def _device_unknown(device: str, backend: str, devices: Sequence[str], offer: Offer) -> Invalid:
    known = ", ".join(devices)
    offering = f"'{backend}' is offered by {known}" if devices else f"no worker alive offers '{backend}'"
    reasons = "".join(f" {reason}" for reason in offer.unavailable)
    remedy = "Name one of these, or leave device out" if devices else "Start a worker that does, or leave device out"
    return Invalid(
        f"No worker alive offers '{backend}' on a device '{device}'; {offering}.{reasons} {remedy}: then any worker "
        "of the backend may take the job. GET /v1/workers shows the devices.",
        code="device_unknown",
        errors=[FieldError("/device", f"not one of {known}" if devices else "no device offers the backend")],
    )


def _declared(declarations: Iterator[Mapping[str, Schema]]) -> dict[str, tuple[Schema, ...]]:
    schemas: dict[str, tuple[Schema, ...]] = {}
    for options in declarations:
        for name, schema in options.items():
            earlier = schemas.get(name, ())
            schemas[name] = earlier if schema in earlier else (*earlier, schema)
    return schemas


def _each(values: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
