"""The tensors that stayed in a graph as constants, as a definition tells of them: most of it of floating-point ones."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

MAX_LISTED: Final = 100
MAX_DIGESTS: Final = 2000
WARNED_SHARE: Final = 0.01  # of the bytes of all floating-point tensors
MAX_NAMED: Final = 3
NO_DIGESTS: Final[Mapping[str, str]] = MappingProxyType({})
EXPORTERS_OWN: Final = ("/", "onnx::")


@dataclass(frozen=True, slots=True)
class Constant:
    """One tensor that no weight version changes. `reason` is one of `weight_rule`, or "argument"."""

    name: str
    nbytes: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return what is stored with a definition and sent to clients."""
        return {"name": self.name, "bytes": self.nbytes, "reason": self.reason}


def to_json(constants: Sequence[Constant], digests: Mapping[str, str] = NO_DIGESTS) -> dict[str, Any]:
    """Return {"count", "bytes", "listed", "digests"}: all of them counted, and the largest MAX_LISTED listed.

    `digests` are those of constants of every type. Names that no checkpoint has, such as "/layer/Constant_output_0" and
    "onnx::Add_7", are left out.
    """
    largest = sorted(constants, key=lambda constant: (-constant.nbytes, constant.name))[:MAX_LISTED]
    named = ((name, digest) for name, digest in digests.items() if not name.startswith(EXPORTERS_OWN))
    return {
        "count": len(constants),
        "bytes": sum(constant.nbytes for constant in constants),
        "listed": [constant.to_json() for constant in largest],
        "digests": dict(islice(named, MAX_DIGESTS)),
    }


def digests_of(constants: Mapping[str, Any] | None) -> dict[str, str | None]:
    """Return the BLAKE3 of each constant by its name; None for those of a definition that an earlier release made."""
    if constants is None:
        return {}
    known: dict[str, str] = constants.get("digests", {})
    return {**{one["name"]: None for one in constants["listed"]}, **known}


def warnings(constants: Mapping[str, Any], weight_bytes: int) -> Iterable[str]:
    """Yield a warning if constants hold WARNED_SHARE or more of the bytes of all floating-point tensors.

    `constants` is what `to_json` returned, `weight_bytes` the bytes of the parameters that are floating point.
    """
    kept, total = constants["bytes"], constants["bytes"] + weight_bytes
    if not kept or kept < WARNED_SHARE * total:
        return
    named = ", ".join(f"{constant['name']} ({constant['reason']})" for constant in constants["listed"][:MAX_NAMED])
    more = constants["count"] - min(MAX_NAMED, constants["count"])
    yield (
        f"{kept} of {total} bytes of floating-point values stayed in the graph as constants, which no weight version "
        f"changes: {named}{f' and {more} more' if more else ''}. See `constants` for all of them. If one of them was "
        "learnt, export it as a named initializer."
    )
