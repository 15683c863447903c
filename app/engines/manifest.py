"""The document that says how an engine came to be."""

from typing import Any

from sqlalchemy.orm import Session

from app.bindings.service import load_report
from app.definitions.tables import Definition
from app.engines.facts import read_facts
from app.engines.queries import get_engine, load_lineage
from app.engines.tables import Engine
from app.jobs.service import get_job
from app.jobs.tables import Job
from app.registry.tables import Model
from app.weights.tables import WeightVersion

MAX_PARENTS = 1000
EVERYTHING = (
    Engine.profiles,
    Engine.options,
    Engine.rules,
    Engine.verification,
    Engine.facts,
    Engine.timings,
    Engine.device_fingerprint,
)


def engine_manifest(session: Session, model: Model, number: int) -> dict[str, Any]:
    """Return the fields of `ManifestAnswer`; raises NotFound if the model has no such engine."""
    engine = get_engine(session, model.id, number, load=EVERYTHING)
    lineage = load_lineage(session, model.id, number, ancestors=MAX_PARENTS, descendants=0)
    facts = read_facts(engine.facts)
    return {
        "model": model.name,
        "engine": engine.number,
        "method": engine.method,
        "created_at": engine.created_at,
        "fingerprint": engine.fingerprint,
        "definition": _definition(session.get_one(Definition, engine.definition_id)),
        "weights": _weights(session.get_one(WeightVersion, engine.weights_id)),
        "binding": load_report(session, engine.binding_id),
        "rules": engine.rules,
        "backend": {
            "name": engine.backend,
            "version": engine.backend_version,
            "device": engine.device,
            "platform": engine.platform,
            "device_fingerprint": engine.device_fingerprint,
            "options": engine.options,
        },
        "profiles": engine.profiles,
        "plan": _plan(session, engine),
        "parents": [
            {"number": parent.number, "method": parent.method, "weights": parent.weights}
            for parent in lineage.ancestors
        ],
        "parents_complete": lineage.ancestors_complete,
        "job": _job(get_job(session, engine.job_id)),
        "timings": engine.timings,
        "verification": engine.verification,
        "service_version": facts.service_version,
        "facts": {name: fact for name, fact in facts.to_json().items() if name != "service_version"},
    }


def _definition(definition: Definition) -> dict[str, Any]:
    return {
        "version": definition.version,
        "digest": definition.digest,
        "source": definition.source,
        "created_at": definition.created_at,
    }


def _plan(session: Session, engine: Engine) -> dict[str, Any]:
    plan: dict[str, Any] = {
        "digest": engine.plan_digest,
        "bytes": engine.plan_bytes,
        "signature": engine.plan_signature,
        "root": engine.root_plan,
    }
    if engine.base_id is not None:
        plan["base"] = session.get_one(Engine, engine.base_id).number
    return plan


def _weights(weights: WeightVersion) -> dict[str, Any]:
    return {
        "version": weights.version,
        "digest": weights.digest,
        "label": weights.label,
        "base": weights.base,
        "tensor_count": weights.tensor_count,
        "bytes": weights.bytes,
        "created_at": weights.created_at,
    }


def _job(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "attempts": job.attempt,
        "worker": job.worker,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
    }
