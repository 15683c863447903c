"""Carries out the child's requests, with the backends, the parameter files and the resident engines."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from workers.channel.messages import (
    BackendError,
    Benchmark,
    Build,
    Built,
    Check,
    Compare,
    EngineFile,
    LogLine,
    Materialise,
    Materialised,
    MergeTimings,
    Outcome,
    ParameterSource,
    PlanWritten,
    Ran,
    Refit,
    Refitted,
    Report,
    Request,
    Residency,
    Run,
    Spent,
    TimingsMerged,
    Verified,
    Verify,
)
from workers.channel.weight_bytes import stored_bytes
from workers.engine_host.backends import catalog
from workers.engine_host.backends.base import Backend, LoadedEngine, MergesTimings
from workers.engine_host.backends.stopwatch import Stopwatch, under_deadline
from workers.engine_host.comparing import compare, inputs_of
from workers.engine_host.cost import Costs, Limit, no_limit
from workers.engine_host.latency import benchmark
from workers.engine_host.references import References
from workers.engine_host.resident import ResidentEngines
from workers.engine_host.run_inputs import check_inputs
from workers.engine_host.tensors import ParameterFiles, read_tensors, write_tensors
from workers.engine_host.verification import verify

T = TypeVar("T")
MadeT = TypeVar("MadeT", Built, Refitted)
MAX_NAMED = 10  # parameters in a warning


class Engines:
    """Carries out requests on one device.

    `report` gets progress meanwhile, from several threads at once. Temporary files lie in `scratch`, which is removed
    with this process. `limit` is as in `Costs`.
    """

    def __init__(
        self, device: str, resident_bytes: int, scratch: Path, report: Report, limit: Limit = no_limit
    ) -> None:
        self._device = device
        self._scratch = scratch
        self._report = report
        self._files = ParameterFiles(scratch)
        self._costs = Costs(limit)
        self._references = References(self._files, self._costs)
        self._resident = ResidentEngines(resident_bytes)
        self._backends: dict[str, Backend] = {}

    @property
    def residency(self) -> Residency:
        """What is resident now."""
        return self._resident.residency

    def backend(self, name: str) -> Backend:
        """Return a backend, after opening it if needed; raises BackendError if this device does not have it."""
        if name not in self._backends:
            room = self._resident.with_room
            self._backends[name] = catalog.open_backend(name, self._device, self._scratch, self._files, room)
        return self._backends[name]

    def do(self, request: Request) -> Outcome:
        """Carry out one request; raises BackendError.

        If the device's memory does not suffice, all resident engines are given up and the request is tried once more.
        The verification of an engine that was built or refitted is tried again by itself. In a build, the backend also
        tries what comes after the compilation again by itself, so that nothing is compiled twice.

        Stored tensors are checked while they are used. If one is damaged, the request has failed, whatever came of it.
        """
        watch = Stopwatch(self._report)
        try:
            outcome = self._carry_out(request)
        finally:
            self._settle(watch)
        if isinstance(outcome, Built | Refitted | Materialised):
            return replace(outcome, stages={**outcome.stages, **watch.stages})
        return outcome

    def _settle(self, watch: Stopwatch) -> None:
        started = time.perf_counter()
        try:
            nbytes = self._files.settle()
        except BackendError:
            self._resident.clear()  # one of them holds what was read
            raise
        watch.add("check", time.perf_counter() - started, nbytes)

    def _carry_out(self, request: Request) -> Outcome:
        with_room = self._resident.with_room
        match request:
            case Build():
                built, engine = with_room(lambda: self._build(request))
                built = self._with_losses(built, request.parameters)
                self._report(PlanWritten(built.plan, built.plan_digest))
                return replace(built, verification=self._verification(engine, request.check))
            case Refit():
                refitted, engine = with_room(lambda: self._refit(request))
                refitted = self._with_losses(refitted, request.parameters)
                if refitted.plan is None and request.plan is not None:
                    return self._materialised_refit(refitted, engine, request.plan, request.check)
                return replace(refitted, verification=self._verification(engine, request.check))
            case Materialise():
                return self._materialise(request.engine, request.plan, beside=lambda _writing: None)[0]
            case MergeTimings():
                return self._merge_timings(request)
            case _:
                return with_room(lambda: self._do(request))

    def _with_losses(self, made: MadeT, parameters: Sequence[ParameterSource]) -> MadeT:
        """Warn of values that casts lost, and add them to the engine's facts."""
        losses = self._files.losses(parameters)
        if not losses:
            return made
        overflowed = {name: one.overflowed for name, one in losses.items() if one.overflowed}
        vanished = {name: one.vanished for name, one in losses.items() if one.vanished}
        for what, counts in (("overflow", overflowed), ("become 0", vanished)):
            if counts:
                self._report(LogLine("warning", _cast_warning(what, counts)))
        return replace(made, facts={**made.facts, "cast": {"overflowed": overflowed, "vanished": vanished}})

    def _do(self, request: Run | Verify | Benchmark | Compare) -> Outcome:
        match request:
            case Run():
                return self._run(request)
            case Verify():
                return self._verify(request)
            case Benchmark():
                return self._benchmark(request)
            case Compare():
                return self._compare(request)

    def _build(self, request: Build) -> tuple[Built, EngineFile]:
        backend = self.backend(request.backend)
        self._costs.check_build(request)
        self._resident.make_room(stored_bytes(request.parameters))
        built, loaded = backend.build(request, self._report)
        engine = request.engine(built)
        if loaded is not None:
            self._keep(loaded, engine)
        return built, engine

    def _refit(self, request: Refit) -> tuple[Refitted, EngineFile]:
        parent, key = request.parent, request.parent.key
        backend = self.backend(parent.backend)
        if backend.refits_in_place:
            resident = self._resident.take(key, parent.root_plan)  # if the refit fails, this engine is lost
            if resident is None:
                self._resident.make_room(stored_bytes(request.parameters))
        else:
            self._resident.get(key)  # counts as used, so that it is the last to go
            self._resident.make_room(stored_bytes(request.parameters))
            resident = self._resident.get(key)
        refitted, loaded = backend.refit(request, resident, self._report)
        engine = request.engine(refitted)
        self._keep(loaded, engine)
        return refitted, engine

    def _materialised_refit(self, refitted: Refitted, engine: EngineFile, plan: str, check: Check) -> Refitted:
        """Verify an engine that was just refitted, while its plan is digested and written.

        If the device has no room for that, the engine is loaded from its new plan and verified. To refit another engine
        once more would tell nothing about the plan.
        """

        def verification(writing: Future[Materialised]) -> Verified | None:
            return self._verification(
                engine, check, lambda: replace(engine, plan=writing.result().plan, plan_parameters=None)
            )

        made, verified = self._materialise(engine, plan, verification)
        return replace(
            refitted,
            plan=made.plan,
            plan_digest=made.plan_digest,
            nbytes=made.nbytes,
            stages={**refitted.stages, **made.stages},
            verification=verified,
        )

    def _materialise(
        self, engine: EngineFile, plan: str, beside: Callable[[Future[Materialised]], T]
    ) -> tuple[Materialised, T]:
        """Write the plan of an engine that has none of its own, and call `beside` meanwhile.

        Returns what was written, and what `beside` returned.
        """
        backend, watch = self.backend(engine.backend), Stopwatch(self._report)
        with ExitStack() as stack:
            writing = self._resident.with_room(
                lambda: stack.enter_context(backend.materialising(plan, self._loaded(engine), self._report))
            )
            writing.add_done_callback(self._tell_of_plan)
            result = beside(writing)
            with watch.phase("write"):
                made = writing.result()
        written = Spent(watch.stages["write"].seconds, made.nbytes)
        return replace(made, stages={**made.stages, "write": written}), result

    def _tell_of_plan(self, writing: Future[Materialised]) -> None:
        """Report that a plan is written, if it is, so that it is put into the store while its engine is verified."""
        if writing.exception() is None:
            made = writing.result()
            self._report(PlanWritten(made.plan, made.plan_digest))

    def _verification(
        self, engine: EngineFile, check: Check, reloaded: Callable[[], EngineFile] | None = None
    ) -> Verified | None:
        """Verify an engine that was just made. If there is no room, give up all engines and verify `reloaded`."""
        if check.against == "none":
            return None
        files = iter((lambda: engine, reloaded or (lambda: engine)))
        return self._resident.with_room(lambda: self._verify(Verify(next(files)(), check)))

    def _verify(self, request: Verify) -> Verified:
        """Verify; an engine that fails is given up, because it may hold other weights than its key says."""
        backend = self.backend(request.engine.backend)
        engine = self._loaded(request.engine)
        found = verify(request, engine, backend, self._references, self._scratch, self._report)
        if found.ok is False:
            self._resident.drop(request.engine.key)
        return found

    def _run(self, request: Run) -> Outcome:
        watch = Stopwatch(self._report)
        inputs = read_tensors(request.inputs)
        negative = self.backend(request.engine.backend).offered.negative_indices
        check_inputs(inputs, request.engine.inputs, request.engine.profiles, negative_indices=negative)
        self._costs.check_run(request.engine, inputs)
        with watch.phase("load"):
            engine = self._loaded(request.engine)
        with watch.phase("run"), under_deadline(self._report, "run"):
            outputs = engine.run(inputs)
        with watch.phase("write"):
            write_tensors(request.outputs, outputs)
        return Ran(request.outputs, watch.stages["run"].seconds, watch.stages)

    def _benchmark(self, request: Benchmark) -> Outcome:
        backend = self.backend(request.engine.backend)
        if request.against_not_refittable:  # room for both engines; this one counts as used, so it goes last
            self._resident.get(request.engine.key)
            self._resident.make_room(stored_bytes(request.engine.parameters))
        return benchmark(request, self._loaded(request.engine), backend, self._scratch, self._report)

    def _compare(self, request: Compare) -> Outcome:
        first = request.engines[0]
        inputs = inputs_of(request, first)
        negative = self.backend(first.backend).offered.negative_indices

        def loaded(engine: EngineFile) -> LoadedEngine:
            check_inputs(inputs, engine.inputs, engine.profiles, negative_indices=negative)
            self._costs.check_run(engine, inputs)
            return self._resident.with_room(lambda: self._loaded(engine))

        return compare(request, inputs, loaded, self._report)

    def _merge_timings(self, request: MergeTimings) -> TimingsMerged:
        backend = self.backend(request.backend)
        if not isinstance(backend, MergesTimings):
            raise BackendError("cannot_merge", f"{request.backend} has no timings that another process could read.")
        backend.merge_timings(request, self._report)
        return TimingsMerged(request.merged)

    def _loaded(self, engine: EngineFile) -> LoadedEngine:
        resident = self._resident.get(engine.key)
        if resident is not None:
            if self._files.are_untouched(engine.parameters):
                return resident
            self._resident.drop(engine.key)  # it may read what was written there since
        loaded = self._switched(engine)
        if loaded is None:
            self._resident.make_room(stored_bytes(engine.parameters))
            loaded = self.backend(engine.backend).load(engine, self._report)
        self._keep(loaded, engine)
        return loaded

    def _switched(self, engine: EngineFile) -> LoadedEngine | None:
        """Give this engine's weights to a resident engine of the same compiled plan; None if that gains nothing.

        An engine without a plan of its own has to be refitted in any case, so a resident engine saves the loading. An
        engine with a plan of its own is loaded beside the others, so that both stay.
        """
        backend = self.backend(engine.backend)
        if engine.plan_parameters is None or not backend.refits_in_place:
            return None
        resident = self._resident.take(engine.key, engine.root_plan)
        if resident is None:
            return None
        request = Refit(engine, engine.parameters, plan=None)
        return backend.refit(request, resident, self._report)[1]

    def _keep(self, loaded: LoadedEngine, engine: EngineFile) -> None:
        self._resident.put(engine.key, loaded, engine.root_plan)


def _cast_warning(what: str, counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:MAX_NAMED])
    more = f" and {len(counts) - MAX_NAMED} more" if len(counts) > MAX_NAMED else ""
    return f"values {what} in the cast to the type of their parameter: {shown}{more}"
