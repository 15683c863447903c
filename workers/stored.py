"""What the database says of weights and engines, and the files that hold it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session, undefer

from app.artifacts.store import ArtifactStore
from app.bindings.report import BindingReport, ParameterBinding
from app.definitions.parameter import InputSpec
from app.definitions.profiles import Profile, parse_profiles
from app.definitions.service import inputs_of
from app.definitions.tables import Definition
from app.engines.tables import Engine
from app.errors import ServiceError
from app.weights.manifest import Manifest, TensorEntry
from app.weights.service import load_rows
from workers.backends.base import EngineFile, ParameterSource, TensorFile
from workers.plans import PlanVerifier


@dataclass(frozen=True)  # no slots: what is cached lies in the instance's dictionary
class BoundWeights:
    """A weight version and how its tensors feed the parameters, kept as JSON until the session is closed."""

    weights_id: int
    rows: list[Any]
    binding: Mapping[str, Any]

    @cached_property
    def manifest(self) -> Manifest:
        """The version's tensors."""
        return Manifest.from_json(self.rows)

    @cached_property
    def report(self) -> BindingReport:
        """The binding report."""
        return BindingReport.from_json(self.binding)


@dataclass(frozen=True, slots=True)
class StoredDefinition:
    """A definition; `digest` is its ONNX file."""

    id: int
    digest: str
    inputs: tuple[InputSpec, ...]


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A signed plan in the store, of `nbytes` bytes."""

    digest: str
    nbytes: int
    signature: str


@dataclass(frozen=True, slots=True)
class BasePlan:
    """The plan an engine is loaded from as long as it has none of its own: that of engine `engine_id`."""

    engine_id: int
    plan: StoredPlan
    weights: BoundWeights


@dataclass(frozen=True, slots=True)
class StoredEngine:
    """A published engine, with all it takes to load it again; `profiles_json` as it was asked for.

    `source` is its own plan once it is materialised, and before that the plan of another.
    """

    id: int
    number: int
    backend: str
    platform: str
    root_plan: str
    source: StoredPlan | BasePlan
    definition: StoredDefinition
    weights: BoundWeights
    profiles: tuple[Profile, ...]
    profiles_json: list[Any]
    options: Mapping[str, Any]

    @property
    def plan(self) -> StoredPlan:
        """The plan it is loaded from."""
        return self.source.plan if isinstance(self.source, BasePlan) else self.source

    @property
    def materialised_id(self) -> int:
        """The engine whose plan that is: what an engine refitted from this one is based on."""
        return self.source.engine_id if isinstance(self.source, BasePlan) else self.id


def load_definition(session: Session, definition_id: int) -> StoredDefinition:
    """Read a definition by its key."""
    definition = session.get_one(Definition, definition_id)
    return StoredDefinition(definition.id, definition.digest, inputs_of(definition))


def load_weights(session: Session, weights_id: int, binding: Mapping[str, Any]) -> BoundWeights:
    """Read a weight version's manifest; `binding` is its binding report as JSON."""
    return BoundWeights(weights_id, load_rows(session, weights_id), binding)


def load_engine(session: Session, engine_id: int) -> StoredEngine:
    """Read an engine by its key."""
    columns = (Engine.profiles, Engine.options, Engine.binding)
    engine = session.get_one(Engine, engine_id, options=[undefer(column) for column in columns])
    definition = load_definition(session, engine.definition_id)
    return StoredEngine(
        id=engine.id,
        number=engine.number,
        backend=engine.backend,
        platform=engine.platform,
        root_plan=engine.root_plan,
        source=_source_of(session, engine),
        definition=definition,
        weights=load_weights(session, engine.weights_id, engine.binding),
        profiles=parse_profiles(engine.profiles, definition.inputs),
        profiles_json=engine.profiles,
        options=engine.options,
    )


def _source_of(session: Session, engine: Engine) -> StoredPlan | BasePlan:
    if engine.base_id is None:
        return _plan_of(engine)
    base = session.get_one(Engine, engine.base_id, options=[undefer(Engine.binding)])
    return BasePlan(base.id, _plan_of(base), load_weights(session, base.weights_id, base.binding))


def _plan_of(engine: Engine) -> StoredPlan:
    if engine.plan_digest is None or engine.plan_bytes is None or engine.plan_signature is None:
        raise ServiceError(
            f"Engine {engine.number} has no plan, and none it could be loaded from. Build it again.",
            code="plan_missing",
        )
    return StoredPlan(engine.plan_digest, engine.plan_bytes, engine.plan_signature)


def engine_file(engine: StoredEngine, store: ArtifactStore, plans: PlanVerifier) -> EngineFile:
    """Get an engine's files onto this machine; raises ServiceError where the plan it is loaded from is not ours."""
    plan = store.local_path(engine.plan.digest)
    plans.verify(plan, engine.plan.digest, engine.plan.signature)
    base = engine.source if isinstance(engine.source, BasePlan) else None
    return EngineFile(
        backend=engine.backend,
        plan=str(plan),
        root_plan=engine.root_plan,
        definition=str(store.local_path(engine.definition.digest)),
        parameters=parameter_sources(engine.weights, store),
        inputs=engine.definition.inputs,
        plan_parameters=None if base is None else parameter_sources(base.weights, store),
        profiles=engine.profiles,
        options=engine.options,
    )


def parameter_sources(weights: BoundWeights, store: ArtifactStore) -> tuple[ParameterSource, ...]:
    """Get the checkpoint files that feed the parameters onto this machine, and say where each tensor lies."""
    tensors = weights.manifest.tensors
    needed = {tensors[name].blob for binding in weights.report.bindings for name in binding.tensors}
    files = {digest: store.local_path(digest) for digest in sorted(needed)}
    return tuple(_source(binding, tensors, files) for binding in weights.report.bindings)


def _source(
    binding: ParameterBinding, tensors: Mapping[str, TensorEntry], files: Mapping[str, Path]
) -> ParameterSource:
    entries = [tensors[name] for name in binding.tensors]
    return ParameterSource(binding, tuple(_file(entry, files[entry.blob]) for entry in entries))


def _file(entry: TensorEntry, path: Path) -> TensorFile:
    return TensorFile(str(path), entry.offset, entry.nbytes, entry.dtype, entry.shape, entry.blake3)
