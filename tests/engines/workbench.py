"""Definitions, weights and workers to request engines of, and engines published as a worker would."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.artifacts.service import record
from app.artifacts.store import ArtifactStore, open_store
from app.bindings.report import BindingReport
from app.bindings.service import load_report
from app.database import Database
from app.definitions.parameter import InputSpec, OutputSpec, Parameter
from app.definitions.tables import Definition
from app.engines.facts import read_facts
from app.engines.publish import publish_engine
from app.engines.queries import get_engine
from app.engines.requests import request_build, request_engine, request_refit
from app.engines.tables import Engine
from app.fleet.backend_offer import BackendOffer
from app.fleet.service import WorkerReport, report
from app.jobs import service as jobs
from app.jobs.submission import Placement
from app.jobs.tables import Job
from app.registry.service import get_model, next_number
from app.settings import Settings
from app.weights.manifest import Manifest, TensorEntry
from app.weights.service import register
from app.weights.unsaved import UnsavedWeights

MAKE_ENGINES: tuple[Callable[..., Placement], ...] = (request_build, request_refit, request_engine)
PARAMETERS = (Parameter("w", (4, 8), "F32"), Parameter("b", (4,), "F32"))
INPUTS = (InputSpec("x", "F32", ("batch", 8)),)
OUTPUTS = (OutputSpec("y", "F32", ("batch", 4)),)
OPTIONS: dict[str, Any] = {
    "optimization": {"enum": ["extended", "basic", "none"], "default": "extended"},
    "seed": {},
}
REFIT_OPTION: dict[str, Any] = {
    "anyOf": [{"enum": ["all", "none"]}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
    "default": "all",
}


def digest_of(text: str) -> str:
    """A digest that stands for content called `text`."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def tensor(name: str, shape: tuple[int, ...], content: str, dtype: str = "F32") -> TensorEntry:
    """A checkpoint tensor; equal `content` means equal bytes."""
    return TensorEntry(name, dtype, shape, digest_of(content)[7:], digest_of("checkpoint"), 0, 4)


@dataclass(frozen=True, slots=True)
class Workbench:
    """Makes what engines are made of, in model "minilm"."""

    database: Database
    settings: Settings

    @property
    def store(self) -> ArtifactStore:
        """The artifacts of the service; those of the definitions and weights made here are not among them."""
        return open_store(self.settings)

    def add_definition(
        self,
        source: str = "first",
        rules: tuple[Any, ...] = (),
        *,
        parameters: tuple[Parameter, ...] = PARAMETERS,
        weights: int | None = None,
    ) -> int:
        """Add a definition, by default y = w x + b, with this embedded weight version; returns its version."""
        with self.database.transaction() as session:
            model_id = get_model(session, "minilm").id
            record(session, digest_of(source), 100)
            definition = Definition(
                model_id=model_id,
                version=next_number(session, model_id, "definition"),
                digest=digest_of(source),
                source={"family": "bert"},
                inputs=[spec.to_json() for spec in INPUTS],
                outputs=[spec.to_json() for spec in OUTPUTS],
                parameter_count=len(parameters),
                parameters=[parameter.to_json() for parameter in parameters],
                rules=list(rules),
                weights=weights,
            )
            session.add(definition)
            return definition.version

    def add_weights(self, *tensors: TensorEntry, label: str | None = None) -> int:
        """Add a weight version; returns its number."""
        unsaved = UnsavedWeights.of(Manifest.of(tensors))
        with self.database.transaction() as session:
            record(session, digest_of("checkpoint"), 1000)
            model_id = get_model(session, "minilm").id
            return register(session, model_id, unsaved, label=label)[0].version

    def add_epoch(self, epoch: int, label: str | None = None) -> int:
        """Add weights that bind, and of which only "b" differs from epoch to epoch."""
        return self.add_weights(tensor("w", (4, 8), "w"), tensor("b", (4,), f"b{epoch}"), label=label)

    def add_worker(
        self,
        backend: str = "onnxruntime",
        version: str = "1.32.0",
        *,
        device: str = "test CPU",
        platforms: Sequence[str] = ("cpu",),
        **said: object,
    ) -> None:
        """Let a worker report itself; `said` replaces what it says of its backend."""
        offer: dict[str, object] = {"version": version, "makes": [*platforms], "loads": [*platforms]}
        offer |= {"capabilities": {"options": OPTIONS}} | said
        described = {"kind": "cpu", "name": device, "memory_total": 1, "memory_free": 1}
        name = f"{backend}-{version}-{device}"
        report(
            self.database,
            WorkerReport(name, "host", 1, described, {backend: BackendOffer.model_validate(offer)}, (), None),
        )

    def add_idle_worker(self, backend: str, reason: str) -> None:
        """Let a worker report that it has a backend installed but cannot use it."""
        device = {"kind": "cpu", "name": "test CPU", "memory_total": 1, "memory_free": 1}
        offer = {backend: BackendOffer(version="8.6.1", unavailable=reason)}
        report(self.database, WorkerReport(f"idle-{backend}", "host", 1, device, offer, (), None))

    def submit(self, request: Callable[..., Placement], body: Any) -> Job:  # noqa: ANN401 - each request has its own
        """Post a request, with no broker behind."""
        needs = (self.database, self.store) if request in MAKE_ENGINES else (self.database,)
        return self.place(request(*needs, self.settings, "minilm", body))

    def place(self, placement: Placement) -> Job:
        """Make the job of a request that is prepared."""
        with self.database.transaction() as session:
            return placement.place(session)

    def request_of(self, job: Job) -> dict[str, Any]:
        """What a job tells its worker."""
        with self.database.reading() as session:
            return jobs.get_job(session, job.id).request

    def binding_of(self, binding_id: int) -> BindingReport:
        """The binding report a job names."""
        with self.database.reading() as session:
            return BindingReport.from_json(load_report(session, binding_id))

    def publish(self, job: Job, version: str = "1.32.0", platform: str = "cpu", **facts: Any) -> int:  # noqa: ANN401 - JSON
        """Publish what a build or refit job asked for, without a plan if it asked so; returns the engine's number."""
        with self.database.transaction() as session:
            request = jobs.get_job(session, job.id).request
            parent = session.get_one(Engine, request["parent_id"]) if "parent_id" in request else None
            return _publish(session, job, request, parent, version, platform, facts)

    def engine(self, number: int) -> Engine:
        """Read an engine of the model."""
        with self.database.reading() as session:
            return get_engine(session, get_model(session, "minilm").id, number, load=(Engine.facts,))


def _publish(
    session: Session,
    job: Job,
    request: dict[str, Any],
    parent: Engine | None,
    version: str,
    platform: str,
    facts: dict[str, Any],
) -> int:
    plan = digest_of(f"plan of {job.id}")
    record(session, plan, 10)
    lazy = request.get("materialise") == "lazy"
    return publish_engine(
        session,
        model_id=job.model_id,
        method="refit" if parent else "build",
        parent=parent.number if parent else None,
        definition_id=parent.definition_id if parent else request["definition_id"],
        weights_id=request["weights_id"],
        backend=parent.backend if parent else request["backend"],
        backend_version=version,
        device="cpu",
        platform=platform,
        profiles=parent.profiles if parent else request["profiles"],
        options=parent.options if parent else request["options"],
        rules=request["rules"],
        binding_id=request["binding_id"],
        fingerprint=request["fingerprint"],
        root_plan=parent.root_plan if parent else plan,
        plan_digest=None if lazy else plan,
        plan_bytes=None if lazy else 10,
        plan_signature=None if lazy else "00",
        base_id=(parent.base_id or parent.id) if parent and lazy else None,
        verification={"against": "reference", "ok": True},
        facts=read_facts(facts),
        timings={"total": 0.5},
        job_id=job.id,
    )
