"""The pickles in PyTorch's checkpoints, read without PyTorch, and without running anything that they name.

A pickle names the functions that put its values together. Here each such name is looked up in a list of stand-ins, and
one that is not in the list is refused, as `torch.load(weights_only=True)` does (`torch/_weights_only_unpickler.py`).
What stands for a tensor is PyTorch's own description of it (`torch/_utils.py`, `_rebuild_tensor_v2` and its relatives).
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, BinaryIO, Final, NamedTuple, TypeGuard

from app.weights.checkpoint import CheckpointError


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements that tensors share. `dtype` is None if the tensors say it; then `elements` are bytes."""

    key: str
    dtype: str | None
    elements: int


@dataclass(frozen=True, slots=True)
class TorchTensor:
    """What a pickle says of a tensor: where it begins in its storage, and its sizes and strides, in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in the storage as they are counted, without gaps."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return 0 in self.shape
            expected *= size
        return True


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A tensor of a kind that is not read here. It matters only if it is one of the checkpoint's."""

    kind: str


@dataclass(frozen=True, slots=True)
class _Dtype:
    name: str


class _Inert:
    """Stands for a value that says nothing of tensors, such as a device or a scalar of numpy."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - as pickle declares it
        known = _KNOWN.get((module, name))
        if known is None:
            raise CheckpointError(
                "forbidden_pickle",
                f"The pickle in the file calls for {module}.{name}, and only tensors and plain values are read: a "
                "pickle can run any code. If you trust the file, load it with torch.load and save the state dict "
                "alone, with torch.save(model.state_dict(), ...) or as safetensors.",
            )
        return known

    def persistent_load(self, pid: object) -> Storage:
        match pid:
            case ("storage", _StorageType(dtype), str(key), _, int(elements), *_) if elements >= 0:
                return self.storages.setdefault(key, Storage(key, dtype, elements))
        raise CheckpointError("bad_header", f"The pickle refers to {pid!r:.100}, which is no storage. Save it again.")


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str | None


class Loaded(NamedTuple):
    """What a pickle holds, its tensors as TorchTensor, and all storages that it refers to, by key."""

    value: object
    storages: Mapping[str, Storage]


def load(file: BinaryIO) -> Loaded:
    """Return the next object of a stream of pickles; raises CheckpointError."""
    unpickler = _Unpickler(file)
    try:
        return Loaded(unpickler.load(), unpickler.storages)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle raises whatever its instructions come to
        raise CheckpointError(
            "bad_header",
            f"The pickle in the file cannot be read ({type(error).__name__}: {error!s:.200}). Upload the whole file, "
            "or save the checkpoint again.",
        ) from error


def _tensor(storage: object, offset: object, shape: object, strides: object, dtype: str | None) -> TorchTensor:
    kind = dtype if dtype is not None or not isinstance(storage, Storage) else storage.dtype
    start = (offset,)
    if not (isinstance(storage, Storage) and kind and _are_counts(start)) or not (
        _are_counts(shape) and _are_counts(strides) and len(shape) == len(strides)
    ):
        raise CheckpointError("bad_header", "The pickle describes a tensor that cannot be. Save the checkpoint again.")
    return TorchTensor(storage, kind, start[0], shape, strides)


def _are_counts(values: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and all(type(one) is int and one >= 0 for one in values)


def _rebuild_tensor_v2(storage: object, offset: object, shape: object, strides: object, *_: object) -> TorchTensor:
    return _tensor(storage, offset, shape, strides, None)


def _rebuild_tensor_v3(
    storage: object, offset: object, shape: object, strides: object, _grad: object, _hooks: object, dtype: object,
    *_: object,
) -> TorchTensor:  # fmt: skip
    return _tensor(storage, offset, shape, strides, dtype.name if isinstance(dtype, _Dtype) else None)


def _first(value: object, *_: object) -> object:
    return value


def _unreadable(kind: str, *_: object) -> Unreadable:
    return Unreadable(kind)


def _size(*sizes: Any) -> tuple[Any, ...]:  # noqa: ANN401 - whatever the pickle gives
    return tuple(*sizes)


_STORAGES: Final = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64", "Int": "I32", "Short": "I16",
    "Char": "I8", "Byte": "U8", "Bool": "BOOL", "ComplexFloat": "C64", "ComplexDouble": "C128",
    "Float8_e4m3fn": "F8_E4M3", "Float8_e5m2": "F8_E5M2", "QInt8": "QI8", "QUInt8": "QU8", "QInt32": "QI32",
    "Untyped": None,
}  # fmt: skip
_DTYPES: Final = {
    "float64": "F64", "double": "F64", "float32": "F32", "float": "F32", "float16": "F16", "half": "F16",
    "bfloat16": "BF16", "int64": "I64", "long": "I64", "int32": "I32", "int": "I32", "int16": "I16", "short": "I16",
    "int8": "I8", "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL",
    "complex64": "C64", "complex128": "C128", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
_INERT: Final = (
    ("torch", "device"), ("torch", "Generator"), ("torch.serialization", "_get_layout"),
    ("numpy", "dtype"), ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
    ("argparse", "Namespace"), ("pathlib", "PosixPath"), ("pathlib", "WindowsPath"), ("datetime", "datetime"),
    ("datetime", "timedelta"), ("torch.torch_version", "TorchVersion"), ("_codecs", "encode"),
)  # fmt: skip
_KNOWN: Final[Mapping[tuple[str, str], Callable[..., object] | _Dtype | _StorageType]] = MappingProxyType(
    {
        ("collections", "OrderedDict"): OrderedDict,
        ("collections", "defaultdict"): lambda *_: {},
        ("collections", "Counter"): dict,
        ("builtins", "set"): _size,
        ("builtins", "frozenset"): _size,
        ("builtins", "slice"): _Inert,
        ("builtins", "bytearray"): _Inert,
        ("builtins", "complex"): _Inert,
        ("__builtin__", "set"): _size,
        ("torch", "Size"): _size,
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor_v2,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
        ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
        ("torch._utils", "_rebuild_parameter"): _first,
        ("torch._utils", "_rebuild_parameter_with_state"): _first,
        ("torch.nn.parameter", "Parameter"): _first,
        ("torch._tensor", "_rebuild_from_type_v2"): lambda function, _type, values, _state: function(*values),
        ("torch", "Tensor"): _Inert,
        ("torch._utils", "_rebuild_sparse_tensor"): partial(_unreadable, "sparse"),
        ("torch._utils", "_rebuild_qtensor"): partial(_unreadable, "quantized"),
        ("torch._utils", "_rebuild_nested_tensor"): partial(_unreadable, "nested"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage"): partial(_unreadable, "meta (without values)"),
        **{("torch", f"{name}Storage"): _StorageType(dtype) for name, dtype in _STORAGES.items()},
        **{("torch.storage", f"{name}Storage"): _StorageType(dtype) for name, dtype in _STORAGES.items()},
        **{("torch", name): _Dtype(dtype) for name, dtype in _DTYPES.items()},
        **dict.fromkeys(_INERT, _Inert),
    }
)
