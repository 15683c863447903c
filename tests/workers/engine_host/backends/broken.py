"""Toys each of which breaks one promise, and the check that is to catch it."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import Timer
from typing import Any, Final

import numpy as np
from onnx import ModelProto

from tests.adding.toy_backend import VERSION, Abacus, Counted, Slate, Values, check_abacus
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
from workers.engine_host.backends.base import Arrays, LoadedEngine
from workers.engine_host.conformance import Check, building, plans, preflight, refitting, running
from workers.engine_host.preflight.verdict import Finding, Question, Verdict
from workers.engine_host.tensors import Array

Sources = tuple[ParameterSource, ...]
BROKEN: Final[dict[Check, type[Abacus]]] = {}
LATE_S = 0.3


def breaks(check: Check) -> Callable[[type[Abacus]], type[Abacus]]:
    """Say which check a toy is to be caught by."""

    def entered(toy: type[Abacus]) -> type[Abacus]:
        BROKEN[check] = toy
        return toy

    return entered


def saying(**changes: Any) -> type[Abacus]:  # noqa: ANN401 - fields of Built
    """A toy whose builds say something else of themselves."""

    class Saying(Abacus):
        def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine | None]:
            built, engine = super().build(request, report)
            return replace(built, **changes), engine

    return Saying


def saying_of_refits(toy: type[Abacus], said: Callable[[Refit], Mapping[str, Any]]) -> type[Abacus]:
    """A toy whose refits say something else of themselves."""

    class Saying(toy):  # type: ignore[valid-type, misc]  # one of two
        def _refitted(self, request: Refit, engine: Counted, *, warm: bool) -> Refitted:
            refitted: Refitted = super()._refitted(request, engine, warm=warm)
            return replace(refitted, **said(request))

    return Saying


def offering(**capabilities: Any) -> type[Abacus]:  # noqa: ANN401 - JSON
    offer = replace(Abacus.offered, capabilities={**Abacus.offered.capabilities, **capabilities})
    return type("Offering", (Abacus,), {"offered": offer})


def with_engine(engine: type[Counted]) -> type[Abacus]:
    return type("WithEngine", (Abacus,), {"engine": engine})


def accepting(code: str) -> type[Abacus]:
    """A toy that builds with zeros instead of raising this error."""

    class Accepting(Abacus):
        def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine | None]:
            self.is_building = True
            try:
                return super().build(request, report)
            finally:
                self.is_building = False

        def _values(self, plan: ModelProto, sources: Sources, only: set[str] | None = None) -> Values:
            try:
                return super()._values(plan, sources, only)
            except BackendError as error:
                if error.code != code or not self.is_building:
                    raise
                return {one.name: np.zeros(list(one.dims), np.float32) for one in plan.graph.initializer}

        is_building = False

    return Accepting


def swallowing(code: str) -> type[Abacus]:
    """A toy whose refits in place are said to be done when they fail with this error."""

    class Swallowing(Abacus):
        def refit(self, request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
            try:
                return super().refit(request, resident, report)
            except BackendError as error:
                if error.code != code or not isinstance(resident, Counted):
                    raise
                return self._refitted(request, resident, warm=True), resident

    return Swallowing


def is_root(engine: EngineFile) -> bool:
    """Whether an engine's plan is the one that was compiled."""
    return engine.root_plan == f"sha256:{sha256(Path(engine.plan).read_bytes()).hexdigest()}"


breaks(building.check_the_offer_can_be_shown)(offering(beads={"wood", "glass"}))
breaks(building.check_options_have_schemas_that_accept_their_defaults)(
    offering(options={"beads": {"enum": ["wood", "glass"], "default": "iron"}})
)
breaks(building.check_a_build_writes_its_plan_and_says_its_digest)(saying(plan_digest=f"sha256:{'0' * 64}"))
breaks(building.check_a_build_is_for_the_default_platform)(saying(platform="iron"))
breaks(building.check_a_build_is_of_the_version_offered)(saying(backend_version="2.0"))
breaks(building.check_facts_and_stages_can_be_recorded)(saying(facts={"beads": {"wood"}}))
breaks(building.check_every_parameter_must_have_weights)(accepting("missing_weights"))
breaks(building.check_weights_must_fit_their_parameter)(accepting("wrong_weights"))
breaks(refitting.check_a_refit_that_fails_says_so)(swallowing("file_failed"))
breaks(refitting.check_a_refit_wants_every_parameter)(swallowing("missing_weights"))
breaks(refitting.check_a_refit_wants_weights_that_fit)(swallowing("wrong_weights"))
breaks(refitting.check_a_refit_says_whether_an_engine_was_resident)(saying_of_refits(Abacus, lambda _: {"warm": True}))
breaks(refitting.check_a_refit_counts_the_parameters_that_changed)(
    saying_of_refits(Abacus, lambda request: {"changed": len(request.parameters)})
)
breaks(plans.check_a_refit_has_no_plan_yet)(saying_of_refits(Abacus, lambda request: {"plan": request.parent.plan}))
breaks(plans.check_a_refit_has_its_parents_plan)(saying_of_refits(Slate, lambda _: {"plan": None, "plan_digest": None}))


@breaks(building.check_a_build_returns_what_it_can_load)
class Withholding(Abacus):
    def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine | None]:
        return super().build(request, report)[0], None


@breaks(building.check_options_that_are_not_declared_are_refused)
class TakingAnyOption(Abacus):
    def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine | None]:
        return super().build(replace(request, options={}), report)


@breaks(building.check_a_lost_file_is_a_backend_error)
class RaisingWhatPythonRaises(Abacus):
    def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine | None]:
        try:
            return super().build(request, report)
        except BackendError as error:
            if error.code == "file_failed":
                raise FileNotFoundError(error.detail) from error
            raise


@breaks(building.check_a_build_that_fails_leaves_no_plan)
class LeavingAPlan(Abacus):
    def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine | None]:
        Path(request.plan).touch()
        return super().build(request, report)


@breaks(running.check_an_engine_computes_its_definition)
@with_engine
class OffByOne(Counted):
    def run(self, inputs: Arrays) -> dict[str, Array]:
        return {name: array + 1 for name, array in super().run(inputs).items()}


@breaks(running.check_a_run_depends_on_its_inputs_alone)
@with_engine
class Remembering(Counted):
    """Gives again what it gave for inputs of the same shape, until its weights change."""

    def run(self, inputs: Arrays) -> dict[str, Array]:
        key = inputs["x"].shape, tuple(value.tobytes() for value in self.values.values())
        given: dict[Any, dict[str, Array]] = self.__dict__.setdefault("given", {})
        if key not in given:
            given[key] = super().run(inputs)
        return given[key]


@breaks(running.check_an_engine_loaded_again_computes_the_same)
class LoadingHalf(Abacus):
    def load(self, engine: EngineFile, report: Report) -> LoadedEngine:
        loaded = super().load(engine, report)
        if isinstance(loaded, Counted) and is_root(engine) and engine.plan_parameters is None:
            loaded.values["1.bias"] += 1
        return loaded


@breaks(running.check_engines_side_by_side_keep_their_own_weights)
class Sharing(Abacus):
    def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine | None]:
        built, engine = super().build(request, report)
        if isinstance(engine, Counted):
            shared: Values = self.__dict__.setdefault("shared", {})
            shared.update(engine.values)
            engine.values = shared
        return built, engine


@breaks(running.check_transforms_are_applied)
class TakingTensorsAsTheyLie(Abacus):
    def _values(self, plan: ModelProto, sources: Sources, only: set[str] | None = None) -> Values:
        plain = tuple(ParameterSource(replace(one.binding, transforms=()), one.tensors) for one in sources)
        return super()._values(plan, plain, only)


@breaks(running.check_a_damaged_plan_is_refused)
class Crashing(Abacus):
    def load(self, engine: EngineFile, report: Report) -> LoadedEngine:
        try:
            return super().load(engine, report)
        except BackendError as error:
            raise ValueError("what is this?") from error


@breaks(running.check_an_engine_says_what_memory_it_keeps)
@with_engine
class Weightless(Counted):
    @property
    def nbytes(self) -> int:
        return 0


@breaks(running.check_every_measured_run_is_told)
@with_engine
class MeasuringTheMean(Counted):
    def measure(self, inputs: Arrays, *, iterations: int, warmup: int) -> list[float]:
        return [float(np.mean(super().measure(inputs, iterations=iterations, warmup=warmup)))]


@breaks(running.check_layers_and_inspection_can_be_recorded)
@with_engine
class Showing(Counted):
    def inspect(self) -> Any:  # noqa: ANN401 - as the protocol has it
        return self.plan


@breaks(refitting.check_a_refit_equals_a_fresh_build)
class ForgettingOne(Abacus):
    def refit(self, request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        before = resident.values["1.bias"] if isinstance(resident, Counted) else None
        refitted, engine = super().refit(request, resident, report)
        if before is not None and isinstance(engine, Counted):
            engine.values["1.bias"] = before
        return refitted, engine


@breaks(refitting.check_a_refit_needs_no_resident_engine)
class LoadingTheParentOnly(Abacus):
    def refit(self, request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        parent = request.parent
        if resident is None and is_root(parent) and parent.plan_parameters is None:
            engine = self._loaded(parent, parent.parameters)
            return self._refitted(request, engine, warm=False), engine
        return super().refit(request, resident, report)


@breaks(refitting.check_a_refit_never_changes_the_parents_plan)
class WritingOverTheParent(Abacus):
    def refit(self, request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        refitted, engine = super().refit(request, resident, report)
        if isinstance(engine, Counted):
            self._write(engine, Path(request.parent.plan))
        return refitted, engine


@breaks(refitting.check_the_resident_engine_becomes_the_new_one)
class KeepingBoth(Abacus):
    def refit(self, request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        copy = Counted(resident.plan, dict(resident.values)) if isinstance(resident, Counted) else None
        return super().refit(request, copy, report)


@breaks(refitting.check_a_refit_leaves_the_resident_parent_as_it_was)
class RefittingTheParentToo(Slate):
    def refit(self, request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        refitted, engine = super().refit(request, resident, report)
        if isinstance(resident, Counted) and isinstance(engine, Counted):
            resident.values.update(engine.values)
        return refitted, engine


@breaks(refitting.check_a_refit_that_fails_leaves_the_resident_parent_as_it_was)
class FailingWithTheParent(Slate):
    def refit(self, request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        try:
            return super().refit(request, resident, report)
        except BackendError:
            if isinstance(resident, Counted):
                resident.values["0.weight"] *= 0
            raise


@breaks(plans.check_an_engine_without_a_plan_is_loaded_from_another_ones)
class LoadingWhatThePlanHolds(Abacus):
    def load(self, engine: EngineFile, _report: Report) -> LoadedEngine:
        return self._loaded(engine, engine.held)


@breaks(plans.check_an_engine_without_a_plan_can_be_refitted)
class ComparingWithTheParent(Abacus):
    def refit(self, request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        parent = replace(request.parent, plan_parameters=None)
        return super().refit(replace(request, parent=parent), resident, report)


@breaks(plans.check_a_materialised_plan_lies_where_it_is_said_to)
class WritingAnotherDigest(Abacus):
    def materialising(
        self, plan: str, engine: LoadedEngine, report: Report
    ) -> AbstractContextManager[Future[Materialised]]:
        with super().materialising(plan, engine, report) as writing:
            made = replace(writing.result(), plan_digest=f"sha256:{'0' * 64}")
        other: Future[Materialised] = Future()
        other.set_result(made)
        return nullcontext(other)


@breaks(plans.check_a_materialised_plan_computes_the_same)
class WritingZeros(Abacus):
    def materialising(
        self, plan: str, engine: LoadedEngine, report: Report
    ) -> AbstractContextManager[Future[Materialised]]:
        if isinstance(engine, Counted):
            engine = Counted(engine.plan, {name: value * 0 for name, value in engine.values.items()})
        return super().materialising(plan, engine, report)


@breaks(plans.check_a_materialised_plan_can_be_refitted)
class MaterialisingForGood(Abacus):
    def refit(self, request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        if not is_root(request.parent):
            raise BackendError("not_refittable", "The plan was written without refit support. Build the engine again.")
        return super().refit(request, resident, report)


@breaks(plans.check_a_plan_is_written_when_its_block_ends)
class WritingLate(Abacus):
    def materialising(
        self, plan: str, engine: LoadedEngine, report: Report
    ) -> AbstractContextManager[Future[Materialised]]:
        late: Future[Materialised] = Future()
        with super().materialising(plan, engine, report) as writing:
            Timer(LATE_S, late.set_result, [writing.result()]).start()
        return nullcontext(late)


@breaks(plans.check_a_plan_without_weights_serves_any)
class RememberingTheBuild(Slate):
    def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine | None]:
        self.__dict__.setdefault("built", {})[request.plan] = request.parameters
        return super().build(request, report)

    def load(self, engine: EngineFile, _report: Report) -> LoadedEngine:
        return self._loaded(engine, self.__dict__["built"].get(engine.plan, engine.parameters))


@breaks(plans.check_there_is_nothing_to_materialise)
class NotImplementing(Slate):
    def materialising(
        self, _plan: str, _engine: LoadedEngine, _report: Report
    ) -> AbstractContextManager[Future[Materialised]]:
        raise NotImplementedError


@breaks(preflight.check_the_preflight_refuses_nothing_that_is_built)
class RefusingWhatItBuilds(Abacus):
    @staticmethod
    def preflight(definition: ModelProto, question: Question) -> list[Verdict]:
        return [
            replace(one, refused=(Finding("MatMul", "too hard", 1, ()),)) for one in check_abacus(definition, question)
        ]


@breaks(preflight.check_the_preflight_answers_for_each_version)
class AnsweringForItself(Abacus):
    @staticmethod
    def preflight(definition: ModelProto, question: Question) -> list[Verdict]:
        return check_abacus(definition, replace(question, versions=(VERSION,)))
