"""A backend whose plans hold the weights, as those of TensorRT do, and that refits in place: for perceptrons, in numpy.

A plan is a safetensors file with every parameter, and a number that makes each one written another file.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.fleet.backend_offer import BackendOffer
from workers.channel.messages import (
    BackendError,
    Build,
    Built,
    EngineFile,
    Materialised,
    Message,
    Outcome,
    ParameterSource,
    Refit,
    Refitted,
    Report,
    Request,
)
from workers.engine_host.backends.base import Arrays, LoadedEngine, Offered
from workers.engine_host.engines import Engines
from workers.engine_host.tensors import MappedFiles, ParameterFiles, read_tensors, write_tensors

Array = np.ndarray[Any, np.dtype[Any]]
PLATFORM = "1.0/test device"
VERSION = "1.0"


@dataclass
class HeldWeights:
    """An engine: the values of its parameters, which a refit sets."""

    values: dict[str, Array]

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values.values())

    def run(self, inputs: Arrays) -> dict[str, Array]:
        x = inputs["x"]
        for layer in range(len(self.values) // 2):
            x = np.maximum(x @ self.values[f"{layer}.weight"] + self.values[f"{layer}.bias"], 0)
        return {"y": x}

    def measure(self, inputs: Arrays, *, iterations: int, warmup: int) -> Sequence[float]:
        raise NotImplementedError

    def layers(self, inputs: Arrays) -> tuple[tuple[str, float], ...]:
        raise NotImplementedError

    def inspect(self) -> Any:  # noqa: ANN401 - as the protocol has it
        raise NotImplementedError


class WeightHolding:
    """The backend; `loaded` are the paths of the plans it loaded."""

    refits_in_place = True
    offered = Offered(VERSION, (PLATFORM,), (PLATFORM,), {})

    def __init__(self, scratch: Path) -> None:
        self.loaded: list[str] = []
        self._files = ParameterFiles(scratch)
        self._numbers = itertools.count()

    def build(self, request: Build, _report: Report) -> tuple[Built, LoadedEngine]:
        engine = HeldWeights(self._values(request.parameters))
        digest, nbytes = self._write(request.plan, engine)
        return Built(request.plan, digest, nbytes, PLATFORM, {}, {"compile": 0.0}, VERSION), engine

    def load(self, engine: EngineFile, _report: Report) -> LoadedEngine:
        self.loaded.append(engine.plan)
        values = read_tensors(engine.plan)
        del values["number"]
        held = engine.held
        for name, value in self._values(held).items():
            if not np.array_equal(values[name], value):
                raise BackendError("other_weights", f"The plan does not hold the {name} it is said to hold.")
        return HeldWeights(values | self._values(engine.parameters))

    def refit(self, request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        engine = resident or self.load(request.parent, report)
        assert isinstance(engine, HeldWeights)
        engine.values.update(self._values(request.parameters))
        before = {one.name: one.content for one in request.parent.parameters}
        changed = sum(before[one.name] != one.content for one in request.parameters)
        refitted = Refitted(None, None, 0, changed, resident is not None, {}, {"refit": 0.0}, VERSION)
        return refitted, engine

    @contextmanager
    def materialising(self, plan: str, engine: LoadedEngine, _report: Report) -> Iterator[Future[Materialised]]:
        assert isinstance(engine, HeldWeights)
        digest, nbytes = self._write(plan, engine)
        written: Future[Materialised] = Future()
        written.set_result(Materialised(plan, digest, nbytes, {"serialize": 0.0}))
        yield written

    def _values(self, parameters: tuple[ParameterSource, ...]) -> dict[str, Array]:
        mapped = MappedFiles()
        return {name: mapped.view(value).copy() for name, value in self._files.locate(parameters).items()}

    def _write(self, plan: str, engine: HeldWeights) -> tuple[str, int]:
        write_tensors(plan, {**engine.values, "number": np.array([next(self._numbers)])})
        data = Path(plan).read_bytes()
        return f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)


@dataclass
class HostInProcess:
    """An engine host without a child, whose backend "tensorrt" is the one above; `before` hears of each request."""

    scratch: Path
    before: Callable[[Request], None] = lambda _request: None
    backend: WeightHolding = field(init=False)

    def __post_init__(self) -> None:
        self.backend = WeightHolding(self.scratch)
        self._listener: Callable[[Message], None] = lambda _message: None
        self.close()

    def call(
        self,
        request: Request,
        *,
        on_message: Callable[[Message], None],
        tick: Callable[[], None],
        tick_s: float = 0.5,  # noqa: ARG002 - as the host it stands for
    ) -> Outcome:
        self.before(request)
        tick()
        self._listener = on_message
        return self._engines.do(request)

    def close(self) -> None:
        """Forget every engine, as a host that was killed has."""
        self._engines = Engines("cpu", 1 << 30, self.scratch, self._tell)
        self._engines._backends["tensorrt"] = self.backend

    def _tell(self, message: Message) -> None:
        self._listener(message)


OFFERED = {"tensorrt": BackendOffer(version=VERSION, makes=(PLATFORM,), loads=(PLATFORM,))}
