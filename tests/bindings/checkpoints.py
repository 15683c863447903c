"""Checkpoints in memory, bound as the service binds stored ones."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from blake3 import blake3

from app.bindings.embedded import EmbeddedWeights
from app.bindings.report import BindingReport
from app.bindings.service import Pair
from app.definitions.parameter import Parameter
from app.weights.dtypes import DTYPES, numpy_dtype
from app.weights.manifest import TensorEntry

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = Mapping[str, Array]
NAMES = {numpy_dtype(name): name for name in DTYPES}


class Checkpoint:
    """Named arrays, and their bytes in one blob."""

    def __init__(self, arrays: Arrays, blob: str) -> None:
        self.arrays = arrays
        self.blob = blob
        self.raw = b"".join(array.tobytes() for array in arrays.values())
        self.entries: dict[str, TensorEntry] = {}
        offset = 0
        for name, array in arrays.items():
            raw = array.tobytes()
            digest = blake3(raw).hexdigest()
            self.entries[name] = TensorEntry(name, NAMES[array.dtype], array.shape, digest, blob, offset, len(raw))
            offset += len(raw)

    @property
    def rows(self) -> list[Any]:
        return [[e.name, e.dtype, list(e.shape), e.blake3, e.blob, e.offset, e.nbytes] for e in self.entries.values()]


class Bench:
    """A definition whose parameters are those of `first`, and a checkpoint to bind to it.

    With `embedded`, `first` are also the values it came with.
    """

    def __init__(
        self,
        first: Arrays,
        checkpoint: Arrays,
        *,
        embedded: bool = False,
        defaults: Sequence[Any] = (),
        constants: Arrays | None = None,
    ) -> None:
        self.first, self.checkpoint = Checkpoint(first, "first"), Checkpoint(checkpoint, "checkpoint")
        parameters = [Parameter(name, array.shape, NAMES[array.dtype]) for name, array in first.items()]
        unread: Any = SimpleNamespace(non_finite=None)
        self.pair = Pair(
            unread,
            unread,
            tuple(parameters),
            self.checkpoint.rows,
            tuple(defaults),
            EmbeddedWeights(self.first.entries if embedded else {}),
            {name: blake3(array.tobytes()).hexdigest() for name, array in (constants or {}).items()},
        )

    def read(self, digest: str, offset: int, length: int) -> bytes:
        blob = self.first if digest == "first" else self.checkpoint
        return blob.raw[offset : offset + length]

    def check(self, *rules: Any) -> BindingReport:  # noqa: ANN401 - JSON
        return self.pair.check(rules, self.read)

    def bound(self, report: BindingReport) -> dict[str, Array]:
        """What each parameter gets."""
        arrays = self.checkpoint.arrays
        return {one.parameter: one.apply([arrays[name] for name in one.tensors]) for one in report.bindings}
