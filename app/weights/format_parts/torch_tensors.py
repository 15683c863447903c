"""Which tensors a PyTorch checkpoint holds, and where their elements lie in the file."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from app.weights.checkpoint import CheckpointError, TensorSlot
from app.weights.dtypes import byte_count
from app.weights.format_parts.torch_pickle import Storage, TorchTensor, Unreadable

MAX_DEPTH: Final = 64

Found = tuple[tuple[str, ...], TorchTensor | Unreadable]  # the path to a tensor, and the tensor


def place_tensors(checkpoint: object, where: Callable[[Storage], tuple[int, int]]) -> list[TensorSlot]:
    """Return the tensors of an unpickled checkpoint in the order of their bytes.

    `where` gives the offset and the number of a storage's bytes in the file. The tensors of nested dictionaries are
    named by their paths, joined by dots, without what all of them begin with. Tensors in lists and under numbers are
    left out: those are an optimizer's. Raises CheckpointError for one that cannot be used where it lies.
    """
    found = list(_walk(checkpoint, ()))
    common = _common_folder([path for path, _ in found])
    slots = [_slot(".".join(path[common:]), tensor, where) for path, tensor in found]
    return sorted(slots, key=lambda slot: (slot.offset, slot.nbytes, slot.name))


def _walk(value: object, path: tuple[str, ...]) -> Iterator[Found]:
    if len(path) > MAX_DEPTH:
        raise CheckpointError("bad_header", f"The checkpoint has more than {MAX_DEPTH} levels. Save the state dict.")
    if isinstance(value, TorchTensor | Unreadable):
        yield path or ("tensor",), value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _walk(inner, (*path, key))


def _common_folder(paths: list[tuple[str, ...]]) -> int:
    """Return how many names all paths begin with, the last name of each left alone."""
    shared = min((len(path) for path in paths), default=1) - 1
    return next((depth for depth in range(shared) if len({path[depth] for path in paths}) > 1), shared)


def _slot(name: str, tensor: TorchTensor | Unreadable, where: Callable[[Storage], tuple[int, int]]) -> TensorSlot:
    if isinstance(tensor, Unreadable):
        raise CheckpointError(
            "unsupported_dtype",
            f"{name} is a {tensor.kind} tensor, and only dense ones are read. Save it dense, or leave it out.",
        )
    if not tensor.is_contiguous:
        raise CheckpointError(
            "not_contiguous",
            f"{name} is a view with strides {tensor.strides}, and tensors are used where they lie in the file. Save "
            "it with .contiguous(), or save the state dict as safetensors.",
        )
    start, nbytes = where(tensor.storage)
    slot = TensorSlot.checked(name, tensor.dtype, list(tensor.shape), start)
    begin = tensor.offset * (byte_count(tensor.dtype, 1) or 0)
    if begin + slot.nbytes > nbytes:
        raise CheckpointError(
            "bad_offsets",
            f"{name} ends {begin + slot.nbytes - nbytes} bytes behind its storage. Save the checkpoint again.",
        )
    return TensorSlot(name, tensor.dtype, slot.shape, start + begin, slot.nbytes)
