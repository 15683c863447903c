"""Requests to the engine host's inner part, carried out in the test's own process on a real GPU."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from app.definitions.profiles import Profile
from app.engines.against import Against
from tests.workers.networks import Network
from workers.channel.messages import (
    Build,
    Built,
    Check,
    EngineFile,
    Materialise,
    Materialised,
    Message,
    ParameterSource,
    Ran,
    Refit,
    Refitted,
    Run,
    Verified,
    Verify,
)
from workers.engine_host.engines import Engines
from workers.engine_host.tensors import read_tensors, write_tensors

Array = np.ndarray[Any, np.dtype[Any]]
Sources = tuple[ParameterSource, ...]
GIB = 1 << 30


@dataclass
class Card:
    """The engines of the first GPU; files go below `folder`."""

    folder: Path
    resident_bytes: int = 8 * GIB
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget every resident engine, as a new process would."""
        self.engines = Engines("cuda:0", self.resident_bytes, self.folder, self.messages.append)

    def request(self, network: Network, sources: Sources, profiles: tuple[Profile, ...] = (), **options: Any) -> Build:  # noqa: ANN401 - JSON
        plan, options = str(self.folder / f"{uuid4().hex}.plan"), {"optimization_level": 1} | options
        return Build("tensorrt", str(network.path), sources, network.inputs, plan, profiles, options)

    def build(
        self,
        network: Network,
        sources: Sources,
        profiles: tuple[Profile, ...] = (),
        **options: Any,  # noqa: ANN401 - JSON
    ) -> tuple[Built, EngineFile]:
        """Build, with the least search for fast kernels unless `options` say otherwise."""
        request = self.request(network, sources, profiles, **options)
        built = self.engines.do(request)
        assert isinstance(built, Built)
        engine = EngineFile(
            "tensorrt",
            plan=built.plan,
            root_plan=built.plan_digest,
            definition=str(network.path),
            parameters=sources,
            inputs=network.inputs,
            profiles=request.profiles,
            options=request.options,
        )
        return built, engine

    def refit(
        self, parent: EngineFile, sources: Sources, *, lazily: bool = False, against: Against = "none"
    ) -> tuple[Refitted, EngineFile]:
        plan = str(self.folder / f"{uuid4().hex}.plan")
        refitted = self.engines.do(Refit(parent, sources, None if lazily else plan, Check(against)))
        assert isinstance(refitted, Refitted)
        if refitted.plan is None:
            return refitted, replace(parent, parameters=sources, plan_parameters=parent.held)
        return refitted, replace(parent, parameters=sources, plan=refitted.plan, plan_parameters=None)

    def materialise(self, engine: EngineFile) -> EngineFile:
        made = self.engines.do(Materialise(engine, str(self.folder / f"{uuid4().hex}.plan")))
        assert isinstance(made, Materialised)
        return replace(engine, plan=made.plan, plan_parameters=None)

    def run(self, engine: EngineFile, inputs: Mapping[str, Array]) -> dict[str, Array]:
        stem = self.folder / uuid4().hex
        write_tensors(f"{stem}.in", inputs)
        assert isinstance(self.engines.do(Run(engine, f"{stem}.in", f"{stem}.out")), Ran)
        return read_tensors(f"{stem}.out")

    def verify(self, engine: EngineFile, against: Against = "reference") -> Verified:
        found = self.engines.do(Verify(engine, Check(against)))
        assert isinstance(found, Verified)
        return found
