"""Checkpoint files, whatever their format: the tensors in them, what is accepted of them, and what a format does."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Protocol, TypeGuard

from app.weights.dtypes import DTYPES, byte_count, is_foreign

MAX_TENSORS = 100_000
MAX_NAME_LENGTH = 512
MAX_RANK = 16
MAX_EXTENT = 2**48
START_BYTES = 512  # enough for every magic number in use; that of a tar archive ends at byte 265

Read = Callable[[int, int], bytes]  # offset and length in bytes; fewer bytes come only if the file ends


class CheckpointError(ValueError):
    """A file that cannot be used; `code` is for programs, `detail` names the remedy.

    Codes of any format: unknown_format, truncated_file, too_many_tensors, bad_tensor_name, unsupported_dtype,
    bad_shape, bad_offsets. A format may add its own, as safetensors adds bad_header and header_too_large.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Where one tensor lies. `offset` counts bytes from the start of the file.

    `dtype` is a key of `DTYPES`, or the name of a foreign one, which no binding can use.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @classmethod
    def checked(cls, name: str, dtype: object, shape: object, offset: int, nbytes: int | None = None) -> "TensorSlot":
        """Make a slot of what a file says; raises CheckpointError if its name, dtype or shape is not accepted.

        `nbytes` is what the file says of the tensor's size, if it does.
        """
        check_name(name)
        if not isinstance(dtype, str) or not (dtype in DTYPES or is_foreign(dtype)):
            raise _unsupported(name, dtype)
        if not are_sizes(shape) or len(shape) > MAX_RANK:
            raise CheckpointError(
                "bad_shape", f"The shape of {name} must be at most {MAX_RANK} integers from 0 to 2**48."
            )
        needed = byte_count(dtype, prod(shape))
        if needed is None and nbytes is None:
            raise _unsupported(name, dtype)
        if None not in {needed, nbytes} and needed != nbytes:
            raise CheckpointError("bad_offsets", f"{name} is {dtype}{shape}, so {needed} bytes, but has {nbytes}.")
        return cls(name, dtype, tuple(shape), offset, needed if needed is not None else nbytes or 0)

    @property
    def end(self) -> int:
        """The offset of the first byte behind the tensor."""
        return self.offset + self.nbytes

    def has_bytes_of(self, other: "TensorSlot") -> bool:
        """Whether the two are one tensor by two names, as tied ones are in a file that keeps them once."""
        return (self.offset, self.nbytes, self.dtype) == (other.offset, other.nbytes, other.dtype)


class CheckpointFormat(Protocol):
    """One checkpoint format: a module of `app.weights.formats`, or what an entry point names.

    Its tensors are used where they lie in the uploaded file. So each must be one range of bytes there: little
    endian, row-major and not compressed. Two may have the same bytes, if the file keeps tied tensors once; none may
    overlap another otherwise.
    """

    def recognises(self, start: bytes) -> bool:
        """Whether a file that starts with these bytes is of this format, be it damaged or not.

        `start` is the first START_BYTES bytes, or the whole of a shorter file.
        """

    def read_slots(self, read: Read, size: int) -> list[TensorSlot]:
        """Return the tensors of a recognised file of `size` bytes, in the order of their bytes.

        Read only what tells where the tensors lie, and bound the memory that a forged file can ask for. Make each
        with `TensorSlot.checked`. Raises CheckpointError if the file is damaged or holds what is not supported.
        """


def _unsupported(name: str, dtype: object) -> CheckpointError:
    return CheckpointError(
        "unsupported_dtype", f"{name} has dtype {dtype!r:.40}. Convert it to one of {', '.join(DTYPES)}."
    )


def are_sizes(values: object) -> TypeGuard[list[int]]:
    """Whether a value read from JSON is a list of integers from 0 to MAX_EXTENT."""
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_EXTENT for value in values
    )


def check_name(name: str) -> None:
    """Raise CheckpointError "bad_tensor_name" for a name that would do harm in a path, a log or an ONNX file."""
    if not name or not is_safe_name(name):
        raise CheckpointError(
            "bad_tensor_name",
            f"The tensor name {name!r:.200} is not acceptable: names have 1 to {MAX_NAME_LENGTH} printable characters "
            "and no '..' as a path part. Rename the tensor.",
        )


def is_safe_name(name: str) -> bool:
    """Whether a name has at most MAX_NAME_LENGTH characters, all printable, and no ".." as a path part."""
    return len(name) <= MAX_NAME_LENGTH and name.isprintable() and ".." not in name.replace("\\", "/").split("/")
