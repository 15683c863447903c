"""Brings operators of newer opsets back to what an older opset says, where both can say the same.

onnx.version_converter does this for some operators only, and not inside branches. An operator whose inputs and
attributes the older opset has as well stays as it is. Operators that ONNX itself defines by others are spelled out by
onnx.inliner. The rest has a rule here each. Source of what changed when: https://onnx.ai/onnx/operators/.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from onnx import ModelProto
from onnx.defs import OpSchema, SchemaError, get_schema
from onnx.helper import make_tensor_value_info
from onnx.inliner import inline_selected_functions

from app.definitions.graph_walk import with_subgraphs
from workers.engine_host import onnx_graph
from workers.engine_host.normaliser.ranges import Ranges
from workers.engine_host.normaliser.rewrites import constant_before, constant_of, name_of

LOWEST = 17  # an older opset means other things by the same words: Softmax before 13, BatchNormalization before 15
Rule = Callable[[ir.Node, Ranges], bool]


def spell_out(model: ModelProto, opset: int) -> ModelProto:
    """Replace operators that `opset` lacks by those that ONNX defines them by; without any, return the model itself."""
    newest = onnx_graph.opset_of(model)
    names = {node.op_type for node in with_subgraphs(model.graph.node) if node.domain in {"", "ai.onnx"}}
    lacking = sorted(name for name in names if _schema(name, opset) is None and _is_function(name, newest))
    if not lacking or opset < LOWEST:
        return model
    typed = ModelProto()
    typed.CopyFrom(model)
    typed.graph.value_info.extend(  # the inliner asks for the type of each input
        make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in model.graph.initializer
    )
    return inline_selected_functions(typed, [("", name) for name in lacking], inline_schema_functions=True)


def opset_of(model: ir.Model) -> int:
    """Return the model's version of ONNX's own operators."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))


def lower(model: ir.Model, opset: int, ranges: Ranges) -> tuple[ir.Model, list[str]]:
    """Return a model in the older opset and the names of the nodes that changed.

    If one operator cannot be brought back, the model itself is returned: half of it would help no compiler.
    """
    newest = opset_of(model)
    if newest <= opset or opset < LOWEST:
        return model, []
    lowered = ir.from_proto(ir.to_proto(model))  # a copy
    changed: list[str] = []
    for node in list(lowered.graph.all_nodes()):
        if node.domain not in {"", "ai.onnx"}:
            continue
        outcome = _lowered(node, newest, opset, ranges)
        if outcome is None:
            return model, []
        if outcome:
            changed.append(name_of(node))
    lowered.opset_imports[""] = opset
    return lowered, changed


def _lowered(node: ir.Node, newest: int, opset: int, ranges: Ranges) -> bool | None:
    """Bring one node back. Returns whether it changed, None if it cannot be brought back."""
    now, then = _schema(node.op_type, newest), _schema(node.op_type, opset)
    if now is None or then is None:
        return None
    if now.since_version == then.since_version:
        return False
    rule = _RULES.get(node.op_type)
    changed = False if rule is None else rule(node, ranges)
    changed |= _drop_defaults(node, now, then)
    return changed if _fits(node, then) else None


def _fits(node: ir.Node, schema: OpSchema) -> bool:
    inputs = [one for one in node.inputs if one is not None]
    known = set(node.attributes) <= set(schema.attributes)
    allowed = _VALUES.get(node.op_type, {})
    valued = all(node.attributes.get_string(name, values[0]) in values for name, values in allowed.items())
    return known and valued and schema.min_input <= len(inputs) and len(node.inputs) <= schema.max_input


def _drop_defaults(node: ir.Node, now: OpSchema, then: OpSchema) -> bool:
    """Leave out attributes that the older opset lacks, if they say what it means anyway."""
    dropped = False
    for name in set(node.attributes) - set(then.attributes):
        declared = now.attributes.get(name)
        default = (
            ir.from_proto(declared.default_value) if declared is not None and declared.default_value.name else None
        )
        if default is not None and default.value == node.attributes[name].value:
            del node.attributes[name]
            dropped = True
    return dropped


def _reduce(node: ir.Node, _ranges: Ranges) -> bool:
    axes = constant_of(node, 1)
    if axes is None or (not axes.size and bool(node.attributes.get_int("noop_with_empty_axes", None))):
        return False
    if axes.size:
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.reshape(-1)])
    node.resize_inputs(1)
    node.attributes.pop("noop_with_empty_axes", None)
    return True


def _split(node: ir.Node, ranges: Ranges) -> bool:
    """Say the sizes: the older opset knows none but equal ones by the number of outputs alone."""
    parts = node.attributes.get_int("num_outputs", None)
    if parts is None:
        return False
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is not None:
        size = ranges.size(shape[node.attributes.get_int("axis", 0)]).value
        if size is not None and size % parts:
            whole = -(-size // parts)
            sizes = np.array([whole] * (parts - 1) + [size - whole * (parts - 1)], np.int64)
            node.resize_inputs(2)
            node.replace_input_with(1, constant_before(node, "sizes", sizes))
        if size is not None:
            del node.attributes["num_outputs"]
    return "num_outputs" not in node.attributes


def _pad(node: ir.Node, _ranges: Ranges) -> bool:
    """Say the padding of every axis, where only some are named."""
    pads, axes = constant_of(node, 1), constant_of(node, 3)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if pads is None or axes is None or shape is None:
        return False
    rank = len(shape)
    every = np.zeros((2, rank), np.int64)
    every[:, [int(axis) % rank for axis in axes]] = pads.reshape(2, -1)
    node.replace_input_with(1, constant_before(node, "pads", every.reshape(-1)))
    node.resize_inputs(3)
    return True


def _resize(node: ir.Node, _ranges: Ranges) -> bool:
    """Say the scale of every axis, where only some are named."""
    axes = node.attributes.get_ints("axes", None)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    scales = constant_of(node, 2)
    if axes is None or shape is None or scales is None or not scales.size:
        return False
    every = np.ones(len(shape), scales.dtype)
    every[[axis % len(shape) for axis in axes]] = scales
    node.replace_input_with(2, constant_before(node, "scales", every))
    del node.attributes["axes"]
    return True


def _grid_sample(node: ir.Node, _ranges: Ranges) -> bool:
    mode = node.attributes.get_string("mode", "linear")
    node.attributes["mode"] = ir.AttrString("mode", {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode))
    return True


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_RULES: Mapping[str, Rule] = {
    **{f"Reduce{kind}": _reduce for kind in _REDUCTIONS},
    "GridSample": _grid_sample,
    "Pad": _pad,
    "Resize": _resize,
    "Split": _split,
}
_VALUES: Mapping[str, Mapping[str, tuple[str, ...]]] = {  # of attributes that took fewer values before
    "GridSample": {"mode": ("bilinear", "nearest", "bicubic")},
    "Pad": {"mode": ("constant", "reflect", "edge")},
    "Resize": {
        "coordinate_transformation_mode": (
            "half_pixel",
            "pytorch_half_pixel",
            "align_corners",
            "asymmetric",
            "tf_crop_and_resize",
        )
    },
    "ScatterElements": {"reduction": ("none", "add", "mul")},
    "ScatterND": {"reduction": ("none", "add", "mul")},
}


def _schema(name: str, opset: int) -> OpSchema | None:
    try:
        return get_schema(name, opset, "")
    except SchemaError:
        return None


def _is_function(name: str, opset: int) -> bool:
    schema = _schema(name, opset)
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]  # its stubs lack both
