"""A backend under test, with a small definition and weights for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar
from uuid import uuid4

import numpy as np
from blake3 import blake3
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from app.bindings.report import ParameterBinding
from app.bindings.steps import Transform
from app.definitions.parameter import InputSpec
from app.definitions.profiles import Range
from app.definitions.tensor_data import external_tensor
from workers.channel.messages import BackendError, Build, Built, EngineFile, Message, ParameterSource, Refit, TensorFile
from workers.engine_host import onnx_graph
from workers.engine_host.backends.base import Backend, LoadedEngine
from workers.engine_host.backends.catalog import open_backend, open_preflight
from workers.engine_host.preflight.verdict import Preflight
from workers.engine_host.tensors import Array, ParameterFiles, dtype_name, raw

T = TypeVar("T")
Weights = Mapping[str, Array]
Sources = tuple[ParameterSource, ...]
WIDTH = 8
LAYERS = 2
BATCHES = Range((1, WIDTH), (2, WIDTH), (4, WIDTH))
SHAPES = {f"{n}.weight": (WIDTH, WIDTH) for n in range(LAYERS)} | {f"{n}.bias": (WIDTH,) for n in range(LAYERS)}


class BrokenPromise(Exception):
    """The backend does not do what `backends.base` says; the text says what it does instead."""


@dataclass
class Harness:
    """Builds, loads and refits a perceptron of two layers, in F32, with the backend under test.

    The definition takes `x` [batch, 8] and gives `y` [batch, 8]. Files go below `folder`. Every build has the options
    `options`. `tolerance` is the greatest difference of outputs that should be equal, relative to the largest value.
    `preflight` is what the backend's entry leads to, None if it leads to none.
    """

    name: str
    backend: Backend
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-4
    preflight: Preflight | None = None
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.definition = self.folder / "definition.onnx"
        self.definition.write_bytes(onnx_graph.serialize(_perceptron()))

    @classmethod
    def open(cls, name: str, device: str, folder: Path, **settings: Any) -> Self:  # noqa: ANN401 - fields of this class
        """Open an installed backend by its name, as an engine host does; raises what its factory raises."""
        files = ParameterFiles(folder / "made")
        backend = open_backend(name, device, folder, files, lambda attempt: attempt())
        return cls(name, backend, folder, preflight=open_preflight(name), **settings)

    @property
    def runs(self) -> bool:
        """Whether this device can load a plan that it compiled for its default platform."""
        return self.backend.offered.makes[0] in self.backend.offered.loads

    @property
    def refits(self) -> bool:
        """Whether the backend says that it refits."""
        return bool(self.backend.offered.capabilities.get("refit"))

    @property
    def plans_hold_weights(self) -> bool:
        """Whether the backend says that its plans hold weights."""
        return bool(self.backend.offered.capabilities.get("plan_holds_weights"))

    def path(self, suffix: str) -> Path:
        """Return a path at which there is no file yet."""
        return self.folder / f"{uuid4().hex}.{suffix}"

    def sources(self, weights: Weights, transforms: Mapping[str, tuple[Transform, ...]] | None = None) -> Sources:
        """Write weights to a file and bind each to the parameter of its name."""
        path, offset, sources = self.path("weights"), 0, []
        with path.open("xb") as file:
            for name, array in weights.items():
                data = raw(array).tobytes()
                file.write(data)
                dtype, applied = dtype_name(array), (transforms or {}).get(name, ())
                stored = TensorFile(str(path), offset, len(data), dtype, array.shape, blake3(data).hexdigest())
                binding = ParameterBinding(name, dtype, array.shape, (name,), applied)
                sources.append(ParameterSource(binding, (stored,)))
                offset += len(data)
        return tuple(sources)

    def request(self, sources: Sources, **changes: Any) -> Build:  # noqa: ANN401 - fields of Build
        """Return the request for a build whose plan goes to a new path."""
        inputs = (InputSpec("x", "F32", ("batch", WIDTH)),)
        plan, profiles = str(self.path("plan")), ({"x": BATCHES},)
        asked = Build(self.name, str(self.definition), sources, inputs, plan, profiles, self.options)
        return replace(asked, **changes)

    def build(self, request: Build) -> tuple[Built, LoadedEngine | None]:
        """Carry out a build."""
        return self.backend.build(request, self.messages.append)

    def engine(self, sources: Sources) -> tuple[EngineFile, LoadedEngine]:
        """Build an engine, and load it if the build did not.

        That a build loads its engine is a promise of its own, which the other checks do not depend on.
        """
        request = self.request(sources)
        built, loaded = self.build(request)
        file = request.engine(built)
        return file, loaded or self.load(file)

    def load(self, file: EngineFile) -> LoadedEngine:
        """Load an engine."""
        return self.backend.load(file, self.messages.append)

    def refit(self, request: Refit, resident: LoadedEngine | None = None) -> LoadedEngine:
        """Carry out a refit, and return the engine."""
        return self.backend.refit(request, resident, self.messages.append)[1]

    def fresh(self, sources: Sources) -> Array:
        """Return the outputs of an engine built with these weights."""
        return outputs(self.engine(sources)[1])

    def keep_equal(self, actual: Array, expected: Array, what: str) -> None:
        """Raise BrokenPromise unless both arrays are the same but for rounding."""
        keep((actual.shape, actual.dtype) == (expected.shape, expected.dtype), f"{what}: shape or dtype differ")
        apart = float(np.abs(actual - expected).max()) / max(float(np.abs(expected).max()), 1e-6)
        keep(apart <= self.tolerance, f"{what}: outputs lie {apart} apart, {self.tolerance} is allowed")


Check = Callable[[Harness], None]


def keep(is_kept: bool, otherwise: str) -> None:  # noqa: FBT001 - the condition is the point of this function
    """Raise BrokenPromise unless a promise is kept; `otherwise` says what the backend does instead."""
    if not is_kept:
        raise BrokenPromise(otherwise)


def refusal(attempt: Callable[[], object], what: str) -> BackendError:
    """Return the BackendError of an attempt that must fail; raises BrokenPromise if it ends otherwise."""
    try:
        attempt()
    except BackendError as error:
        keep(bool(error.code and error.detail), f"{what}: the error has no code or no detail")
        return error
    except Exception as error:
        raise BrokenPromise(f"{what}: raised {type(error).__name__} instead of BackendError") from error
    raise BrokenPromise(f"{what}: was accepted")


def refused(attempt: Callable[[], object], code: str, what: str) -> None:
    """Raise BrokenPromise unless an attempt fails with a BackendError of this code."""
    error = refusal(attempt, what)
    keep(error.code == code, f"{what}: the error's code is {error.code!r}, not {code!r}")


def weights(seed: int) -> dict[str, Array]:
    """Return random values for each parameter."""
    random = np.random.default_rng(seed)
    return {name: (random.standard_normal(shape) * 0.3).astype(np.float32) for name, shape in SHAPES.items()}


def inputs(batch: int = 2, seed: int = 7) -> dict[str, Array]:
    """Return random inputs; `batch` is 1 to 4."""
    return {"x": np.random.default_rng(seed).standard_normal((batch, WIDTH)).astype(np.float32)}


def outputs(engine: LoadedEngine, given: Mapping[str, Array] | None = None) -> Array:
    """Run an engine and return a copy of its output: the next run may overwrite it."""
    return np.array(engine.run(given or inputs())["y"])


def _perceptron() -> Any:  # noqa: ANN401 - an onnx.ModelProto
    nodes, last = [], "x"
    for layer in range(LAYERS):
        result = "y" if layer == LAYERS - 1 else f"relu{layer}"
        nodes.append(make_node("MatMul", [last, f"{layer}.weight"], [f"product{layer}"]))
        nodes.append(make_node("Add", [f"product{layer}", f"{layer}.bias"], [f"sum{layer}"]))
        nodes.append(make_node("Relu", [f"sum{layer}"], [result]))
        last = result
    x, y = (make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", "y"))
    graph = make_graph(nodes, "definition", [x], [y])
    graph.initializer.extend(external_tensor(name, "F32", shape) for name, shape in SHAPES.items())
    return make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)
