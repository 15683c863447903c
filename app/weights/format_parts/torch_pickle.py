"""The pickles in PyTorch's checkpoints, read without PyTorch, and without running anything that they name.

A pickle names the functions that put its values together. Here each such name is looked up in a list of stand-ins, and
one that is not in the list is refused, as `torch.load(weights_only=True)` does (`torch/_weights_only_unpickler.py`).
What stands for a tensor is PyTorch's own description of it (`torch/_utils.py`, `_rebuild_tensor_v2` and its relatives).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO, Final, NamedTuple, TypeGuard

from app.weights.checkpoint import MAX_EXTENT, MAX_RANK, CheckpointError
from app.weights.format_parts.pickle_machine import INERT, Inert, run


class Storage(NamedTuple):
    """A run of elements that tensors share. `dtype` is None if the tensors say it; then `elements` are bytes."""

    key: str
    dtype: str | None
    elements: int


class TorchTensor(NamedTuple):
    """What a pickle says of a tensor: where it begins in its storage, and its sizes and strides, in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in the storage as they are counted, without gaps."""
        if 0 in self.shape:
            return True
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


class Unreadable(NamedTuple):
    """A tensor of a kind that is not read here. It matters only if it is one of the checkpoint's."""

    kind: str


class Loaded(NamedTuple):
    """What a pickle holds, its tensors as TorchTensor, and all storages that it refers to, by key."""

    value: object
    storages: Mapping[str, Storage]


class _Dtype(NamedTuple):
    name: str


class _StorageType(NamedTuple):
    dtype: str | None


def load(file: BinaryIO) -> Loaded:
    """Return the next object of a stream of pickles; raises CheckpointError."""
    storages: dict[str, Storage] = {}

    def persist(pid: object) -> Storage:
        storage = _storage(pid)
        if storages.setdefault(storage.key, storage) != storage:
            raise CheckpointError(
                "bad_header", "The pickle describes one storage in two ways. Save copies of tensors that share it."
            )
        return storage

    return Loaded(run(file, _find, persist), storages)


def _find(module: str, name: str) -> object:
    known = _KNOWN.get((module, name))
    if known is None:
        raise CheckpointError(
            "forbidden_pickle",
            f"The pickle in the file calls for {f'{module}.{name}'!r:.200}, and only tensors and plain values are "
            "read: a pickle can run any code. If you trust the file, load it with torch.load(..., weights_only=False) "
            "and save the state dict alone, with torch.save(model.state_dict(), ...) or as safetensors.",
        )
    return known


def _storage(pid: object) -> Storage:
    match pid:
        case ("storage", _StorageType(dtype), str(key), _, int(elements), *view):
            if _are_counts((elements,)) and not any(view):  # PyTorch 0.3 wrote parts of other storages
                return Storage(key, dtype, elements)
    raise CheckpointError("bad_header", "The pickle refers to something that is no storage. Save the checkpoint again.")


def _tensor(storage: object, offset: object, shape: object, strides: object, dtype: str | None) -> TorchTensor:
    kind = storage.dtype or dtype if isinstance(storage, Storage) else None
    start = (offset,)
    if not (isinstance(storage, Storage) and kind and _are_counts(start)) or not (
        _are_counts(shape) and _are_counts(strides) and len(shape) == len(strides)
    ):
        raise CheckpointError("bad_shape", "The pickle describes a tensor that cannot be. Save the checkpoint again.")
    return TorchTensor(storage, kind, start[0], shape, strides)


def _are_counts(values: object) -> TypeGuard[tuple[int, ...]]:
    return (
        isinstance(values, tuple)
        and len(values) <= MAX_RANK
        and all(type(one) is int and 0 <= one <= MAX_EXTENT for one in values)
    )


def _rebuild_tensor(
    storage: object, offset: object, shape: object, strides: object, _grad: object = None, _hooks: object = None,
    metadata: object = None,
) -> TorchTensor | Unreadable:  # fmt: skip
    if metadata:
        return Unreadable("conjugated or negated")
    return _tensor(storage, offset, shape, strides, None)


def _rebuild_tensor_v3(
    storage: object, offset: object, shape: object, strides: object, _grad: object, _hooks: object, dtype: object,
    metadata: object = None,
) -> TorchTensor | Unreadable:  # fmt: skip
    if metadata:
        return Unreadable("conjugated or negated")
    return _tensor(storage, offset, shape, strides, dtype.name if isinstance(dtype, _Dtype) else None)


def _rebuild_from_type(function: object, _type: object, arguments: object, _state: object) -> object:
    if not isinstance(arguments, tuple) or function not in _REBUILDERS:
        return Unreadable("derived")
    return _REBUILDERS[_REBUILDERS.index(function)](*arguments)


def _parameter(data: object, *_: object) -> object:
    return data


def _unreadable(kind: str) -> Callable[..., Unreadable]:
    return lambda *_: Unreadable(kind)


def _inert(*_: object) -> Inert:
    return INERT


def _ordered_dict(pairs: object = ()) -> dict[str, Any]:
    """Return the entries, which Python 2 gives as pairs; they are taken out of the list, for no list is copied."""
    entries: dict[str, Any] = {}
    while isinstance(pairs, list) and pairs:
        key, value = pairs.pop()
        if type(key) is str:
            entries.setdefault(key, value)
    return entries


def _size(sizes: object = ()) -> object:
    return tuple(sizes) if isinstance(sizes, list) and len(sizes) <= MAX_RANK else sizes


_REBUILDERS: Final[tuple[Callable[..., object], ...]] = (_rebuild_tensor, _rebuild_tensor_v3, _parameter)
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
_BUILTINS: Final = ("builtins", "__builtin__")  # by its name in Python 3, and in pickles of protocol 2
_QUANTIZERS: Final = (
    "tensor_affine", "tensor_symmetric", "channel_affine", "channel_symmetric", "channel_affine_float_qparams",
)  # fmt: skip
_INERT: Final = (
    ("torch", "device"), ("torch", "Generator"), ("torch", "Tensor"), ("torch.serialization", "_get_layout"),
    *(("torch", f"per_{kind}") for kind in _QUANTIZERS),
    ("numpy", "dtype"), ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
    ("argparse", "Namespace"), ("pathlib", "PosixPath"), ("pathlib", "WindowsPath"), ("datetime", "datetime"),
    ("datetime", "timedelta"), ("torch.torch_version", "TorchVersion"), ("_codecs", "encode"),
    ("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer"), ("collections", "Counter"),
    *((module, name) for module in _BUILTINS for name in ("set", "frozenset", "slice", "bytearray", "complex")),
)  # fmt: skip
_KNOWN: Final[Mapping[tuple[str, str], Callable[..., object] | _Dtype | _StorageType]] = MappingProxyType(
    {
        ("collections", "OrderedDict"): _ordered_dict,
        ("collections", "defaultdict"): lambda *_: {},
        ("torch", "Size"): _size,
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        ("torch.nn.parameter", "Parameter"): _parameter,
        ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
        ("torch._utils", "_rebuild_sparse_tensor"): _unreadable("sparse"),
        ("torch._utils", "_rebuild_qtensor"): _unreadable("quantized"),
        ("torch._utils", "_rebuild_nested_tensor"): _unreadable("nested"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage"): _unreadable("meta (without values)"),
        **{("torch", f"{name}Storage"): _StorageType(dtype) for name, dtype in _STORAGES.items()},
        **{("torch.storage", f"{name}Storage"): _StorageType(dtype) for name, dtype in _STORAGES.items()},
        **{("torch", name): _Dtype(dtype) for name, dtype in _DTYPES.items()},
        **dict.fromkeys(_INERT, _inert),
    }
)
