"""What the workers alive now can compile, and what of a request can be checked against it.

A worker declares the options of a backend as `capabilities["options"]`: by name, the list of values allowed,
the default first. An empty list allows any value and gives no default.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.errors import FieldError, Invalid
from app.fleet.service import alive
from app.settings import Settings

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt_rtx")


@dataclass(frozen=True, slots=True)
class Offer:
    """One backend as the fleet has it: the versions alive and the options that any of them declares."""

    versions: frozenset[str]
    options: Mapping[str, Sequence[Any]]


Fleet = Mapping[str, Offer]


def fleet_offers(session: Session, settings: Settings) -> Fleet:
    """Return what is offered at this moment, by backend."""
    offers: dict[str, Offer] = {}
    for worker in alive(session, settings):
        for backend, described in worker.backends.items():
            earlier = offers.get(backend, Offer(frozenset(), {}))
            declared = described.get("capabilities", {}).get("options", {})
            offers[backend] = Offer(earlier.versions | {described["version"]}, {**earlier.options, **declared})
    return offers


def versions_alive(fleet: Fleet, backend: str) -> frozenset[str]:
    """Return the versions of a backend that workers offer; none where nobody offers it."""
    return fleet[backend].versions if backend in fleet else frozenset()


def choose_backend(fleet: Fleet, asked: str | None) -> str:
    """Return the backend asked for, or else tensorrt where a worker offers it and onnxruntime where none does.

    A backend that is known but that no worker offers at the moment is accepted: its jobs wait for a worker.
    """
    if asked is None:
        return "tensorrt" if "tensorrt" in fleet else "onnxruntime"
    known = sorted({*BACKENDS, *fleet})
    if asked not in known:
        raise Invalid(
            f"There is no backend '{asked}'. Known are {', '.join(known)}; GET /v1/workers shows which are "
            "offered now. Leave it out for the best one offered.",
            code="backend_unknown",
            errors=[FieldError("/backend", f"not one of {', '.join(known)}")],
        )
    return asked


def settle_options(fleet: Fleet, backend: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check options against what the fleet declares, and leave out those that have their default.

    Where no worker offers the backend nothing can be checked here: the worker that takes the job does it.
    """
    offer = fleet.get(backend)
    if offer is None:
        return {name: value for name, value in options.items() if value is not None}
    faults = [
        FieldError(f"/options/{_escape(name)}", fault)
        for name, value in options.items()
        if (fault := _fault(name, value, offer.options)) is not None
    ]
    if faults:
        raise Invalid(
            f"The backend '{backend}' does not take these options: "
            + "; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults[:5])
            + ". GET /v1/workers shows the options of each backend.",
            code="invalid_options",
            errors=faults,
        )
    return {
        name: value for name, value in options.items() if value is not None and [value] != list(offer.options[name][:1])
    }


def _fault(name: str, value: object, declared: Mapping[str, Sequence[Any]]) -> str | None:
    if name not in declared:
        return f"unknown; known are {', '.join(sorted(declared))}" if declared else "it takes none"
    allowed = declared[name]
    if value is None or not allowed or any(type(value) is type(one) and value == one for one in allowed):
        return None
    return f"must be one of {', '.join(map(str, allowed))}"


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
