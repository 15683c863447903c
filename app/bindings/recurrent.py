"""How PyTorch's weights of a recurrent layer become the W, R and B of ONNX.

Source: LSTM and GRU in PyTorch's documentation and in that of ONNX's operators. ONNX has the gates in another order,
an axis of directions in front, and both biases of a direction in one row.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from app.bindings.companions import Companion, TypedTensor

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
