"""Where an engine is made: which backend, and which of the workers alive that have it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.backends import backend_names
from app.errors import FieldError, Invalid
from app.fleet.offers import Fleet, Member, Offer, option_faults, settle_options

MAX_NAMED = 5  # workers that refuse options


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
        return not self.members or any(member.said.runs for member in self.members)

    @property
    def needs_profiles(self) -> bool:
        """Whether it cannot be made without profiles where its inputs are dynamic."""
        return any(member.said.needs_profiles for member in self.members)


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
    faults = [option_faults(member.offer, settled) for member in target.members]
    takers = tuple(member for member, wrong in zip(target.members, faults, strict=True) if not wrong)
    if target.members and not takers:
        raise _taken_by_nobody(target, [wrong[0] for wrong in faults])
    preferred = tuple(member for member in takers if member.said.runs) or takers
    if len(preferred) == len(target.members):
        return target, settled
    offer = Fleet(preferred).offer(target.backend)
    narrowed = Target(target.backend, offer, preferred, preferred[0].platform)
    return narrowed, settle_options(target.backend, offer, settled)


def choose_backend(fleet: Fleet, asked: str | None) -> str:
    """Return the backend asked for, or else tensorrt where a worker offers it and onnxruntime where none does."""
    offered = fleet.backends
    if asked is None:
        return "tensorrt" if "tensorrt" in offered else "onnxruntime"
    known = sorted({*backend_names(), *offered})
    if asked not in known:
        raise Invalid(
            f"There is no backend '{asked}'. Known are {', '.join(known)}; GET /v1/workers shows which are "
            "offered now. Leave it out for the best one offered.",
            code="backend_unknown",
            errors=[FieldError("/backend", f"not one of {', '.join(known)}")],
        )
    return asked


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


def _taken_by_nobody(target: Target, faults: Sequence[FieldError]) -> Invalid:
    pairs = zip(target.members, faults, strict=True)
    refused = [FieldError(fault.pointer, f"{member.device}: {fault.detail}") for member, fault in pairs][:MAX_NAMED]
    return Invalid(
        f"No single worker of the backend '{target.backend}' takes all of these options: "
        + "; ".join(f"{fault.pointer}: {fault.detail}" for fault in refused)
        + ". Leave out what one of them refuses. GET /v1/workers shows the options of each.",
        code="invalid_options",
        errors=refused,
    )
