"""Toy backends that compute with numpy what an abacus could: MatMul, Add and Relu, node by node.

The plans of `Abacus` hold the weights, and it refits in place, as TensorRT does. Those of `Slate` hold none, and a
refit makes another engine beside the parent, as with onnxruntime.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from workers.channel.messages import (
    BackendError,
    Build,
    Built,
    EngineFile,
    Materialised,
    ParameterSource,
    Refit,
    Refitted,
    Report,
)
from workers.engine_host import onnx_graph
from workers.engine_host.backends.base import Arrays, LoadedEngine, Offered, Room
from workers.engine_host.backends.options import settled
from workers.engine_host.backends.stopwatch import Stopwatch
from workers.engine_host.preflight.verdict import Finding, Question, Refittable, Verdict
from workers.engine_host.tensors import Array, MappedFiles, ParameterFiles

VERSION = "3.0"
PLATFORM = "wood"
OPERATORS: Mapping[str, Callable[..., Array]] = {
    "MatMul": np.matmul,
    "Add": np.add,
    "Relu": lambda x: np.maximum(x, 0),
}
BEADS = {"description": "What the beads are made of.", "enum": ["wood", "glass"], "default": "wood"}
Values = dict[str, Array]


def open_backend(_name: str, _device: str, _scratch: Path, files: ParameterFiles, _room: Room) -> "Abacus":
    return Abacus(files)


def check_abacus(definition: ModelProto, question: Question) -> list[Verdict]:
    """Refuse the operators that an abacus does not have; all versions have the same."""
    counts = onnx_graph.all_operators(definition.graph)
    names = list(onnx_graph.parameters_of(definition))
    refused = tuple(Finding(one, "no beads for it", count, ()) for one, count in counts.items() if one not in OPERATORS)
    refittable = Refittable.of(names, (), "")
    versions = question.versions or (VERSION,)
    return [Verdict(version, "the beads", counts, refittable, refused=refused) for version in versions]


@dataclass
class Counted:
    """An engine: the plan's nodes, and the value of each parameter, which a refit in place replaces."""

    plan: ModelProto
    values: Values

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values.values())

    def run(self, inputs: Arrays) -> dict[str, Array]:
        arrays: Values = {**inputs, **self.values}
        for node in self.plan.graph.node:
            arrays[node.output[0]] = OPERATORS[node.op_type](*(arrays[name] for name in node.input))
        return {one.name: arrays[one.name] for one in self.plan.graph.output}

    def measure(self, inputs: Arrays, *, iterations: int, warmup: int) -> Sequence[float]:
        marks = [time.perf_counter() for _ in range(warmup + iterations + 1) if self.run(inputs)]
        return [after - before for before, after in zip(marks[warmup:], marks[warmup + 1 :], strict=False)]

    def layers(self, inputs: Arrays) -> tuple[tuple[str, float], ...]:
        (seconds,) = self.measure(inputs, iterations=1, warmup=0)
        nodes = self.plan.graph.node
        return tuple((node.output[0], seconds / len(nodes)) for node in nodes)

    def inspect(self) -> Any:  # noqa: ANN401 - JSON
        return onnx_graph.nodes(self.plan.graph)


class Abacus:
    """Plans hold weights, and a refit puts others into the resident engine."""

    engine = Counted
    preflight = staticmethod(check_abacus)
    refits_in_place = True
    offered = Offered(
        VERSION,
        (PLATFORM,),
        (PLATFORM,),
        {
            "build": True,
            "refit": True,
            "run": True,
            "plan_holds_weights": True,
            "preflight": "before jobs",
            "profiles": "optional",
            "options": {"beads": BEADS},
            "lacks": {},
        },
    )

    def __init__(self, files: ParameterFiles) -> None:
        self._files = files

    def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine | None]:
        watch = Stopwatch(report)
        options = settled(request.options, self.offered.capabilities)
        with watch.phase("compile"):
            definition = _countable(onnx_graph.parse(Path(request.definition).read_bytes()))
            engine = self.engine(definition, self._values(definition, request.parameters))
        digest, nbytes = self._write(engine, Path(request.plan))
        facts, platform = {"beads": options["beads"]}, self.offered.makes[0]
        built = Built(request.plan, digest, nbytes, platform, facts, watch.stages, self.offered.version)
        return built, engine

    def load(self, engine: EngineFile, _report: Report) -> LoadedEngine:
        return self._loaded(engine, engine.parameters)

    def refit(self, request: Refit, resident: LoadedEngine | None, _report: Report) -> tuple[Refitted, LoadedEngine]:
        if isinstance(resident, Counted):
            engine = resident
            engine.values.update(self._values(engine.plan, request.parameters))
        else:
            engine = self._loaded(request.parent, request.parameters)
        return self._refitted(request, engine, warm=resident is not None), engine

    def materialising(
        self, plan: str, engine: LoadedEngine, _report: Report
    ) -> AbstractContextManager[Future[Materialised]]:
        if not isinstance(engine, Counted):
            raise TypeError(f"not an engine of this backend: {type(engine).__name__}")
        digest, nbytes = self._write(engine, Path(plan))
        writing: Future[Materialised] = Future()
        writing.set_result(Materialised(plan, digest, nbytes, {}))
        return nullcontext(writing)

    def _loaded(self, engine: EngineFile, parameters: tuple[ParameterSource, ...]) -> Counted:
        """Load a plan, which has the weights of `held`, with these parameters."""
        plan = _read(Path(engine.plan))
        values = {one.name: numpy_helper.to_array(one).copy() for one in plan.graph.initializer}
        held = {one.name: one.content for one in engine.held}
        different = tuple(one for one in parameters if held.get(one.name) != one.content)
        values.update(self._values(plan, parameters, only={one.name for one in different}))
        return self.engine(plan, values)

    def _refitted(self, request: Refit, engine: Counted, *, warm: bool) -> Refitted:  # noqa: ARG002 - Slate needs it
        return Refitted(None, None, 0, _changed(request), warm, {}, {}, self.offered.version)

    def _write(self, engine: Counted, path: Path) -> tuple[str, int]:
        plan = ModelProto()
        plan.CopyFrom(engine.plan)
        del plan.graph.initializer[:]
        plan.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in engine.values.items())
        return _written(plan, path)

    def _values(self, plan: ModelProto, sources: tuple[ParameterSource, ...], only: set[str] | None = None) -> Values:
        """Read parameters, all or a few; BackendError unless every one is there and fits."""
        values, mapped = self._files.locate(sources), MappedFiles()
        declared = {one.name: _bare(one) for one in plan.graph.initializer}
        onnx_graph.check_values(declared, values)
        return {name: mapped.view(value).copy() for name, value in values.items() if only is None or name in only}


class Slate(Abacus):
    """Plans hold no weights: a plan is the definition, and each refit makes an engine of its own."""

    refits_in_place = False
    offered = Offered(VERSION, (PLATFORM,), (PLATFORM,), {**Abacus.offered.capabilities, "plan_holds_weights": False})

    def refit(self, request: Refit, resident: LoadedEngine | None, _report: Report) -> tuple[Refitted, LoadedEngine]:
        engine = self._loaded(request.parent, request.parameters)
        return self._refitted(request, engine, warm=resident is not None), engine

    def materialising(
        self, _plan: str, _engine: LoadedEngine, _report: Report
    ) -> AbstractContextManager[Future[Materialised]]:
        raise BackendError("nothing_to_materialise", "The plan is there from the start; download it.")

    def _loaded(self, engine: EngineFile, parameters: tuple[ParameterSource, ...]) -> Counted:
        plan = _read(Path(engine.plan))
        return self.engine(plan, self._values(plan, parameters))

    def _refitted(self, request: Refit, engine: Counted, *, warm: bool) -> Refitted:
        nbytes = len(onnx_graph.serialize(engine.plan))
        parent = request.parent
        return Refitted(parent.plan, parent.root_plan, nbytes, _changed(request), warm, {}, {}, self.offered.version)

    def _write(self, engine: Counted, path: Path) -> tuple[str, int]:
        return _written(engine.plan, path)


def _countable(definition: ModelProto) -> ModelProto:
    """Return a definition; BackendError if it has operators that no abacus has."""
    others = sorted(onnx_graph.operators(definition.graph).keys() - OPERATORS.keys())
    if others:
        raise BackendError("graph_refused", f"An abacus has no {', '.join(others)}. Choose another backend.")
    return definition


def _read(path: Path) -> ModelProto:
    return onnx_graph.parse(path.read_bytes())


def _written(plan: ModelProto, path: Path) -> tuple[str, int]:
    data = onnx_graph.serialize(plan)
    path.write_bytes(data)
    return f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)


def _bare(tensor: TensorProto) -> TensorProto:
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _changed(request: Refit) -> int:
    before = {one.name: one.content for one in request.parent.parameters}
    return sum(before[one.name] != one.content for one in request.parameters)
