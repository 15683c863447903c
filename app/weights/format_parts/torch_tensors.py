"""Which tensors a PyTorch checkpoint holds, and where their elements lie in the file."""

from collections.abc import Callable, Iterator
from typing import Final

from app.weights.checkpoint import MAX_TENSORS, CheckpointError, TensorSlot
from app.weights.dtypes import byte_count
from app.weights.format_parts.torch_pickle import Storage, TorchTensor, Unreadable

MAX_DEPTH: Final = 64
MAX_VALUES: Final = 10 * MAX_TENSORS  # a dictionary may be in itself by many ways


def place_tensors(checkpoint: object, where: Callable[[Storage], tuple[int, int]]) -> list[TensorSlot]:
    """Return the tensors of an unpickled checkpoint in the order of their bytes.

    `where` gives the offset and the number of a storage's bytes in the file. The tensors of nested dictionaries are
    named by their paths, joined by dots, without what all of them begin with. Tensors in lists and under numbers are
    left out: those are an optimizer's. Raises CheckpointError for one that cannot be used where it lies.
    """
    found = [(path, value) for path, value in _walk(checkpoint) if isinstance(value, TorchTensor | Unreadable)]
    if not found:
        raise CheckpointError(
            "no_tensors",
            "The PyTorch checkpoint holds no tensors by name; those in lists or under numbers are an optimizer's, and "
            "arrays of numpy are left out. Save the state dict, with torch.save(model.state_dict(), ...), or arrays "
            "with numpy.savez.",
        )
    if len(found) > MAX_TENSORS:
        raise CheckpointError("too_many_tensors", f"The file has {len(found)} tensors; at most {MAX_TENSORS} fit.")
    common = _common_folder([path for path, _ in found])
    slots = [_slot(".".join(path[common:]), tensor, where) for path, tensor in found]
    return sorted(slots, key=lambda slot: (slot.offset, slot.nbytes, slot.name))


def _walk(checkpoint: object) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield every value that can be reached by names, with the names on the way."""
    to_do: list[tuple[tuple[str, ...], object]] = [((), checkpoint)]
    for _ in range(MAX_VALUES):
        if not to_do:
            return
        path, value = to_do.pop()
        if not isinstance(value, dict):
            yield path or ("tensor",), value
        elif len(path) < MAX_DEPTH:
            to_do.extend(((*path, key), inner) for key, inner in value.items())
        else:
            raise CheckpointError("bad_header", f"The checkpoint has over {MAX_DEPTH} levels. Save the state dict.")
        if len(to_do) > MAX_VALUES:
            break
    raise CheckpointError("too_many_tensors", f"The checkpoint has over {MAX_VALUES} values. Save the state dict.")


def _common_folder(paths: list[tuple[str, ...]]) -> int:
    """Return how many names all paths begin with, the last name of each left alone."""
    shared = min((len(path) for path in paths), default=1) - 1
    return next((depth for depth in range(shared) if len({path[depth] for path in paths}) > 1), shared)


def _slot(name: str, tensor: TorchTensor | Unreadable, where: Callable[[Storage], tuple[int, int]]) -> TensorSlot:
    if isinstance(tensor, Unreadable):
        raise CheckpointError(
            "unsupported_dtype",
            f"{name} is a {tensor.kind} tensor, and only plain ones are read. Save it as one (.dequantize(), "
            ".to_dense(), .resolve_conj(), .resolve_neg()), or leave it out.",
        )
    if not tensor.is_contiguous:
        raise CheckpointError(
            "not_contiguous",
            f"{name} is a view with strides {tensor.strides}, and tensors are used where they lie in the file. Save "
            "it with .contiguous().",
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
