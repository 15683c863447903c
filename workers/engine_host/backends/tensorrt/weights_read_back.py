"""Asks a refitter, before it changes an engine, which weights it holds under each name.

Source: `IRefitter.get_named_weights` and `get_weights_location` of TensorRT's Python API, from 10.0 on. They give back
what was set under a name, and null weights for a name under which nothing was set. They do not read the engine, and
nothing in the API does. So this shows that TensorRT refits with every weight that it was given and with none of an
earlier refit. What the engine computes afterwards is for the verification to show.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from workers.engine_host.backends.tensorrt.library import trt


@dataclass(frozen=True, slots=True)
class Given:
    """Weights as they were given to a refitter, and whether their address is one of the host or of the device."""

    weights: trt.Weights
    location: trt.TensorLocation


def held_otherwise(refitter: trt.Refitter, given: Mapping[str, Given]) -> list[str]:
    """Return the names under which a refitter holds other weights than it was given, or none.

    Type, count, location and address are compared. The address is known if numpy has the type; it does not have BF16
    and FP8.
    """
    return [name for name, one in given.items() if not _is_held(refitter, name, one)]


def _is_held(refitter: trt.Refitter, name: str, given: Given) -> bool:
    held = refitter.get_named_weights(name)
    if (held.dtype, held.size) != (given.weights.dtype, given.weights.size):
        return False
    if given.weights.size and _address(held) != _address(given.weights):
        return False
    return refitter.get_weights_location(name) == given.location


def _address(weights: trt.Weights) -> int | None:
    """Return where weights lie; None if numpy lacks their type. Nothing there is read: it may be on the device."""
    view = weights.numpy()
    return view.ctypes.data if isinstance(view, np.ndarray) else None
