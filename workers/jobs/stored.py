"""Weights and engines as the database has them, and the files that hold their bytes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from cachetools import LRUCache
from sqlalchemy import select
from sqlalchemy.orm import Session, undefer

from app.artifacts.checked import BlobDamaged
from app.artifacts.signing import PlanSigner, PlanStatement
from app.artifacts.store import ArtifactStore
from app.bindings.report import ParameterBinding
from app.bindings.service import StoredBinding, load_binding
from app.bindings.tables import Binding
from app.definitions.parameter import InputSpec
from app.definitions.profiles import Profile, parse_profiles
from app.definitions.service import inputs_of
from app.definitions.tables import Definition
from app.engines.tables import Engine
from app.errors import ServiceError
from app.remembered import KEPT_ROWS, remembered
from app.weights.manifest import TensorEntry, entries_from_json
from app.weights.service import load_rows
from app.weights.tables import WeightVersion
from workers.channel.messages import EngineFile, ParameterSource, TensorFile
from workers.jobs.statements import Signed, signed_of, statement_of


@dataclass(frozen=True, slots=True)
class BoundWeights:
    """A weight version, the rows of its manifest as JSON, and how its tensors feed the parameters.

    `rows` are turned into sources after the session is closed (see `Sources`).
    """

    weights_id: int
    binding_id: int
    rows: list[Any]
    binding: StoredBinding
    weights_digest: str
    binding_digest: str


@dataclass(frozen=True, slots=True)
class StoredDefinition:
    """A definition; `digest` is its ONNX file."""

    id: int
    digest: str
    inputs: tuple[InputSpec, ...]


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan in the store, of `nbytes` bytes."""

    digest: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class BasePlan:
    """The plan of engine `engine_id`, from which another engine is loaded until it has its own plan."""

    engine_id: int
    plan: StoredPlan
    weights: BoundWeights


@dataclass(frozen=True, slots=True)
class StoredEngine:
    """A published engine, with all that is needed to load it again.

    `source` is its own plan, or the plan of another engine until it is materialised. `signed` is to be verified before
    that plan is loaded. `profiles_json` are the profiles as they were asked for.
    """

    id: int
    number: int
    backend: str
    platform: str
    root_plan: str
    source: StoredPlan | BasePlan
    statement: PlanStatement
    signed: tuple[Signed, ...]
    definition: StoredDefinition
    weights: BoundWeights
    profiles: tuple[Profile, ...]
    profiles_json: list[Any]
    options: Mapping[str, Any]
    verification: Mapping[str, Any]
    device_fingerprint: Mapping[str, Any] | None

    @property
    def plan(self) -> StoredPlan:
        """The plan that the engine is loaded from."""
        return self.source.plan if isinstance(self.source, BasePlan) else self.source

    @property
    def materialised_id(self) -> int:
        """The id of the engine that `plan` belongs to.

        An engine refitted from this one is loaded from the same plan until it has its own.
        """
        return self.source.engine_id if isinstance(self.source, BasePlan) else self.id


def load_definition(session: Session, definition_id: int) -> StoredDefinition:
    """Read a definition by its key."""

    def read() -> StoredDefinition:
        definition = session.get_one(Definition, definition_id)
        return StoredDefinition(definition.id, definition.digest, inputs_of(definition))

    return remembered(session, "definition", definition_id, read)


def load_weights(session: Session, weights_id: int, binding_id: int) -> BoundWeights:
    """Read a weight version and a binding by their keys."""
    return BoundWeights(
        weights_id,
        binding_id,
        load_rows(session, weights_id),
        load_binding(session, binding_id),
        _digest(session, WeightVersion, weights_id),
        _digest(session, Binding, binding_id),
    )


def _digest(session: Session, table: type[WeightVersion | Binding], key: int) -> str:
    def read() -> str:
        return session.scalars(select(table.digest).where(table.id == key)).one()

    return remembered(session, f"{table.__tablename__} digest", key, read)


def load_engine(session: Session, engine_id: int) -> StoredEngine:
    """Read an engine by its key."""
    engine = _read(session, engine_id)
    definition = load_definition(session, engine.definition_id)
    weights = load_weights(session, engine.weights_id, engine.binding_id)
    statement = _statement(engine, definition, weights)
    source, signed = _source_of(session, engine)
    return StoredEngine(
        id=engine.id,
        number=engine.number,
        backend=engine.backend,
        platform=engine.platform,
        root_plan=engine.root_plan,
        source=source,
        statement=statement,
        signed=(*signed_of(engine, statement), *signed),
        definition=definition,
        weights=weights,
        profiles=parse_profiles(engine.profiles, definition.inputs),
        profiles_json=engine.profiles,
        options=engine.options,
        verification=engine.verification,
        device_fingerprint=engine.device_fingerprint,
    )


def _read(session: Session, engine_id: int) -> Engine:
    columns = (Engine.profiles, Engine.options, Engine.verification, Engine.device_fingerprint)
    return session.get_one(Engine, engine_id, options=[undefer(column) for column in columns])


def _source_of(session: Session, engine: Engine) -> tuple[StoredPlan | BasePlan, tuple[Signed, ...]]:
    """Return the plan that an engine is loaded from, and what is signed of that plan if it is another engine's."""
    if engine.base_id is None:
        return _plan_of(engine), ()
    base = _read(session, engine.base_id)
    if (base.root_plan, base.recipe) != (engine.root_plan, engine.recipe):
        raise ServiceError(
            f"Engine {engine.number} is loaded from the plan of engine {base.number}, whose plan goes back to "
            'another one: the row of one of them was changed. Build the engine again with "reuse": false.',
            code="bad_signature",
        )
    weights = load_weights(session, base.weights_id, base.binding_id)
    statement = _statement(base, load_definition(session, base.definition_id), weights)
    return BasePlan(base.id, _plan_of(base), weights), signed_of(base, statement)


def _plan_of(engine: Engine) -> StoredPlan:
    if engine.plan_digest is None or engine.plan_bytes is None or engine.plan_signature is None:
        raise ServiceError(
            f"Engine {engine.number} has no plan, and none it could be loaded from. Build it again.",
            code="plan_missing",
        )
    return StoredPlan(engine.plan_digest, engine.plan_bytes)


def _statement(engine: Engine, definition: StoredDefinition, weights: BoundWeights) -> PlanStatement:
    return statement_of(engine, definition.digest, weights.weights_digest, weights.binding_digest)


class Sources:
    """Finds the tensors that feed the parameters, and gets their files onto this machine.

    Weight versions have most of their values in common, and a line of refits reads the same few versions over and over.
    If a parameter's binding and tensors are the same as before, its source is the same object as before. So it is made
    once and sent to the engine host once. The engine host checks each tensor's bytes when it first uses them.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self._lock = Lock()  # a canceled job's thread may still be in here; never held while files are fetched
        self._known: LRUCache[tuple[int, int], _Known] = LRUCache(KEPT_ROWS, getsizeof=lambda one: len(one.sources))
        self._made: dict[str, ParameterSource] = {}  # the newest source of each parameter

    def of(self, weights: BoundWeights) -> tuple[ParameterSource, ...]:
        """Return the source of every parameter, in the order of the binding report."""
        key = weights.weights_id, weights.binding_id
        with self._lock:
            known = self._known.get(key)
        if known is None or known.paths != self._paths(known.paths):
            known = self._read(weights)
            with self._lock:
                if len(known.sources) <= self._known.maxsize:
                    self._known[key] = known
        return known.sources

    def _read(self, weights: BoundWeights) -> "_Known":
        entries = {entry.name: entry for entry in entries_from_json(weights.rows)}
        fed = [(bound, [entries[name] for name in bound.tensors]) for bound in weights.binding.parameters]
        paths = self._paths({entry.blob for _, used in fed for entry in used})
        with self._lock:
            if len(self._made) > max(KEPT_ROWS, 2 * len(fed)):
                self._made.clear()
            return _Known(paths, tuple([self._source(binding, used, paths) for binding, used in fed]))

    def _source(
        self, binding: ParameterBinding, entries: Iterable[TensorEntry], paths: Mapping[str, str]
    ) -> ParameterSource:
        source = ParameterSource(binding, tuple([_file(entry, paths[entry.blob]) for entry in entries]))
        made = self._made.get(binding.parameter)
        if made == source:
            return made
        self._made[binding.parameter] = source
        return source

    def _paths(self, digests: Iterable[str]) -> dict[str, str]:
        return {digest: str(self.store.unchecked_path(digest)) for digest in digests}


class _Known(NamedTuple):
    """The sources of a weight version, and the path of each blob at the time they were made."""

    paths: dict[str, str]
    sources: tuple[ParameterSource, ...]


def _file(entry: TensorEntry, path: str) -> TensorFile:
    return TensorFile(path, entry.offset, entry.nbytes, entry.dtype, entry.shape, entry.blake3)


def engine_file(engine: StoredEngine, sources: Sources, signer: PlanSigner) -> EngineFile:
    """Get an engine's files onto this machine.

    Raises ServiceError "bad_signature" or "plan_damaged" if the plan that it is loaded from is not the one that this
    service made for it: deserializing a plan runs the code in it.
    """
    store = sources.store
    for one in engine.signed:
        signer.verify(one.statement, one.signature, one.form)
    base = engine.source if isinstance(engine.source, BasePlan) else None
    return EngineFile(
        backend=engine.backend,
        plan=str(_whole_plan(store, engine.plan.digest)),
        root_plan=engine.root_plan,
        definition=str(store.local_path(engine.definition.digest)),
        parameters=sources.of(engine.weights),
        inputs=engine.definition.inputs,
        plan_parameters=None if base is None else sources.of(base.weights),
        profiles=engine.profiles,
        options=engine.options,
    )


def _whole_plan(store: ArtifactStore, digest: str) -> Path:
    try:
        return store.local_path(digest)
    except BlobDamaged as error:
        raise ServiceError(
            f"The stored bytes of the plan {digest} are not those that were written: the artifact store is damaged. "
            'Check the store\'s disk, then build the engine again with "reuse": false.',
            code="plan_damaged",
        ) from error
