"""A deserialized engine: it runs, and its weights can be replaced."""

import json
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from typing import Any

from app.definitions.tensor_data import DTYPE_NAMES
from app.weights.dtypes import numpy_dtype
from workers.channel.messages import BackendError, ParameterSource
from workers.engine_host import onnx_graph
from workers.engine_host.backends.base import Arrays
from workers.engine_host.backends.stopwatch import Stopwatch
from workers.engine_host.backends.tensorrt.capabilities import Capabilities
from workers.engine_host.backends.tensorrt.execution import Execution
from workers.engine_host.backends.tensorrt.layout import Layout, Slot, changed_slots
from workers.engine_host.backends.tensorrt.library import NAME, trt
from workers.engine_host.backends.tensorrt.log import Log
from workers.engine_host.backends.tensorrt.refitting import refit, refittable_weights
from workers.engine_host.backends.tensorrt.weight_values import WeightValues
from workers.engine_host.cuda.page_locked_values import PageLockedValues, process_values
from workers.engine_host.tensors import Array, ParameterFiles

MAX_NAMED = 10
BATCH_BYTES = 1 << 28  # of values that are read or computed while earlier ones are set


class TensorrtEngine:
    """An engine on the device. `contents` has the content of each parameter that it holds now; a refit changes them."""

    def __init__(
        self,
        engine: trt.ICudaEngine,
        layout: Layout,
        contents: Mapping[str, Hashable],
        can: Capabilities,
        log: Log,
        *,
        weight_bytes: int,
        stripped: bool = False,
    ) -> None:
        """Take a deserialized engine; `weight_bytes` is the device memory of the weights in its plan.

        `stripped` says that the plan does not hold the replaceable weights, which are not set yet.
        """
        self._engine = engine
        self._layout = layout
        self._contents = contents
        self._can = can
        self._log = log
        self._weight_bytes = weight_bytes
        self._stripped = stripped
        self._memory = PageLockedValues() if can.async_refit else process_values()  # `OnDevice` stages by itself
        if stripped:
            self._weight_bytes += sum(slot.nbytes for slot in layout.slots if slot.name in self.weights)

    @property
    def nbytes(self) -> int:
        """About the device memory for the weights and for one run; inputs and outputs count after the first run."""
        buffers = self._execution.nbytes if self._has_run else 0
        return self._weight_bytes + self._run_bytes + buffers

    @cached_property
    def weights(self) -> frozenset[str]:
        """The names of the weights that can be replaced."""
        return refittable_weights(self._engine, self._log)

    @property
    def facts(self) -> dict[str, Any]:
        """What the build's result tells of the compiled engine, as JSON."""
        fixed = {source for slot in self._layout.slots if slot.name not in self.weights for source in slot.sources}
        return {
            "refittable": bool(self._engine.refittable),
            "fixed_parameters": sorted(fixed) if self._engine.refittable else [],
            "weights": len(self.weights),
            "layers": self._engine.num_layers,
            "run_bytes": self._run_bytes,
        }

    def set_parameters(
        self,
        parameters: Sequence[ParameterSource],
        files: ParameterFiles,
        watch: Stopwatch,
        step: Callable[[int, int], None],
    ) -> int:
        """Replace the weights that differ with these parameters, and return how many were set; raises BackendError.

        Only weights that change are located (the stage "transform"), read ("read") and set ("refit"). The next batch
        is read while one is set. After an error the engine is in no defined state.
        """
        after = {parameter.name: parameter.content for parameter in parameters}
        changed = changed_slots(self._layout, self._contents, after)
        self._check_replaceable(changed)
        if self._stripped:
            changed = tuple(slot for slot in self._layout.slots if slot.name in self.weights)
        done: set[str] = set()
        with WeightValues(self._layout, parameters, files, step, self._can, self._memory) as values:
            new = values.take_kept(changed)
            if new:
                with watch.phase("transform"):
                    values.locate(new)
            values.begin([slot for slot in new if slot.is_computed])
            batches = [*_batches(values.in_order(changed), self._cost({slot.name for slot in new}))]
            for batch, following in zip_longest(batches, batches[1:], fillvalue=()):
                with watch.phase("read", sum(slot.nbytes for slot in batch)):
                    values.begin(batch)
                    values.begin(following)
                    named = list(values.of(batch))
                with watch.phase("refit", sum(slot.nbytes for slot in batch)):
                    self._come_to_rest()
                    done |= refit(self._engine, named, self._can, self._log, values)
                    values.release(batch)
                del named
        self._contents, self._stripped = after, False
        return len(done)

    def _cost(self, new: Container[str]) -> Callable[[Slot], int]:
        """Return a function that tells how many bytes of a slot count for a batch.

        If there is page-locked memory, it is what has to be read, of the slots in `new`. Else it is what has to be
        computed, because weights that TensorRT reads from a mapped file take no memory of ours.
        """
        if self._memory.nbytes:
            return lambda slot: slot.nbytes if slot.name in new else 0
        return lambda slot: slot.nbytes if slot.is_computed else 0

    def _come_to_rest(self) -> None:
        """Wait for work that a failed run may have left on the device: a refit of an engine at work is undefined."""
        if self._has_run:
            self._execution.wait()

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run once. Inputs and outputs are by name, in the dtypes of the definition."""
        return self._execution.run(inputs)

    def measure(self, inputs: Arrays, *, iterations: int, warmup: int) -> Sequence[float]:
        """Return the seconds that each of `iterations` runs took on the device, after `warmup` others."""
        return self._execution.measure(inputs, iterations=iterations, warmup=warmup)

    def layers(self, inputs: Arrays) -> tuple[tuple[str, float], ...]:
        """Return (name, seconds) of each layer of one run."""
        return self._execution.layers(inputs)

    def inspect(self) -> Any:  # noqa: ANN401 - JSON
        """Return what TensorRT's engine inspector says; it says more of an engine built with detailed profiling."""
        text = self._engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        try:
            return json.loads(text, strict=False)  # names of layers may have control characters in them
        except ValueError:
            return text

    def serialize(self) -> trt.IHostMemory:
        """Return the plan with the engine's weights of now; an engine loaded from it can be refitted again.

        Raises BackendError "serialize_failed".
        """
        plan = self._serialized()
        if plan is None:
            what = f"{NAME} {self._can.version} cannot write the plan"
            raise self._log.failed(
                "serialize_failed", what, "Look whether this machine has memory for it, and try again."
            )
        return plan

    def _serialized(self) -> trt.IHostMemory | None:
        if not self._can.serialization_config:
            return self._engine.serialize()
        config = self._engine.create_serialization_config()
        if not config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS):
            return None
        if self._can.include_refit and not config.set_flag(trt.SerializationFlag.INCLUDE_REFIT):  # type: ignore[attr-defined]  # from 10.14
            return None
        return self._engine.serialize_with_config(config)

    @property
    def _run_bytes(self) -> int:
        """Device memory that TensorRT itself takes for a run."""
        return int(self._engine.device_memory_size_v2 if self._can.memory_size_v2 else self._engine.device_memory_size)

    @property
    def _has_run(self) -> bool:
        return "_execution" in vars(self)

    @cached_property
    def _execution(self) -> Execution:
        outputs = onnx_graph.interface(self._layout.model.graph.output)
        dtypes = {name: numpy_dtype(DTYPE_NAMES[dtype]) for name, dtype in outputs}
        return Execution(self._engine, dtypes, self._log)

    def _check_replaceable(self, changed: Iterable[Slot]) -> None:
        fixed = sorted({source for slot in changed if slot.name not in self.weights for source in slot.sources})
        if fixed:
            more = f" and {len(fixed) - MAX_NAMED} more" if len(fixed) > MAX_NAMED else ""
            raise BackendError(
                "not_refittable",
                f"The compiled engine has not kept {', '.join(fixed[:MAX_NAMED])}{more} as weights that can be "
                "replaced, and the new values differ. Build an engine for these weights instead.",
            )


def _batches(slots: Sequence[Slot], cost: Callable[[Slot], int]) -> Iterator[Sequence[Slot]]:
    """Yield all slots in batches that cost at most `BATCH_BYTES`; one larger slot is a batch, too."""
    start = nbytes = 0
    for index, slot in enumerate(slots):
        added = cost(slot)
        if nbytes and nbytes + added > BATCH_BYTES:
            yield slots[start:index]
            start, nbytes = index, 0
        nbytes += added
    if slots:
        yield slots[start:]
