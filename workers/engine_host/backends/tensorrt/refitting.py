"""Gives a deserialized engine new weights, and checks each of them before TensorRT sees it.

`Refitter.set_named_weights` does not check enough. TensorRT 8.6 returns True for a transposed tensor, for a tensor that
is an element too short, and for F32 if the weight is F16; it would read past the buffer. Later releases check count and
type but never the shape. A refit that fails may have changed some of the weights, so the caller throws the engine away
if this raises. The module `tensor_location` decides whether the weights lie on the host or on the device.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from math import prod
from typing import Protocol

from workers.channel.messages import BackendError
from workers.engine_host.backends.tensorrt.capabilities import Capabilities
from workers.engine_host.backends.tensorrt.library import NAME, trt
from workers.engine_host.backends.tensorrt.log import Log
from workers.engine_host.backends.tensorrt.tensor_location import OnDevice, OnHost, process_staging
from workers.engine_host.backends.tensorrt.weight_values import Expected, Named
from workers.engine_host.tensors import Array

MAX_NAMED = 10


class KnownWeights(Protocol):
    """Finds the weights that a refit needs although they have not changed."""

    def named(self, names: Sequence[str]) -> Iterable[Named]:
        """Yield the weights of these names; names that are not known are left out."""
        ...


def check_weight(name: str, array: Array, expected: Expected) -> None:
    """Raise BackendError "wrong_weights" unless an array has the dtype, shape and memory that the weight takes."""
    faults = []
    if array.dtype != expected.dtype:
        faults.append(f"is {array.dtype}, not {expected.dtype}")
    if array.shape != expected.shape:
        faults.append(f"has shape {list(array.shape)}, not {list(expected.shape)}")
    if not array.flags.c_contiguous:
        faults.append("is not contiguous in row-major order")
    if array.nbytes != prod(expected.shape) * expected.dtype.itemsize:
        faults.append(f"has {array.nbytes} bytes, not {prod(expected.shape) * expected.dtype.itemsize}")
    if faults:
        raise BackendError(
            "wrong_weights", f"The weight {name} {', '.join(faults)}. Check the binding against these weights again."
        )


def refit(
    engine: trt.ICudaEngine,
    weights: Iterable[Named],
    can: Capabilities,
    log: Log,
    known: KnownWeights,
) -> set[str]:
    """Put weights into an engine in place and return their names; the arrays are not read after this returns.

    If TensorRT has fused layers, it takes a weight of one only together with the weights of the others. These are
    looked up in `known`. Raises BackendError "wrong_weights", "not_refittable" or "refit_failed", and CudaError. After
    any of them the engine is in no defined state.
    """
    refitter = trt.Refitter(engine, log)
    refitter.max_threads = can.refit_threads
    with closing(_place(refitter, can, log)) as place:
        done = _set(place, weights, refitter, log)
        while missing := refitter.get_missing_weights():
            combined = _set(place, (one for one in known.named(missing) if one[0] not in done), refitter, log)
            if not combined:
                raise BackendError(
                    "refit_failed",
                    f"{NAME} {can.version} wants more weights than were given: {', '.join(missing[:MAX_NAMED])}. "
                    "Build an engine for these weights instead.",
                )
            done |= combined
        if can.reads_weights and (strange := place.held_otherwise()):
            raise BackendError(
                "refit_failed",
                f"{NAME} {can.version} does not hold what it was given for {', '.join(strange[:MAX_NAMED])}, so the "
                "engine was not refitted. Build an engine for these weights instead.",
            )
        if not place.refit():
            remedy = "Build an engine for these weights instead."
            raise log.failed("refit_failed", f"{NAME} {can.version} could not refit the engine", remedy)
    return done


def refittable_weights(engine: trt.ICudaEngine, log: Log) -> frozenset[str]:
    """Return the names of the weights that can be replaced; none if the engine was compiled without refit support."""
    return frozenset(trt.Refitter(engine, log).get_all_weights()) if engine.refittable else frozenset()


def _place(refitter: trt.Refitter, can: Capabilities, log: Log) -> OnHost | OnDevice:
    return OnDevice(refitter, process_staging(), log) if can.async_refit else OnHost(refitter)


def _set(place: OnHost | OnDevice, weights: Iterable[Named], refitter: trt.Refitter, log: Log) -> set[str]:
    """Check all weights, then set them, and return their names."""
    arrays = {}
    for name, array, expected in weights:
        check_weight(name, array, expected)
        arrays[name] = array
    refused = place.set_weights(arrays)
    if refused:
        raise BackendError("not_refittable", _unknown(refused[0], refitter, log))
    return set(arrays)


def _unknown(name: str, refitter: trt.Refitter, log: Log) -> str:
    known = refitter.get_all_weights()
    if name in known:
        return f"{NAME} refused the weight {name}: {log.reason}. Build the engine again."
    return (
        f"The engine's compiled form has no weight {name} that could be replaced (it has {len(known)}). Build an "
        "engine for these weights instead."
    )
