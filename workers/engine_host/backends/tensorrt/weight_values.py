"""The values for an engine's weights, each in the dtype that the engine takes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import numpy_helper

from app.definitions.tensor_data import DTYPE_NAMES
from workers.channel.messages import ParameterSource
from workers.engine_host import onnx_graph
from workers.engine_host.backends.tensorrt.capabilities import Capabilities
from workers.engine_host.backends.tensorrt.layout import Layout, Slot, slot_value
from workers.engine_host.tensors import Array, MappedFiles, ParameterFiles, StoredValue


@dataclass(frozen=True, slots=True)
class Expected:
    """The dtype and shape that an engine's weight must have; its memory is row-major."""

    dtype: "np.dtype[Any]"
    shape: tuple[int, ...]


Named = tuple[str, Array, Expected]


class WeightValues:
    """The values for an engine's weights: slots, located or computed one by one, and the graph's own constants."""

    def __init__(
        self,
        layout: Layout,
        parameters: Sequence[ParameterSource],
        files: ParameterFiles,
        step: Callable[[int, int], None],
        can: Capabilities,
    ) -> None:
        self._layout = layout
        self._parameters = parameters
        self._files = files
        self._step = step
        self._can = can
        self._mapped = MappedFiles()
        self._located: dict[str, StoredValue] = {}

    def locate(self, slots: Iterable[Slot]) -> None:
        """Find the parameters that slots are made from, unless they are found already."""
        needed = {source for slot in slots for source in slot.sources} - self._located.keys()
        if needed:
            self._located |= self._files.locate([one for one in self._parameters if one.name in needed], self._step)

    def of(self, slots: Sequence[Slot]) -> Iterator[Named]:
        """Yield each slot's name, its value, and the dtype and shape that the engine takes."""
        self.locate(slots)
        for slot in slots:
            yield self._named(slot.name, slot_value(slot, self._located, self._mapped), slot.dtype, slot.shape)

    def named(self, names: Sequence[str]) -> Iterator[Named]:
        """Yield the same for the slots and constants of these names; names that the graph lacks are left out."""
        yield from self.of([slot for slot in self._layout.slots if slot.name in names])
        for name, tensor in onnx_graph.constants_of(self._layout.model):
            if name in names:
                dtype = DTYPE_NAMES[tensor.data_type]
                yield self._named(name, numpy_helper.to_array(tensor), dtype, tuple(tensor.dims))

    def _named(self, name: str, array: Array, dtype: str, shape: tuple[int, ...]) -> Named:
        engine_dtype = self._can.engine_dtype(dtype)
        return name, _narrowed(array, engine_dtype), Expected(engine_dtype, shape)


def _narrowed(array: Array, dtype: "np.dtype[Any]") -> Array:
    """Return integers and doubles in the narrower dtype in which TensorRT computes them; anything else as it is.

    A value beyond the narrower dtype becomes its largest or smallest value, as in TensorRT's ONNX parser.
    """
    if array.dtype.kind not in "if" or not array.dtype.itemsize > dtype.itemsize == 4:
        return array
    bounds = np.iinfo(dtype) if dtype.kind == "i" else np.finfo(dtype)
    return np.clip(array, bounds.min, bounds.max).astype(dtype)
