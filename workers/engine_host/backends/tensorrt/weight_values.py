"""The values for an engine's weights, each in the dtype that the engine takes."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import numpy as np
from onnx import numpy_helper

from app.definitions.tensor_data import DTYPE_NAMES
from app.weights.dtypes import numpy_dtype
from workers.channel.messages import ParameterSource
from workers.engine_host import onnx_graph
from workers.engine_host.backends.tensorrt.capabilities import Capabilities
from workers.engine_host.backends.tensorrt.layout import Layout, Slot, check_slot, fill_slot, slot_value
from workers.engine_host.backends.tensorrt.staged_weights import StagedWeights
from workers.engine_host.cuda.page_locked_values import PageLockedValues
from workers.engine_host.tensors import Array, MappedFiles, ParameterFiles, StoredValue


@dataclass(frozen=True, slots=True)
class Expected:
    """The dtype and shape that an engine's weight must have; its memory is row-major."""

    dtype: "np.dtype[Any]"
    shape: tuple[int, ...]


Named = tuple[str, Array, Expected]


class WeightValues:
    """The values for an engine's weights: slots, located or computed one by one, and the graph's own constants.

    Slots that `begin` was told of lie in the page-locked memory `memory`, as far as there is room. Nothing may use them
    any more when the block of this context manager ends.
    """

    def __init__(
        self,
        layout: Layout,
        parameters: Sequence[ParameterSource],
        files: ParameterFiles,
        step: Callable[[int, int], None],
        can: Capabilities,
        memory: PageLockedValues,
    ) -> None:
        self._layout = layout
        self._parameters = parameters
        self._files = files
        self._step = step
        self._can = can
        self._mapped = MappedFiles()
        self._located: dict[str, StoredValue] = {}
        self._contents = {one.name: one.content for one in parameters}
        self._staged = StagedWeights(memory, known_by=self._known_by, stored=self._stored, fill=self._fill)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._staged.close(failed=kind is not None)

    def locate(self, slots: Iterable[Slot]) -> None:
        """Find the parameters that slots are made from, unless they are found already."""
        needed = {source for slot in slots for source in slot.sources} - self._located.keys()
        if needed:
            self._located |= self._files.locate([one for one in self._parameters if one.name in needed], self._step)

    def in_order(self, slots: Sequence[Slot]) -> list[Slot]:
        """Return located slots as they lie in files, computed ones last."""

        def place(slot: Slot) -> tuple[bool, str, int]:
            value = self._located.get(slot.sources[0]) if len(slot.sources) == 1 else None
            return slot.is_computed or value is None, *((value.path, value.offset) if value else ("", 0))

        return sorted(slots, key=place)

    def take_kept(self, slots: Sequence[Slot]) -> list[Slot]:
        """Take the values that are kept from an earlier refit, and return the slots whose values are not."""
        self._staged.take_kept(slots)
        return [slot for slot in slots if slot not in self._staged]

    def begin(self, slots: Sequence[Slot]) -> None:
        """Begin to stage the values of these slots, which are located."""
        self._staged.begin(slots)

    def release(self, slots: Sequence[Slot]) -> None:
        """Let the staged values of these slots make room for others."""
        self._staged.release(slots)

    def of(self, slots: Sequence[Slot]) -> Iterator[Named]:
        """Yield each slot's name, its value, and the dtype and shape that the engine takes."""
        self.locate(slot for slot in slots if slot not in self._staged)
        for slot in slots:
            dtype = self._can.engine_dtype(slot.dtype)
            staged = self._staged.value(slot, dtype)
            yield self._named(slot) if staged is None else (slot.name, staged, Expected(dtype, slot.shape))

    def named(self, names: Sequence[str]) -> Iterator[Named]:
        """Yield the same for the slots and constants of these names; names that the graph lacks are left out."""
        yield from self.of([slot for slot in self._layout.slots if slot.name in names])
        for name, tensor in onnx_graph.constants_of(self._layout.model):
            if name in names:
                dtype = DTYPE_NAMES[tensor.data_type]
                yield self._expected(name, numpy_helper.to_array(tensor), dtype, tuple(tensor.dims))

    def _named(self, slot: Slot) -> Named:
        return self._expected(slot.name, slot_value(slot, self._located, self._mapped), slot.dtype, slot.shape)

    def _expected(self, name: str, array: Array, dtype: str, shape: tuple[int, ...]) -> Named:
        engine_dtype = self._can.engine_dtype(dtype)
        return name, _narrowed(array, engine_dtype), Expected(engine_dtype, shape)

    def _known_by(self, slot: Slot) -> tuple[Hashable, int]:
        dtype = self._can.engine_dtype(slot.dtype)
        key = slot, dtype.name, tuple(self._contents.get(one) for one in slot.sources)
        return key, prod(slot.shape) * dtype.itemsize

    def _fill(self, slot: Slot, memory: Array) -> None:
        """Write the value of a slot, as the engine takes it, into memory, U8."""
        dtype = self._can.engine_dtype(slot.dtype)
        target = memory.view(dtype).reshape(slot.shape)
        if dtype == numpy_dtype(slot.dtype):
            fill_slot(target, slot, self._located, self._mapped)
        else:
            np.copyto(target, self._named(slot)[1])

    def _stored(self, slot: Slot) -> StoredValue | None:
        """Return where the value of a slot lies as the engine takes it; None if it has to be computed."""
        if slot.is_computed or self._can.engine_dtype(slot.dtype) != numpy_dtype(slot.dtype):
            return None
        check_slot(slot, self._located)
        return self._located[slot.sources[0]]


def _narrowed(array: Array, dtype: "np.dtype[Any]") -> Array:
    """Return integers and doubles in the narrower dtype in which TensorRT computes them; anything else as it is.

    A value beyond the narrower dtype becomes its largest or smallest value, as in TensorRT's ONNX parser.
    """
    if array.dtype.kind not in "if" or not array.dtype.itemsize > dtype.itemsize == 4:
        return array
    bounds = np.iinfo(dtype) if dtype.kind == "i" else np.finfo(dtype)
    return np.clip(array, bounds.min, bounds.max).astype(dtype)
