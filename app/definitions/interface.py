"""Finds the parameters, inputs and outputs of a weightless graph by static analysis."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.checker import ValidationError, check_model
from onnx.helper import make_tensor_value_info
from onnx.shape_inference import InferenceError, infer_shapes

from app.definitions.canonical_graph import canonical_bytes, is_unnamed
from app.definitions.limits import MAX_INPUTS, MAX_VALUE_BYTES
from app.definitions.parameter import InputSpec, OutputSpec, Parameter
from app.definitions.rejection import Rejected
from app.definitions.tensor_data import DTYPE_NAMES, MAX_RANK, dtype_of
from app.weights.dtypes import DTYPES

Shape = tuple[int | str, ...]
# Every index passes through these unchanged, whatever they do to its shape. A Slice is not among them: a bound on some
# values of an input is none on the others.
_KEEPS_VALUES = frozenset({"Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True, slots=True)
class Interface:
    """A definition as clients and backends see it. Parameters are sorted by name."""

    parameters: tuple[Parameter, ...]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    warnings: tuple[str, ...]


def read_interface(model: ModelProto) -> Interface:
    """Check a weightless model against the ONNX specification and read its interface.

    Raises:
        Rejected: the model violates the specification, fixes a value larger than the limit, has too many inputs or
            outputs, or one that is no tensor.
    """
    _check_counts(model)
    skeleton = with_parameters_as_inputs(model)
    _check(skeleton)
    inferred, warnings = _infer(skeleton)
    shapes = _shapes(inferred)
    _check_sizes(shapes)
    parameters = tuple(
        Parameter(tensor.name, tuple(tensor.dims), DTYPE_NAMES[tensor.data_type])
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    )
    highs = _highs(model, {name: shape for name, (_, shape) in shapes.items()})
    inputs = tuple(_input(value, highs.get(value.name)) for value in model.graph.input)
    outputs = tuple(_output(value, shapes) for value in inferred.graph.output)
    return Interface(parameters, inputs, outputs, warnings)


def with_parameters_as_inputs(model: ModelProto) -> ModelProto:
    """The checker and shape inference want values for initializers, but only types for inputs."""
    skeleton = ModelProto()
    skeleton.CopyFrom(model)
    kept = []
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            skeleton.graph.input.append(make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            kept.append(tensor)
    del skeleton.graph.initializer[:]
    skeleton.graph.initializer.extend(kept)
    return skeleton


def _check_counts(model: ModelProto) -> None:
    for values, what in ((model.graph.input, "inputs"), (model.graph.output, "outputs")):
        if len(values) > MAX_INPUTS:
            raise Rejected(
                "too_large_graph",
                f"The graph has {len(values)} {what}, more than {MAX_INPUTS}. Concatenate some of them, or split the "
                "model up.",
            )
        for value in values:
            if len(value.type.tensor_type.shape.dim) > MAX_RANK:
                raise Rejected(
                    "bad_tensor",
                    f"{value.name!r}, one of the {what}, has more than {MAX_RANK} dimensions. Reshape it in the model.",
                )


def _check(skeleton: ModelProto) -> None:
    checked = ModelProto()
    checked.CopyFrom(skeleton)
    del checked.graph.output[:]
    # The checker wants a shape for every output, which runtimes do without and inference often finds.
    checked.graph.output.extend(v for v in skeleton.graph.output if v.type.tensor_type.HasField("shape"))
    try:
        check_model(canonical_bytes(checked))
    except ValidationError as error:
        raise Rejected(
            "invalid_onnx", f"The model violates the ONNX specification: {_first_line(error)}. Export it again."
        ) from error


def _infer(skeleton: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    try:
        return infer_shapes(skeleton, check_type=True, strict_mode=True, data_prop=True), ()
    except InferenceError as error:
        warning = f"Shape inference found a contradiction; a backend may refuse the graph: {_first_line(error)}"
    return infer_shapes(skeleton), (warning,)


def _shapes(model: ModelProto) -> dict[str, tuple[int, Shape | None]]:
    """Return the element type and the shape of every value of the main graph that has a tensor type."""
    graph = model.graph
    shapes: dict[str, tuple[int, Shape | None]] = {
        value.name: (value.type.tensor_type.elem_type, _shape(value))
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.HasField("tensor_type")
    }
    shapes.update({tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer})
    return shapes


def _shape(value: ValueInfoProto) -> Shape | None:
    tensor_type = value.type.tensor_type
    if not tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value
        if dim.HasField("dim_value") and dim.dim_value >= 0
        else (f"{value.name}.{axis}" if is_unnamed(dim.dim_param) else dim.dim_param)
        for axis, dim in enumerate(tensor_type.shape.dim)
    )


def _check_sizes(shapes: Mapping[str, tuple[int, Shape | None]]) -> None:
    for name, (data_type, shape) in shapes.items():
        itemsize = DTYPES[DTYPE_NAMES[data_type]].itemsize if data_type in DTYPE_NAMES else 8
        nbytes = itemsize * prod(dim for dim in shape or () if isinstance(dim, int))
        if nbytes > MAX_VALUE_BYTES:
            raise Rejected(
                "too_large_value",
                f"The value {name!r} has the shape {list(shape or ())}, at least {nbytes} bytes; {MAX_VALUE_BYTES} is "
                "the most one value may take. Make the graph compute it in parts.",
            )


def _highs(model: ModelProto, shapes: Mapping[str, Shape | None]) -> dict[str, int]:
    """Return, for each input whose values index into a dimension of known size, the smallest such size.

    Gather and GatherElements take indices from -size to size - 1.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    highs: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type not in {"Gather", "GatherElements"}:
            continue
        size = _indexed_size(node, shapes.get(node.input[0]))
        name = _origin(node.input[1], producers)
        if isinstance(size, int):
            highs[name] = min(size, highs.get(name, size))
    return highs


def _indexed_size(node: NodeProto, shape: Shape | None) -> int | str | None:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return shape[axis] if shape and -len(shape) <= axis < len(shape) else None


def _origin(name: str, producers: Mapping[str, NodeProto]) -> str:
    while name in producers and producers[name].op_type in _KEEPS_VALUES:
        name = producers[name].input[0]
    return name


def _input(value: ValueInfoProto, high: int | None) -> InputSpec:
    what = f"Input {value.name!r}"
    shape = _shape(value) if value.type.HasField("tensor_type") else None
    if shape is None:
        raise Rejected("unsupported_input", f"{what} is no tensor of known rank. Export the model with dense tensors.")
    dtype = dtype_of(value.type.tensor_type.elem_type, what)
    if high is None or DTYPES[dtype].kind not in {"int", "uint"}:
        return InputSpec(value.name, dtype, shape)
    return InputSpec(value.name, dtype, shape, high, -high if DTYPES[dtype].kind == "int" else 0)


def _output(value: ValueInfoProto, shapes: Mapping[str, tuple[int, Shape | None]]) -> OutputSpec:
    what = f"Output {value.name!r}"
    if value.name not in shapes:
        raise Rejected("unsupported_output", f"{what} is no tensor. Export the model with dense tensors.")
    data_type, shape = shapes[value.name]
    return OutputSpec(value.name, dtype_of(data_type, what), shape)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:400].rstrip(".")
