"""What the child does with requests: it owns the backends, the parameter files and the resident engines."""

from collections.abc import Iterable
from pathlib import Path

from workers.backends import catalog
from workers.backends.base import (
    Backend,
    Build,
    EngineFile,
    LoadedEngine,
    Outcome,
    ParameterSource,
    Ran,
    Refit,
    Report,
    Request,
    Run,
    Verify,
    engine_key,
)
from workers.backends.stopwatch import Stopwatch
from workers.resident import Residency, ResidentEngines
from workers.run_inputs import check_inputs
from workers.tensors import ParameterFiles, read_tensors, write_tensors
from workers.verification import References, verify


class Engines:
    """Carries out requests on one device; `report` hears of progress while it does."""

    def __init__(self, device: str, resident_bytes: int, scratch: Path, report: Report) -> None:
        self._device = device
        self._scratch = scratch
        self._report = report
        self._files = ParameterFiles(scratch)
        self._references = References(self._files)
        self._resident = ResidentEngines(resident_bytes)
        self._backends: dict[str, Backend] = {}

    @property
    def residency(self) -> Residency:
        """What is resident now."""
        return self._resident.residency

    def preload(self, names: Iterable[str]) -> None:
        """Import backends ahead of the first request."""
        for name in names:
            self._backend(name)

    def do(self, request: Request) -> Outcome:
        """Carry out one request; raises BackendError."""
        match request:
            case Build():
                return self._build(request)
            case Refit():
                return self._refit(request)
            case Run():
                return self._run(request)
            case Verify():
                engine = self._loaded(request.engine)
                backend = self._backend(request.engine.backend)
                return verify(request, engine, backend, self._references, self._report)

    def _build(self, request: Build) -> Outcome:
        self._resident.make_room(_nbytes(request.parameters))
        built, engine = self._backend(request.backend).build(request, self._report)
        self._resident.put(engine_key(built.plan_digest, request.parameters), engine)
        return built

    def _refit(self, request: Refit) -> Outcome:
        self._resident.get(request.parent.key)  # used last, so it goes last where there is not room for both
        self._resident.make_room(_nbytes(request.parameters))
        parent = self._resident.get(request.parent.key)
        refitted, engine = self._backend(request.parent.backend).refit(request, parent, self._report)
        self._resident.put(engine_key(refitted.plan_digest, request.parameters), engine)
        return refitted

    def _run(self, request: Run) -> Outcome:
        watch = Stopwatch(self._report)
        inputs = read_tensors(request.inputs)
        check_inputs(inputs, request.engine.inputs, request.engine.profiles)
        with watch.phase("load"):
            engine = self._loaded(request.engine)
        with watch.phase("run"):
            outputs = engine.run(inputs)
        with watch.phase("write"):
            write_tensors(request.outputs, outputs)
        return Ran(request.outputs, watch.seconds["run"], watch.seconds)

    def _loaded(self, engine: EngineFile) -> LoadedEngine:
        resident = self._resident.get(engine.key)
        if resident is not None:
            return resident
        self._resident.make_room(_nbytes(engine.parameters))
        loaded = self._backend(engine.backend).load(engine, self._report)
        self._resident.put(engine.key, loaded)
        return loaded

    def _backend(self, name: str) -> Backend:
        if name not in self._backends:
            self._backends[name] = catalog.open_backend(name, self._device, self._scratch, self._files)
        return self._backends[name]


def _nbytes(parameters: Iterable[ParameterSource]) -> int:
    """Return the bytes of these parameters as stored, about what an engine with them keeps."""
    return sum(tensor.nbytes for parameter in parameters for tensor in parameter.tensors)
