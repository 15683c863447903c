"""Whether an engine computes what its definition says: both are run on the same fixed inputs and compared.

The reference is the definition as it stands, with none of its operators fused or folded, in an onnxruntime session
that takes the weights as inputs. So it shares with an onnxruntime engine neither the optimised graph, nor the
kernels' packed weights, nor the way the weights got there: had it any of these in common, a fault there would
show up on both sides and the comparison would prove nothing. As weights are its inputs, one session serves every weight
version of a definition, and a refit is verified at the price of a run.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cachetools import LRUCache

from app.weights.dtypes import DTYPES
from workers.channel.messages import (
    BackendError,
    Build,
    EngineFile,
    OutputDifference,
    ParameterSource,
    Report,
    Verified,
    Verify,
)
from workers.engine_host import onnx_graph
from workers.engine_host.backends.base import Arrays, Backend, LoadedEngine
from workers.engine_host.backends.stopwatch import Stopwatch
from workers.engine_host.run_inputs import digest_of, fixed_inputs
from workers.engine_host.tensors import Array, MappedFiles, ParameterFiles

INFINITIES = {"float16": 0x7C00, "bfloat16": 0x7F80}  # as bits, by dtype
SIGN = 0x8000
KEPT_REFERENCES = 8  # sessions without weights, a few hundred kilobytes each


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far outputs may lie from the reference, by the lowest precision that is computed in.

    `max_abs` decides alone where outputs are all but zero, so that a relative error means nothing. Each bound is
    some tens of units in the last place of that dtype, as fused operators round less often and in other order.
    """

    dtype: str
    relative_l2: float
    cosine: float
    max_abs: float


TOLERANCES = (
    Tolerance("F8_E5M2", 2.5e-1, 0.97, 1e-2),
    Tolerance("F8_E4M3", 1.5e-1, 0.98, 1e-2),
    Tolerance("BF16", 5e-2, 0.998, 1e-3),
    Tolerance("F16", 1e-2, 0.9999, 1e-4),
    Tolerance("F32", 1e-4, 0.999999, 1e-6),
    Tolerance("F64", 1e-9, 0.999999999, 1e-12),
)


class References:
    """Runs definitions as they stand; keeps the sessions of the last few, which hold no weights."""

    def __init__(self, files: ParameterFiles) -> None:
        self._files = files
        self._sessions: LRUCache[str, tuple[Any, dict[str, Any]]] = LRUCache(KEPT_REFERENCES)

    def run(self, engine: EngineFile, inputs: Arrays) -> dict[str, Array]:
        """Return the definition's outputs with the engine's parameters; BackendError where it cannot be run."""
        from workers.engine_host import onnxruntime_session as ort_session  # noqa: PLC0415 - only a verification needs the runtime

        session, parameters = self._session(engine.definition)
        values = self._files.locate(engine.parameters)
        onnx_graph.check_values(parameters, values)
        mapped = MappedFiles()
        weights = {name: mapped.view(values[name]) for name in parameters}
        return ort_session.run_session(session, {**inputs, **weights})

    def _session(self, definition: str) -> tuple[Any, dict[str, Any]]:
        """Return a definition's session and the parameters it takes."""
        data = Path(definition).read_bytes()
        key = hashlib.sha256(data).hexdigest()
        if key not in self._sessions:
            self._sessions[key] = _open(data)
        return self._sessions[key]


def _open(definition: bytes) -> tuple[Any, dict[str, Any]]:
    from workers.engine_host import onnxruntime_session as ort_session  # noqa: PLC0415 - only a verification needs the runtime

    model = onnx_graph.parse(definition)
    bare = onnx_graph.serialize(onnx_graph.with_parameters_as_inputs(model))
    try:
        session = ort_session.open_session(bare, ort_session.reference_options())
    except ort_session.ORT_ERRORS as error:
        raise ort_session.explained(error, "reference_failed") from error
    return session, onnx_graph.parameters_of(model)


def verify(
    request: Verify, engine: LoadedEngine, backend: Backend, references: References, scratch: Path, report: Report
) -> Verified:
    """Run and compare as `request.against` says.

    "reference": the definition as it stands, with the same weights. "rebuild": an engine built afresh, whose plan lies
    in `scratch` meanwhile. "finite": no comparison, outputs must hold no NaN and no infinity. "none": nothing is run.
    """
    tolerance = tolerance_of(request.engine.parameters, request.engine.options)
    bounds = {name: getattr(tolerance, name) for name in Tolerance.__slots__}
    if request.against == "none":
        return Verified(ok=True, against="none", outputs={}, tolerance=bounds, inputs="", detail="", timings={})
    watch = Stopwatch(report)
    inputs = fixed_inputs(request.engine.inputs, request.engine.profiles)
    others: dict[str, Callable[[], Mapping[str, Array]]] = {
        "reference": lambda: references.run(request.engine, inputs),
        "rebuild": lambda: _rebuilt(request.engine, backend, scratch, report).run(inputs),
        "finite": dict,
    }
    with watch.phase("verify"):
        outputs = engine.run(inputs)
        expected = others[request.against]()
        differences = {name: difference(array, expected.get(name)) for name, array in outputs.items()}
    faults = [fault for name, one in differences.items() if (fault := fault_of(name, one, tolerance))]
    return Verified(
        ok=not faults,
        against=request.against,
        outputs=differences,
        tolerance=bounds,
        inputs=digest_of(inputs),
        detail="; ".join(faults),
        timings=watch.seconds,
    )


def tolerance_of(parameters: Sequence[ParameterSource], options: Mapping[str, Any]) -> Tolerance:
    """Return the tolerance for the lowest precision that is computed in; that of F32 where no parameter is a float.

    It is that of the parameters, unless the build options let the compiler choose F16, or TF32, whose mantissa has
    no more bits than that of F16.
    """
    dtypes = {one.binding.dtype for one in parameters if DTYPES[one.binding.dtype].kind == "float"} or {"F32"}
    if options.get("precision") == "fp16" or options.get("tf32"):
        dtypes.add("F16")
    return next(one for one in TOLERANCES if one.dtype in dtypes)


def difference(actual: Array, expected: Array | None) -> OutputDifference:
    """Return how far `actual` lies from `expected`; None compares with nothing and only looks for NaN and infinity."""
    finite = is_finite(actual)
    if expected is None:
        return OutputDifference(None, None, None, finite)
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise BackendError(
            "outputs_differ",
            f"The engine gives {actual.dtype}{list(actual.shape)} where the definition gives "
            f"{expected.dtype}{list(expected.shape)}. Build it again.",
        )
    a, b = (array.astype(np.float64).ravel() for array in (actual, expected))
    finite = finite and is_finite(b)
    if not finite:
        return OutputDifference(None, None, None, finite)
    return _distance(a, b)


def is_finite(array: Array) -> bool:
    """Return whether an array holds neither NaN nor infinity.

    Floats of 16 bits are looked at as integers, as numpy has vector code for these only: NaN and infinity have the
    largest magnitudes, of either sign.
    """
    infinity = INFINITIES.get(array.dtype.name)
    if infinity is None or not array.size:
        return bool(np.isfinite(array).all())
    return bool(array.view(np.int16).max() < infinity and array.view(np.uint16).max() < infinity + SIGN)


def fault_of(name: str, one: OutputDifference, tolerance: Tolerance) -> str:
    """Say why an output is out of tolerance, or nothing where it is not."""
    if not one.finite:
        return f"output {name} holds NaN or infinity"
    if one.max_abs is None or one.max_abs <= tolerance.max_abs:
        return ""
    if one.relative_l2 is None or one.relative_l2 > tolerance.relative_l2:
        return f"output {name} differs by {one.relative_l2} in relative L2, {tolerance.relative_l2} is allowed"
    if one.cosine is None or one.cosine < tolerance.cosine:
        return f"output {name} has cosine {one.cosine}, {tolerance.cosine} is needed"
    return ""


def _distance(
    a: "np.ndarray[Any, np.dtype[np.float64]]", b: "np.ndarray[Any, np.dtype[np.float64]]"
) -> OutputDifference:
    max_abs = float(np.abs(a - b).max(initial=0.0))
    norm_a, norm_b = _norm(a), _norm(b)
    if not max_abs:
        return OutputDifference(0.0, 0.0, 1.0, finite=True)
    relative = _norm(a - b) / norm_b if norm_b else None
    cosine = float((a * b).sum()) / (norm_a * norm_b) if norm_a and norm_b else None
    return OutputDifference(max_abs, relative, cosine, finite=True)


def _norm(a: Array) -> float:
    return float(np.sqrt(np.square(a).sum()))


def _rebuilt(engine: EngineFile, backend: Backend, scratch: Path, report: Report) -> LoadedEngine:
    with tempfile.TemporaryDirectory(prefix="rebuild-", dir=scratch) as folder:
        plan = str(Path(folder) / "plan")
        request = Build(
            engine.backend, engine.definition, engine.parameters, engine.inputs, plan, engine.profiles, engine.options
        )
        rebuilt = backend.build(request, report)[1]
    if rebuilt is None:
        raise BackendError("cannot_rebuild", f"{engine.backend} compiles here but runs nothing: verify on its device.")
    return rebuilt
