"""What onnxruntime makes of a graph: it is asked itself, by a session without weights. It needs no device."""

import re
from collections.abc import Sequence
from math import prod
from pathlib import Path
from uuid import uuid4

import onnxruntime as ort
from onnx import ModelProto

from app.definitions.tensor_data import DTYPE_NAMES
from app.weights.dtypes import DTYPES
from workers.engine_host import onnx_graph
from workers.engine_host.onnxruntime_session import ONLY_FATAL, ORT_ERRORS, explained, open_session, session_options
from workers.engine_host.preflight.verdict import Finding, Question, Refittable, Verdict
from workers.engine_host.tensors import StoredValue

NODE = re.compile(r"in node \((?P<plain>[^)]*)\)|node with name '(?P<quoted>[^']*)'")
OPERATOR = re.compile(
    r"for (?P<kernel>[\w.]+)\(\d+\) node|of operator \((?P<typed>[^)]*)\)|: (?P<unknown>[\w.:]+)\(-?\d+\) is not"
)
MAX_ZEROS = 256 << 20  # bytes of the file that stands for weights: a child may not write larger ones
REMEDIES = (
    "Only the first node that onnxruntime does not take is named. Export the model without it, or in F32.",
    "Use another backend, if a worker offers one.",
)
SOURCE = "a session of this installation's onnxruntime"


def check_onnxruntime(definition: ModelProto, question: Question) -> list[Verdict]:
    """Return a verdict of the installed version; others are not known here, so of these everything is doubtful."""
    names = list(onnx_graph.parameters_of(definition))
    operators = onnx_graph.all_operators(definition.graph)
    refittable = Refittable.of(names, (), "")
    refused = _refused(definition)
    own = Verdict(ort.__version__, SOURCE, operators, refittable, refused=refused, remedies=REMEDIES if refused else ())
    versions = question.versions or (ort.__version__,)
    return [own if version == ort.__version__ else _other(version, own) for version in versions]


def _other(version: str, own: Verdict) -> Verdict:
    unknown = Finding("any", f"only onnxruntime {own.version} is installed here", 0, ())
    return Verdict(version, SOURCE, own.operators, own.refittable, doubtful=(unknown, *own.refused))


def _refused(definition: ModelProto) -> tuple[Finding, ...]:
    """Make a session without optimisation, as a build does at last: with the parameters as inputs, else as zeros."""
    bare = onnx_graph.with_parameters_as_inputs(definition)
    try:
        _open(onnx_graph.serialize(bare))
    except ORT_ERRORS as error:
        return () if _opens_with_zeros(definition) else (_finding(error),)
    return ()


def _opens_with_zeros(definition: ModelProto) -> bool:
    """Whether a session opens if the parameters are initializers; some operators take some inputs only so."""
    parameters = onnx_graph.parameters_of(definition)
    sizes = {
        name: _nbytes(tensor.dims, DTYPES[DTYPE_NAMES[tensor.data_type]].itemsize)
        for name, tensor in parameters.items()
    }
    largest = max(sizes.values(), default=0)
    if largest > MAX_ZEROS:
        return True  # for all that can be told
    zeros = Path(f"{uuid4().hex}.zeros").resolve()
    with zeros.open("wb") as file:
        file.truncate(largest)  # a hole: it takes no room
    values = {
        name: StoredValue(str(zeros), 0, sizes[name], DTYPE_NAMES[tensor.data_type], tuple(tensor.dims))
        for name, tensor in parameters.items()
    }
    try:
        _open(onnx_graph.point_at(onnx_graph.serialize(definition), values)[0])
    except ORT_ERRORS:
        return False
    finally:
        zeros.unlink()
    return True


def _open(model: bytes) -> None:
    options = session_options()
    options.intra_op_num_threads = 1  # this session never runs
    options.log_severity_level = ONLY_FATAL  # what it fails on is raised as well
    options.add_session_config_entry("session.disable_prepacking", "1")
    open_session(model, options)


def _finding(error: Exception) -> Finding:
    """Return what onnxruntime says, which is about the first node that it does not take."""
    reason = explained(error, "build_failed").detail
    operator, node = OPERATOR.search(reason), NODE.search(reason)
    name = next(filter(None, node.groups()), "") if node else ""
    kind = next(filter(None, operator.groups()), "any") if operator else "any"
    return Finding(kind, reason, 1 if name else 0, (name,) if name else ())


def _nbytes(dims: Sequence[int], itemsize: int) -> int:
    return prod(dims) * itemsize
