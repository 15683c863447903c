"""The element types and the bytes of an ONNX TensorProto.

Source: the comments of TensorProto in onnx.proto. A tensor has its values in `raw_data` (little endian) or in
the typed field that its type prescribes; 8- and 16-bit types, whole or floating, lie as bit patterns in
`int32_data`.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
from onnx import TensorProto

from app.definitions.rejection import Rejected
from app.weights.dtypes import DTYPES

DTYPE_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {
        TensorProto.DOUBLE: "F64",
        TensorProto.FLOAT: "F32",
        TensorProto.FLOAT16: "F16",
        TensorProto.BFLOAT16: "BF16",
        TensorProto.FLOAT8E4M3FN: "F8_E4M3",
        TensorProto.FLOAT8E5M2: "F8_E5M2",
        TensorProto.INT64: "I64",
        TensorProto.INT32: "I32",
        TensorProto.INT16: "I16",
        TensorProto.INT8: "I8",
        TensorProto.UINT64: "U64",
        TensorProto.UINT32: "U32",
        TensorProto.UINT16: "U16",
        TensorProto.UINT8: "U8",
        TensorProto.BOOL: "BOOL",
    }
)
ONNX_TYPES: Final[Mapping[str, int]] = MappingProxyType({name: code for code, name in DTYPE_NAMES.items()})
_TYPED_FIELDS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "F64": ("double_data", "<f8"),
        "F32": ("float_data", "<f4"),
        "I64": ("int64_data", "<i8"),
        "U64": ("uint64_data", "<u8"),
        "U32": ("uint64_data", "<u4"),
        "I32": ("int32_data", "<i4"),
    }
)
_BIT_PATTERNS = {1: "<u1", 2: "<u2"}  # by bytes per element
MAX_RANK = 16


def dtype_of(data_type: int, what: str) -> str:
    """Return the safetensors name of an ONNX element type; raises Rejected if there is none."""
    if data_type not in DTYPE_NAMES:
        known = data_type in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(TensorProto.DataType.ValueType(data_type)) if known else str(data_type)
        raise Rejected(
            "unsupported_dtype",
            f"{what} has element type {name}. Supported are {', '.join(DTYPES)}: convert it and export again.",
        )
    return DTYPE_NAMES[data_type]


def element_count(tensor: TensorProto) -> int:
    """Return the product of the dimensions; 1 for a scalar."""
    return math.prod(tensor.dims)


def byte_count(tensor: TensorProto) -> int:
    """Return how many bytes the dimensions and the type declare."""
    return element_count(tensor) * DTYPES[DTYPE_NAMES[tensor.data_type]].itemsize


def check_type(tensor: TensorProto, what: str) -> None:
    """Raise Rejected if a tensor has an unknown element type or dimensions that no tensor has."""
    dtype_of(tensor.data_type, what)
    if len(tensor.dims) > MAX_RANK or any(dim < 0 for dim in tensor.dims) or tensor.HasField("segment"):
        raise Rejected("bad_tensor", f"{what} has dimensions {list(tensor.dims)[:MAX_RANK]}: export the model again.")


def check_tensor(tensor: TensorProto, what: str) -> None:
    """Check that a tensor has the data it declares, inside the graph. Its values aren't looked at.

    Raises:
        Rejected: an unknown type, a negative dimension, or more or less data than declared.
    """
    check_type(tensor, what)
    dtype = DTYPE_NAMES[tensor.data_type]
    declared, actual = byte_count(tensor), _actual_bytes(tensor, dtype)
    if declared != actual:
        raise Rejected(
            "bad_tensor",
            f"{what} declares {list(tensor.dims)} of {dtype}, {declared} bytes, but holds {actual} bytes. "
            "The file is damaged or forged: export the model again.",
        )


def tensor_bytes(tensor: TensorProto) -> bytes:
    """Return a checked tensor's values, little endian and in C order, whichever field they lie in."""
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    dtype = DTYPE_NAMES[tensor.data_type]
    field, target = _typed_field(dtype)
    values = np.asarray(getattr(tensor, field))
    return values.astype(target, casting="unsafe").tobytes()


def _actual_bytes(tensor: TensorProto, dtype: str) -> int:
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    field, _ = _typed_field(dtype)
    return len(getattr(tensor, field)) * DTYPES[dtype].itemsize


def _typed_field(dtype: str) -> tuple[str, str]:
    return _TYPED_FIELDS.get(dtype) or ("int32_data", _BIT_PATTERNS[DTYPES[dtype].itemsize])


def external_tensor(name: str, dtype: str, shape: Sequence[int]) -> TensorProto:
    """Return the initializer that stands for a parameter: type and dimensions, and no values.

    Its data is declared to lie in a file "weights" that is never written: a backend supplies it by name.
    """
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    tensor = TensorProto(name=name, data_type=ONNX_TYPES[dtype], dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights"), ("offset", "0"), ("length", str(nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor
