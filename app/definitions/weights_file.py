"""Writes the weights of an ONNX file as a safetensors file, one tensor at a time."""

from collections.abc import Mapping
from pathlib import Path

from onnx import TensorProto

from app.definitions.tensor_data import DTYPE_NAMES, tensor_bytes
from app.weights.formats.safetensors import arrange


def write_weights(path: Path, weights: Mapping[str, TensorProto]) -> None:
    """Write checked tensors to a new file under their names."""
    start, order = arrange({name: (DTYPE_NAMES[tensor.data_type], tensor.dims) for name, tensor in weights.items()})
    with path.open("xb") as file:
        file.write(start)
        for name in order:
            file.write(tensor_bytes(weights[name]))
