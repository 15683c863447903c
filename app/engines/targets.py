"""Where an engine is made: the backend, and those of its workers alive that may make the engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.backends import backend_names
from app.errors import FieldError, Invalid
from app.fleet.offers import Fleet, Member, Offer, option_faults, settle_options

MAX_NAMED = 5  # an error names at most so many workers that refuse options


@dataclass(frozen=True, slots=True)
class Target:
    """Where an engine may be made.

    `offer` is what the workers alive offer of the backend. `members` are the workers alive that may make the engine;
    the target of a refit has none, because the parent's platform decides that. `platform` is the platform whose
    workers make the engine, or `BUILD_ONLY`. It is None if any worker of the backend may make the engine.
    """

    backend: str
    offer: Offer
    members: tuple[Member, ...] = ()
    platform: str | None = None

    @property
    def runs(self) -> bool:
        """Whether a worker that may make the engine can run it too; True if no worker is alive to tell."""
        return not self.members or any(member.said.runs for member in self.members)

    @property
    def needs_profiles(self) -> bool:
        """Whether an engine with dynamic inputs needs profiles to be made."""
        return any(member.said.needs_profiles for member in self.members)

    def narrowed(self, members: tuple[Member, ...]) -> "Target":
        """Return the target with some of its members only, of which there is at least one.

        If any member is left out, the engine is made on the platform of the first one that remains, because all workers
        of the backend listen to its general queue.
        """
        if len(members) == len(self.members):
            return self
        return Target(self.backend, Fleet(members).offer(self.backend), members, members[0].platform)


def choose_target(fleet: Fleet, backend: str | None, device: str | None) -> Target:
    """Choose where an engine is made; raises Invalid "backend_unknown" or "device_unknown".

    If no backend is named, tensorrt is chosen if a worker offers it, and onnxruntime otherwise. If a device is named,
    only the workers with that device count. A known backend that no worker offers at the moment is accepted, unless a
    device is named. Its jobs wait.
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
    """Return the target narrowed to the workers that take these options, and the options that differ from defaults.

    Workers that can run what they compile are preferred. Raises Invalid "invalid_options".
    """
    settled = settle_options(target.backend, target.offer, options)
    faults = [option_faults(member.offer, settled) for member in target.members]
    takers = tuple(member for member, wrong in zip(target.members, faults, strict=True) if not wrong)
    if target.members and not takers:
        raise _taken_by_nobody(target, [wrong[0] for wrong in faults])
    preferred = tuple(member for member in takers if member.said.runs) or takers
    narrowed = target.narrowed(preferred)
    return narrowed, settled if narrowed is target else settle_options(target.backend, narrowed.offer, settled)


def choose_backend(fleet: Fleet, asked: str | None) -> str:
    """Return the backend asked for; if none was, tensorrt if a worker offers it, else onnxruntime.

    Raises Invalid "backend_unknown".
    """
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
