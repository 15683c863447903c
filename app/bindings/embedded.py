"""What the weights that a definition came with tell of others: which tensor is which parameter, and what is tied."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Final, Self

from blake3 import blake3

from app.errors import ServiceError
from app.weights.dtypes import DTYPES, numpy_dtype, view
from app.weights.manifest import TensorEntry

if TYPE_CHECKING:
    from app.bindings.steps import Array

Read = Callable[[str, int, int], bytes]  # digest of a blob, offset and length in bytes

SIDE: Final = 16  # rows and columns that are compared of a matrix
SPAN_BYTES: Final = 512 * 1024  # read at once to get a few columns of these rows
READING_S: Final = 2.0  # for a check, which every request for an engine waits for
PROPOSING_S: Final = 20.0  # a busy machine takes seconds to read a thousand tensors, and without them nothing is told
EQUAL: Final = 1 - 1e-12  # cosine of the same values, but for rounding
ALIKE: Final = 0.9  # cosine of values that were trained from the same
UNLIKE: Final = 0.5  # and of others, whose expectation is 0
MIN_ALIKE: Final = 16  # values that are compared: fewer are alike by chance
MAX_HASHED_BYTES: Final = 64 * 1024 * 1024  # of a constant that is made to be compared
MAX_PAIRS: Final = 256


@dataclass(frozen=True)
class EmbeddedWeights:
    """The tensors that a definition's parameters had at first, by the parameters' names."""

    entries: Mapping[str, TensorEntry]

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Groups of matrices of equal values; those that are all zeros or all ones are equal by chance."""
        groups: dict[tuple[str, tuple[int, ...], str], list[str]] = defaultdict(list)
        for name, entry in self.entries.items():
            if len(entry.shape) > 1:
                groups[entry.dtype, entry.shape, entry.blake3].append(name)
        return tuple(
            tuple(names) for names in groups.values() if len(names) > 1 and not is_constant(self.entries[names[0]])
        )

    @cached_property
    def mirrors(self) -> dict[tuple[str, str], bool]:
        """What is known of pairs of matrices: whether one is the other transposed. See `ties`."""
        return {}

    @cached_property
    def mirrored(self) -> tuple[tuple[str, str], ...]:
        """Pairs of matrices whose shapes are each other's transposed, those of the rarest shapes first.

        There are as many as are worth a look. A head and its table are alone of their shape, layers are many.
        """
        by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, entry in self.entries.items():
            if len(entry.shape) == 2 and min(entry.shape) > 1:
                by_shape[entry.shape].append(name)
        pairs = [
            (one, other)
            for shape, names in sorted(by_shape.items(), key=lambda item: len(item[1]))
            for one in names
            for other in by_shape.get(shape[::-1], ())
            if one < other
        ]
        return tuple(pairs[:MAX_PAIRS])


@dataclass
class Samples:
    """Some values of stored tensors, read on first use, until the deadline of the monotonic clock."""

    read: Read
    deadline: float
    values: dict[tuple[str, int], "Array | None"] = field(default_factory=dict)

    @classmethod
    def to_check(cls, read: Read) -> Self:
        """Begin the time of a check."""
        return cls(read, time.monotonic() + READING_S)

    @classmethod
    def to_propose(cls, read: Read) -> Self:
        """Begin the time of a proposal."""
        return cls(read, time.monotonic() + PROPOSING_S)

    def of(self, entry: TensorEntry) -> "Array | None":
        """Return the first values of a tensor as F64: SIDE by SIDE of a matrix, at most; None if time is up.

        Also None if a file cannot be read: no more are tried then, and whoever needs the tensor itself says so.
        """
        key = entry.blob, entry.offset
        if key not in self.values:
            is_readable = entry.dtype in DTYPES and entry.nbytes and time.monotonic() < self.deadline
            try:
                self.values[key] = self._read(entry) if is_readable else None
            except (ServiceError, EOFError):  # it is gone, or too short
                self.values[key], self.deadline = None, 0.0
        return self.values[key]

    def _read(self, entry: TensorEntry) -> "Array":
        import numpy as np  # noqa: PLC0415 - the API starts without numpy

        rows = entry.shape[0] if len(entry.shape) > 1 else 1
        columns = prod(entry.shape) // rows
        side = SIDE if len(entry.shape) > 1 else SIDE * SIDE
        kept = min(rows, SIDE), min(columns, side)
        size = DTYPES[entry.dtype].itemsize
        if kept[0] * columns * size <= SPAN_BYTES:
            raw = self._bytes(entry, 0, kept[0] * columns * size)
            return view(raw, entry.dtype, (kept[0], columns))[:, : kept[1]].astype(np.float64)
        pieces = [self._bytes(entry, row * columns * size, kept[1] * size) for row in range(kept[0])]
        return view(b"".join(pieces), entry.dtype, kept).astype(np.float64)

    def _bytes(self, entry: TensorEntry, start: int, length: int) -> bytes:
        raw = self.read(entry.blob, entry.offset + start, length)
        if len(raw) < length:
            raise EOFError(entry.blob)
        return raw


@dataclass
class ValuesOfEmbedded:
    """Compares tensors with the values that the parameters had at first (see `KnownValues`)."""

    embedded: EmbeddedWeights
    tensors: Mapping[str, TensorEntry]
    samples: Samples
    stacks: dict[tuple[tuple[str, ...], tuple[int, ...]], "_Stack"] = field(default_factory=dict)

    def partner(self, parameter: str, tensors: tuple[str, ...]) -> tuple[str, bool, str] | None:
        """Return the one tensor whose values are the parameter's, whether transposed, and how that is known."""
        mine = self.embedded.entries.get(parameter)
        if mine is None:
            return None
        stack = self._stack(tensors, mine.shape)
        equal = stack.equal.get((mine.dtype, mine.shape, mine.blake3), ())
        if len(equal) == 1:
            return equal[0], False, f"{equal[0]} has the very values of {parameter} in the definition's own weights"
        sample = self.samples.of(mine)
        found = None if sample is None else stack.closest(sample)
        if found is None:
            return None
        name, turned, score = found
        return name, turned, _closeness(parameter, name, score, turned=turned)

    def is_transposed(self, parameter: str, tensor: str) -> tuple[bool, str] | None:
        """Say whether a square tensor lies the other way round than the parameter, and how that is known."""
        found = self.partner(parameter, (tensor,))
        return None if found is None else found[1:]

    def _stack(self, tensors: tuple[str, ...], shape: tuple[int, ...]) -> "_Stack":
        key = tensors, shape
        if key not in self.stacks:
            self.stacks[key] = _Stack.of([self.tensors[name] for name in tensors], shape, self.samples)
        return self.stacks[key]


@dataclass(frozen=True)
class _Stack:
    """The tensors of one shape or of it transposed: their digests, and their sampled values as rows of length 1."""

    equal: Mapping[tuple[str, tuple[int, ...], str], Sequence[str]]
    ways: Sequence[tuple[str, bool]]  # the name of each row, and whether it is transposed
    rows: "Array | None"

    @classmethod
    def of(cls, entries: Sequence[TensorEntry], shape: tuple[int, ...], samples: Samples) -> "_Stack":
        import numpy as np  # noqa: PLC0415 - the API starts without numpy

        equal: dict[tuple[str, tuple[int, ...], str], list[str]] = defaultdict(list)
        ways, rows = [], []
        for entry in entries:
            equal[entry.dtype, entry.shape, entry.blake3].append(entry.name)
            sample = samples.of(entry)
            if sample is None:
                continue
            if entry.shape == shape:
                ways.append((entry.name, False))
                rows.append(_unit(sample))
            if len(shape) == 2 and entry.shape == shape[::-1]:
                ways.append((entry.name, True))
                rows.append(_unit(sample.T))
        return cls(equal, ways, np.stack(rows) if rows else None)

    def closest(self, sample: "Array") -> tuple[str, bool, float] | None:
        """Return the one row that is equal, or that is alike while all others are unlike.

        Layers that were copied from one another before training are alike, and only equal values tell them apart.
        """
        if self.rows is None or sample.size < MIN_ALIKE:
            return None
        scores = self.rows @ _unit(sample)
        best = int(scores.argmax())
        others = sorted(scores.tolist())[:-1]
        second = others[-1] if others else 0.0
        is_equal = scores[best] > EQUAL >= second
        if not is_equal and (scores[best] < ALIKE or second > UNLIKE):
            return None
        return *self.ways[best], float(scores[best])


def is_constant(entry: TensorEntry) -> bool:
    """Whether all elements of a tensor are 0 or all are 1."""
    if entry.nbytes > MAX_HASHED_BYTES or entry.dtype not in DTYPES:
        return False
    import numpy as np  # noqa: PLC0415 - the API starts without numpy

    one = np.ones((), numpy_dtype(entry.dtype)).tobytes()
    count = prod(entry.shape)
    return entry.blake3 in {blake3(bytes(entry.nbytes)).hexdigest(), blake3(one * count).hexdigest()}


def _unit(sample: "Array") -> "Array":
    """Return the values in a row of length 1; of length 0 if they have none that could be compared."""
    import numpy as np  # noqa: PLC0415 - the API starts without numpy

    row = sample.reshape(-1)
    length = float(np.linalg.norm(row))
    return row / length if length and np.isfinite(length) else np.zeros_like(row)


def _closeness(parameter: str, tensor: str, score: float, *, turned: bool) -> str:
    way = "transposed, " if turned else ""
    how = "equal" if score > EQUAL else f"are close to (cosine {score:.3f})"
    return f"some values of {tensor}, {way}{how} those of {parameter} in the definition's own weights"
