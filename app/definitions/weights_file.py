"""Writes the weights of an ONNX file as a safetensors file, one tensor at a time.

Format: https://github.com/huggingface/safetensors#format. Tensors lie in the order of falling element size, so
that each is aligned to its element size.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from onnx import TensorProto

from app.definitions.tensor_data import DTYPE_NAMES, byte_count, tensor_bytes
from app.weights.dtypes import DTYPES

ALIGNMENT = 8


def write_weights(path: Path, weights: Mapping[str, TensorProto]) -> None:
    """Write checked tensors to a new file under their names."""
    ordered = sorted(weights.items(), key=lambda item: (-DTYPES[DTYPE_NAMES[item[1].data_type]].bits, item[0]))
    header: dict[str, object] = {}
    offset = 0
    for name, tensor in ordered:
        stop = offset + byte_count(tensor)
        dtype = DTYPE_NAMES[tensor.data_type]
        header[name] = {"dtype": dtype, "shape": list(tensor.dims), "data_offsets": [offset, stop]}
        offset = stop
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    with path.open("xb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for _, tensor in ordered:
            file.write(tensor_bytes(tensor))
