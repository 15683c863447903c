"""Sessions of onnxruntime: how they are set up, fed and read, and what their errors mean."""

import ctypes
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from app.definitions.tensor_data import DTYPE_NAMES, ONNX_TYPES
from app.weights.dtypes import numpy_dtype
from workers.channel.messages import BackendError
from workers.engine_host.onnx_graph import ROOT
from workers.engine_host.tensors import Array, dtype_name

ORT_ERRORS: tuple[type[Exception], ...] = (
    state.EPFail,
    state.EngineError,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
    RuntimeError,  # what the Python layer itself raises
)
ADDED_TO_NUMPY = 2  # what `dtype.isbuiltin` says of dtypes that a package such as ml_dtypes registers
VERBOSE, ONLY_ERRORS, ONLY_FATAL = 0, 3, 4  # onnxruntime's severities: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal


def session_options(
    level: Any = ort.GraphOptimizationLevel.ORT_DISABLE_ALL,  # noqa: ANN401 - onnxruntime is untyped
    *,
    verbose: bool = False,
) -> Any:  # noqa: ANN401 - likewise
    """Return options for one session; external data are found relative to `ROOT`.

    With `verbose` onnxruntime writes to standard error what it is at.

    Its threads spin while it runs (MiniLM takes 3.7 ms, without 5.0) and stop at once after it: onnxruntime's
    own default goes on spinning for some 25 ms, which the API on the same cores would pay for.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = VERBOSE if verbose else ONLY_ERRORS
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.enable_cpu_mem_arena = False  # an arena keeps the memory of the largest run for as long as the engine lives
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", ROOT)
    return options


def reference_options() -> Any:  # noqa: ANN401 - onnxruntime is untyped
    """Return options for a session that takes its weights as inputs.

    The CPU computes with F16 weights once they are widened, and by the runtime's own order they all are before anything
    is computed. By this one each is widened for the node that takes it and freed after it: of a GPT-2 of 406 million
    parameters 0.4 GB are held at most instead of 1.4, and a run takes half the time. (Where weights are initializers it
    is the other way round.)
    """
    options = session_options()
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.log_severity_level = ONLY_FATAL  # what it fails on is raised as well, and may only have been a guess
    return options


def open_session(model: bytes | str, options: Any) -> Any:  # noqa: ANN401 - onnxruntime is untyped
    """Make a session of a graph's bytes or path; raises one of `ORT_ERRORS`."""
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def run_session(session: Any, feeds: Mapping[str, Array], without: Collection[str] = ()) -> dict[str, Array]:  # noqa: ANN401 - onnxruntime is untyped
    """Run on arrays of any tensor dtype; nothing is copied on the way in, outputs are copies.

    Outputs that `without` names are not returned.
    """
    names = output_names(session, without)
    values = {name: ort_value(array) for name, array in feeds.items()}
    try:
        results = session.run_with_ort_values(names, values)
    except ORT_ERRORS as error:
        raise explained(error, "run_failed") from error
    return {name: _array(name, result) for name, result in zip(names, results, strict=True)}


def output_names(session: Any, without: Collection[str] = ()) -> list[str]:  # noqa: ANN401 - onnxruntime is untyped
    """Return the names of a session's outputs, but for those that `without` has."""
    return [output.name for output in session.get_outputs() if output.name not in without]


def ort_value(array: Array) -> Any:  # noqa: ANN401 - onnxruntime is untyped
    """Return an onnxruntime value on top of an array's memory, which must live as long; no copy is made.

    numpy knows neither bfloat16 nor the 8-bit floats, so onnxruntime sees integers of their size.
    """
    name = dtype_name(array)
    array = np.ascontiguousarray(array).reshape(array.shape)
    plain = array.view(f"u{array.itemsize}") if array.dtype.isbuiltin == ADDED_TO_NUMPY else array
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(plain, ONNX_TYPES[name])


def explained(error: Exception, code: str) -> BackendError:
    """Turn an onnxruntime error into ours, with the remedy if one is known."""
    text = str(error).removeprefix("[ONNXRuntimeError] : ")
    if isinstance(error, state.NotImplemented):
        return BackendError(
            "not_implemented",
            f"onnxruntime cannot compute this on the CPU: {text}. Use a definition of precision F32; weights of "
            "a smaller dtype bind to it with a widening cast.",
        )
    if isinstance(error, state.InvalidGraph | state.InvalidProtobuf):
        return BackendError("invalid_graph", f"onnxruntime refuses the definition: {text}. Register a corrected one.")
    return BackendError(code, f"onnxruntime failed: {text}")


def _array(name: str, value: Any) -> Array:  # noqa: ANN401 - onnxruntime is untyped
    code: int = value.element_type() if value.is_tensor() else 0
    if code not in DTYPE_NAMES:
        raise BackendError(
            "unsupported_output", f"Output {name} is {value.data_type()}; only tensors of numbers can be returned."
        )
    shape: Sequence[int] = value.shape()
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(data, np.uint8).view(numpy_dtype(DTYPE_NAMES[code])).reshape(shape)
