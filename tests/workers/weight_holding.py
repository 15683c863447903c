"""The toy backend whose plans hold the weights, as those of TensorRT do, with an eye on what it loads.

A number in each plan makes each one written another file.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto, numpy_helper

from app.fleet.backend_offer import BackendOffer
from tests.adding.toy_backend import Abacus, Counted
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
    Spent,
)
from workers.engine_host import onnx_graph
from workers.engine_host.backends.base import LoadedEngine, Offered
from workers.engine_host.engines import Engines
from workers.engine_host.tensors import Array, ParameterFiles

PLATFORM = "1.0/test device"
VERSION = "1.0"


class HeldWeights(Counted):
    """An engine: the values of its parameters, which a refit sets."""


class WeightHolding(Abacus):
    """The backend; `loaded` are the paths of the plans it loaded."""

    engine = HeldWeights
    offered = Offered(VERSION, (PLATFORM,), (PLATFORM,), Abacus.offered.capabilities)

    def __init__(self, scratch: Path) -> None:
        super().__init__(ParameterFiles(scratch))
        self.loaded: list[str] = []
        self._numbers = itertools.count()

    def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine]:
        built, engine = super().build(replace(request, options={}), report)
        assert engine is not None
        return built, engine

    def _loaded(self, engine: EngineFile, parameters: tuple[ParameterSource, ...]) -> Counted:
        """Load a plan, which must hold what it is said to."""
        self.loaded.append(engine.plan)
        values = super()._loaded(engine, engine.held).values
        plan = onnx_graph.parse(Path(engine.plan).read_bytes())
        for name, value in self._values(plan, engine.held).items():
            if not np.array_equal(values[name], value):
                raise BackendError("other_weights", f"The plan does not hold the {name} it is said to hold.")
        return super()._loaded(engine, parameters)

    def _refitted(self, request: Refit, engine: Counted, *, warm: bool) -> Refitted:
        return replace(super()._refitted(request, engine, warm=warm), stages={"refit": Spent(0.0)})

    @contextmanager
    def materialising(self, plan: str, engine: LoadedEngine, report: Report) -> Iterator[Future[Materialised]]:
        with super().materialising(plan, engine, report) as writing:
            made: Future[Materialised] = Future()
            made.set_result(replace(writing.result(), stages={"serialize": Spent(0.0)}))
            yield made

    def _write(self, engine: Counted, path: Path) -> tuple[str, int]:
        plan = ModelProto()
        plan.CopyFrom(engine.plan)
        plan.producer_version = str(next(self._numbers))
        return super()._write(replace(engine, plan=plan), path)


def weights_in(plan: bytes) -> dict[str, Array]:
    """The weights that a plan holds."""
    return {one.name: numpy_helper.to_array(one) for one in onnx_graph.parse(plan).graph.initializer}


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
