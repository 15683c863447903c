"""How PyTorch's weights of a recurrent layer become the W, R and B of ONNX.

Source: LSTM and GRU in PyTorch's documentation and in that of ONNX's operators. ONNX has the gates in another order,
an axis of directions in front, and both biases of a direction in one row.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.bindings.companions import Companion, TypedTensor, companion
from app.bindings.steps import TensorType, Transform, TransformError, infer_all
from app.bindings.transform_json import transform_from_json

_ORDERS: Final = {4: "ifco->iofc", 3: "rzh->zrh"}  # of the gates of an LSTM and of a GRU, by their number
REVERSE: Final = "_reverse"


def gates(tensor: str, known: Companion, tensors: Mapping[str, TypedTensor]) -> str:
    """Say which rule makes the parameter of ONNX's operator of a tensor and of those that belong with it."""
    names, steps = feeding(tensor, known.part, tensors)
    both = " of both directions" if any(name.endswith(REVERSE) for name in names) else ""
    return (
        "ONNX keeps the gates in another order than PyTorch, and both biases in one tensor. Name the parameter of the "
        f"operator in a rule with {json.dumps(names)} as its tensors and the transforms {json.dumps(steps)}, which "
        f"make it{both}."
    )


def feeding(tensor: str, part: str, tensors: Mapping[str, TypedTensor]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the tensors that make one parameter together, and the transforms."""
    whole = re.sub("(weight|bias)_[ih]h", r"\1_{}", part.removesuffix(REVERSE))
    kinds = ("ih", "hh") if part.startswith("bias") else (re.findall("_([ih]h)_", part)[0],)
    forward = [tensor.removesuffix(part) + whole.format(kind) for kind in kinds]
    backward = [f"{name}{REVERSE}" for name in forward]
    names = forward + (backward if all(name in tensors for name in backward) else [])
    directions = len(names) // len(forward)
    rows = tensors[tensor].shape[0] if tensors[tensor].shape else 0
    steps = _reordered(rows, tensors.get(tensor.removesuffix(part) + re.sub("(weight|bias)_[ih]h", "weight_hh", part)))
    if part.startswith("bias"):
        return names, [*steps, {"op": "concat", "axis": 0}, {"op": "reshape", "shape": [directions, 2 * rows]}]
    steps.append({"op": "reshape", "shape": [1, *tensors[tensor].shape]})
    return names, [*steps, {"op": "concat", "axis": 0}] if directions > 1 else steps


def _reordered(rows: int, inner: TypedTensor | None) -> list[dict[str, Any]]:
    """Return the step that puts the gates in order; `inner` is the layer's weight_hh, [gates x hidden, hidden]."""
    hidden = inner.shape[1] if inner is not None and len(inner.shape) == 2 else 0
    order = _ORDERS.get(rows // hidden if hidden and rows % hidden == 0 else 0)
    return [{"op": "reorder", "axis": 0, "order": order}] if order else []


@dataclass(frozen=True, slots=True)
class Made:
    """What the tensors of a recurrent layer make together: a parameter of this shape."""

    tensors: tuple[str, ...]
    transforms: tuple[Transform, ...]
    shape: tuple[int, ...]


def made_of(tensors: Mapping[str, TypedTensor], names: Iterable[str]) -> list[Made]:
    """Return the W, R and B of ONNX that the recurrent layers among these tensors make, each once."""
    found: dict[tuple[str, ...], Made] = {}
    for name in names:
        known = companion(name, tensors)
        if known is None or known.role != "recurrent part":
            continue
        used, steps = feeding(name, known.part, tensors)
        if tuple(used) in found or any(one not in tensors for one in used):
            continue
        transforms = tuple(transform_from_json(one) for one in steps)
        try:
            made, _ = infer_all(transforms, [TensorType(tensors[one].dtype, tensors[one].shape) for one in used])
        except TransformError:
            continue
        found[tuple(used)] = Made(tuple(used), transforms, made.shape)
    return list(found.values())
