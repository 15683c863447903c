"""An engine host as tests talk to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort

from app.engines.against import Against
from tests.workers.networks import Network, Weights
from workers.channel.host import EngineHost
from workers.channel.messages import (
    Build,
    Built,
    Check,
    EngineFile,
    LogLine,
    Message,
    Outcome,
    ParameterSource,
    Ran,
    Refit,
    Refitted,
    Request,
    Run,
    Verified,
    Verify,
)
from workers.engine_host import onnx_graph
from workers.engine_host.tensors import read_tensors, write_tensors

Array = np.ndarray[Any, np.dtype[Any]]
OutcomeT = TypeVar("OutcomeT", bound=Outcome)


@dataclass
class Hosting:
    """Calls on `host`, with everything it said in `messages`; files go below `folder`."""

    host: EngineHost
    folder: Path
    messages: list[Message] = field(default_factory=list)

    @property
    def log(self) -> list[str]:
        return [one.text for one in self.messages if isinstance(one, LogLine)]

    def call(self, request: Request, kind: type[OutcomeT]) -> OutcomeT:
        outcome = self.host.call(request, on_message=self.messages.append, tick=lambda: None)
        assert isinstance(outcome, kind)
        return outcome

    def build(self, network: Network, sources: tuple[ParameterSource, ...], **changes: Any) -> tuple[Built, EngineFile]:  # noqa: ANN401 - fields of Build
        request: Build = network.build(sources, self.folder / "plan.onnx", **changes)
        made = self.call(request, Built)
        return made, network.engine(made, sources, request.profiles)

    def refit(
        self, network: Network, parent: EngineFile, sources: tuple[ParameterSource, ...]
    ) -> tuple[Refitted, EngineFile]:
        made = self.call(Refit(parent, sources, str(self.folder / "refitted.onnx")), Refitted)
        return made, network.engine(made, sources, parent.profiles)

    def run(self, engine: EngineFile, inputs: Mapping[str, Array]) -> dict[str, Array]:
        write_tensors(str(self.folder / "in.safetensors"), inputs)
        outputs = self.folder / "out.safetensors"
        self.call(Run(engine, str(self.folder / "in.safetensors"), str(outputs)), Ran)
        return read_tensors(str(outputs))

    def verify(self, engine: EngineFile, against: Against = "reference", **changes: Any) -> Verified:  # noqa: ANN401 - fields of Check
        return self.call(Verify(engine, Check(against, **changes)), Verified)


def direct(network: Network, weights: Weights, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of a plain onnxruntime session of the definition, unoptimised, with these weights baked in."""
    from onnx import numpy_helper  # noqa: PLC0415 - beside its one use

    model = onnx_graph.parse(network.path.read_bytes())
    for one in model.graph.initializer:
        if one.name in weights:
            one.CopyFrom(numpy_helper.from_array(np.asarray(weights[one.name]), one.name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
