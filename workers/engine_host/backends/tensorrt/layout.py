"""How a definition's parameters become an engine's weights: which initializers are compiled, and their values.

TensorRT refits weights by the names of initializers. Most initializers are one parameter's bytes where they lie. Others
are computed from parameters, for two reasons. The parser makes nameless weights from a BatchNormalization's four
tensors, so these weights are made here and get names (`batch_normalization`). And each weight costs a refit some
milliseconds whatever its size, so small weights may be packed (`packing`). Bindings, differences and users see
parameters only.

A layout follows from the definition and the value of the option `refit_layout` alone. It is made again whenever an
engine is loaded.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from onnx import ModelProto

from app.fleet.refit_patterns import RefitPatternError, RefitPatterns
from workers.channel.messages import BackendError
from workers.engine_host.backends.tensorrt.batch_normalization import fold_batch_normalizations
from workers.engine_host.backends.tensorrt.graph_rewrite import Draft
from workers.engine_host.backends.tensorrt.packing import pack
from workers.engine_host.backends.tensorrt.slots import Slot
from workers.engine_host.backends.tensorrt.transposed_weights import turn_weights
from workers.engine_host.tensors import Array, MappedFiles, StoredValue

LAYOUTS: Final = ("plain", "packed")  # values of the option `refit_layout`

__all__ = ["Layout", "Slot", "changed_slots", "check_slot", "fill_slot", "lay_out", "slot_value"]


@dataclass(frozen=True)
class Layout:
    """The graph that is compiled and its slots: one for each initializer without a value, in the same order."""

    model: ModelProto
    slots: tuple[Slot, ...]

    @cached_property
    def readers(self) -> Mapping[str, tuple[Slot, ...]]:
        """The slots made from each parameter, by its name; a parameter without influence on the outputs is absent."""
        readers: dict[str, tuple[Slot, ...]] = {}
        for slot in self.slots:
            for source in dict.fromkeys(slot.sources):
                readers[source] = (*readers.get(source, ()), slot)
        return readers

    def holds(self, dtype: str) -> bool:
        """Whether any slot has this dtype, a safetensors name."""
        return any(slot.dtype == dtype for slot in self.slots)

    def slots_of(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the slots that are made from the parameters in `wanted`.

        `wanted` is a list of names and patterns, as the option `refit` takes it. Raises BackendError "bad_option" if an
        entry is not a valid pattern, or if it fits no parameter.
        """
        try:
            patterns = RefitPatterns.parse(wanted)
        except RefitPatternError as error:
            raise BackendError("bad_option", f"options.refit, {error}.") from error
        if idle := patterns.idle(self.readers):
            raise BackendError(
                "bad_option", f"{idle[0]!r} fits no parameter. See the definition's parameters for their names."
            )
        found = {slot.name for name, slots in self.readers.items() if patterns.match(name) for slot in slots}
        return tuple(slot.name for slot in self.slots if slot.name in found)


def lay_out(definition: ModelProto, layout: str = "plain") -> Layout:
    """Return the layout of a definition; the definition stays as it is.

    "plain" gives each parameter a slot of its own, unless a BatchNormalization needs other slots. "packed" also packs
    small parameters. Raises BackendError "bad_option" for any other word.
    """
    if layout not in LAYOUTS:
        raise BackendError("bad_option", f"refit_layout {layout!r}: it is one of {', '.join(LAYOUTS)}.")
    draft = Draft(definition)
    fold_batch_normalizations(draft)
    if layout == "packed":
        pack(draft)
    turn_weights(draft)
    return Layout(*draft.finish())


def changed_slots(layout: Layout, before: Mapping[str, Hashable], after: Mapping[str, Hashable]) -> tuple[Slot, ...]:
    """Return the slots whose value differs, in the layout's order.

    `before` and `after` have every parameter's content by name. A parameter that `before` does not have has changed.
    """
    touched = {
        slot.name
        for name, slots in layout.readers.items()
        if name not in before or before[name] != after.get(name)
        for slot in slots
    }
    return tuple(slot for slot in layout.slots if slot.name in touched)


def slot_value(slot: Slot, values: Mapping[str, StoredValue], mapped: MappedFiles) -> Array:
    """Return a slot's value, contiguous and of its dtype and shape, from the parameters' values by name.

    If the slot is a parameter, the array shares the file's pages. Raises BackendError "missing_weights" if a source has
    no value, and "wrong_weights" if a value has another dtype or shape than its parameter.
    """
    check_slot(slot, values)
    return slot.value([mapped.view(values[name]) for name in slot.sources])


def fill_slot(target: Array, slot: Slot, values: Mapping[str, StoredValue], mapped: MappedFiles) -> None:
    """Write what `slot_value` returns into an array of the slot's dtype and shape."""
    check_slot(slot, values)
    slot.fill(target, [mapped.view(values[name]) for name in slot.sources])


def check_slot(slot: Slot, values: Mapping[str, StoredValue]) -> None:
    """Raise BackendError "missing_weights" or "wrong_weights" unless a slot can be made from these values."""
    missing = [name for name in slot.sources if name not in values]
    if missing:
        raise BackendError("missing_weights", f"No weights for {', '.join(missing)}. Bind a tensor to each.")
    for name, (dtype, shape) in zip(slot.sources, slot.source_types, strict=True):
        value = values[name]
        if (value.dtype, value.shape) != (dtype, shape):
            raise BackendError(
                "wrong_weights",
                f"{name} is {dtype}{list(shape)}, its weights are {value.dtype}{list(value.shape)}. "
                "Check the binding against these weights again.",
            )
