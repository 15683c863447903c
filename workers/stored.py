"""What the database says of weights and engines, and the files that hold it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy.orm import Session, undefer

from app.artifacts.store import ArtifactStore
from app.bindings.report import ParameterBinding
from app.definitions.parameter import InputSpec
from app.definitions.profiles import Profile, parse_profiles
from app.definitions.service import inputs_of
from app.definitions.tables import Definition
from app.engines.tables import Engine
from app.errors import ServiceError
from app.weights.manifest import TensorEntry, entries_from_json
from workers.backends.base import EngineFile, ParameterSource, TensorFile
from workers.plans import PlanVerifier
from workers.versions import StoredBinding, Versions


@dataclass(frozen=True, slots=True)
class BoundWeights:
    """A weight version, the rows of its manifest as JSON, and how its tensors feed the parameters.

    Reading them is for after the session (see `Sources`).
    """

    weights_id: int
    binding_id: int
    rows: list[Any]
    binding: StoredBinding


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


def load_weights(session: Session, versions: Versions, weights_id: int, binding_id: int) -> BoundWeights:
    """Read a weight version and a binding by their keys."""
    rows, binding = versions.manifest(session, weights_id), versions.binding(session, binding_id)
    return BoundWeights(weights_id, binding_id, rows, binding)


def load_engine(session: Session, versions: Versions, engine_id: int) -> StoredEngine:
    """Read an engine by its key."""
    columns = (Engine.profiles, Engine.options)
    engine = session.get_one(Engine, engine_id, options=[undefer(column) for column in columns])
    definition = load_definition(session, engine.definition_id)
    return StoredEngine(
        id=engine.id,
        number=engine.number,
        backend=engine.backend,
        platform=engine.platform,
        root_plan=engine.root_plan,
        source=_source_of(session, versions, engine),
        definition=definition,
        weights=load_weights(session, versions, engine.weights_id, engine.binding_id),
        profiles=parse_profiles(engine.profiles, definition.inputs),
        profiles_json=engine.profiles,
        options=engine.options,
    )


def _source_of(session: Session, versions: Versions, engine: Engine) -> StoredPlan | BasePlan:
    if engine.base_id is None:
        return _plan_of(engine)
    base = session.get_one(Engine, engine.base_id)
    return BasePlan(base.id, _plan_of(base), load_weights(session, versions, base.weights_id, base.binding_id))


def _plan_of(engine: Engine) -> StoredPlan:
    if engine.plan_digest is None or engine.plan_bytes is None or engine.plan_signature is None:
        raise ServiceError(
            f"Engine {engine.number} has no plan, and none it could be loaded from. Build it again.",
            code="plan_missing",
        )
    return StoredPlan(engine.plan_digest, engine.plan_bytes, engine.plan_signature)


class Sources:
    """Says where the tensors lie that feed the parameters, and gets their files onto this machine.

    Weight versions that one job reads have most of their values in common. Where binding and tensors of a parameter
    are the same its source is one object, which is made once and which a request pickles once.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self._paths: dict[str, str] = {}
        self._made: dict[str, _Made] = {}

    def of(self, weights: BoundWeights) -> tuple[ParameterSource, ...]:
        """Return the source of every parameter, in the order of the binding report."""
        rows = {row[0]: row for row in weights.rows}
        return tuple([self._source(one, [rows[name] for name in one.tensors]) for one in weights.binding.parameters])

    def _source(self, binding: ParameterBinding, rows: list[Any]) -> ParameterSource:
        made = self._made.get(binding.parameter)
        if made is None or (made.source.binding, made.rows) != (binding, rows):
            files = tuple([self._file(entry) for entry in entries_from_json(rows)])
            made = self._made[binding.parameter] = _Made(rows, ParameterSource(binding, files))
        return made.source

    def _file(self, entry: TensorEntry) -> TensorFile:
        return TensorFile(self._path(entry.blob), entry.offset, entry.nbytes, entry.dtype, entry.shape, entry.blake3)

    def _path(self, digest: str) -> str:
        if digest not in self._paths:
            self._paths[digest] = str(self.store.local_path(digest))
        return self._paths[digest]


class _Made(NamedTuple):
    """A source and the rows of its tensors."""

    rows: list[Any]
    source: ParameterSource


def engine_file(engine: StoredEngine, sources: Sources, plans: PlanVerifier) -> EngineFile:
    """Get an engine's files onto this machine; raises ServiceError where the plan it is loaded from is not ours."""
    store = sources.store
    plan = store.local_path(engine.plan.digest)
    plans.verify(plan, engine.plan.digest, engine.plan.signature)
    base = engine.source if isinstance(engine.source, BasePlan) else None
    return EngineFile(
        backend=engine.backend,
        plan=str(plan),
        root_plan=engine.root_plan,
        definition=str(store.local_path(engine.definition.digest)),
        parameters=sources.of(engine.weights),
        inputs=engine.definition.inputs,
        plan_parameters=None if base is None else sources.of(base.weights),
        profiles=engine.profiles,
        options=engine.options,
    )
