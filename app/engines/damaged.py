"""What needs each damaged artifact: the definitions, weight versions, engines and others that keep it, by model."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Select, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.artifacts import damage
from app.artifacts.tables import Blob
from app.definitions.tables import Definition
from app.engines.tables import Engine
from app.http.pagination import PageQuery, Rows
from app.jobs.tables import Job
from app.registry.tables import Model
from app.weights.tables import WeightVersion

MAX_USERS = 100  # of one artifact that are listed
UPLOAD = "Upload the same bytes again with PUT /v1/blobs/{digest}, which replaces them."
REMEDIES = {
    "definition": " Or post the definition again, which writes its graph anew.",
    "engine": ' Or build the engine again with "reuse": false; a lost plan cannot be refitted.',
    "timing_cache": " Or do nothing: the next build begins a new timing cache.",
}
NUMBERED: dict[str, tuple[type[Definition | WeightVersion | Engine], InstrumentedAttribute[int]]] = {
    "definition": (Definition, Definition.version),
    "verification": (Definition, Definition.version),
    "weights": (WeightVersion, WeightVersion.version),
    "engine": (Engine, Engine.number),
}
EXAMPLE: dict[str, Any] = {
    "digest": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "size": 90868376,
    "damage": "changed",
    "since": "2026-11-22T10:00:00Z",
    "found_by": "scrubber",
    "used_by": [{"kind": "weights", "model": "minilm", "number": 1, "name": None}],
    "remedy": UPLOAD.format(digest="sha256:9f86d081…"),
}


class UserAnswer(BaseModel):
    """What needs an artifact."""

    kind: Literal["definition", "weights", "engine", "verification", "job", "timing_cache"] = Field(
        description="`verification`: the inputs that are kept for a definition."
    )
    model: str | None
    number: int | None = Field(description="Its number in the model; of a verification, its definition's.")
    name: str | None = Field(description="The id of a job, or the platform of a timing cache.")


class DamagedAnswer(BaseModel):
    """A damaged artifact."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    digest: str
    size: int = Field(description="Bytes that it had.")
    damage: Literal["changed", "missing"]
    since: datetime = Field(description="When it was found.")
    found_by: Literal["api", "worker", "scrubber"]
    used_by: list[UserAnswer] = Field(description=f"What needs it, at most {MAX_USERS}.")
    remedy: str


def list_damaged(session: Session, page: PageQuery) -> Rows[DamagedAnswer]:
    """Return one page of the damaged artifacts, by digest."""
    found = damage.list_damaged(session, page)
    owners = damage.owners_of(session, [blob.digest for blob in found.data])
    users = _users(session, {owner for kept in owners.values() for owner in kept})
    answers = [_answer(blob, [users[owner] for owner in owners[blob.digest] if owner in users]) for blob in found.data]
    return Rows(answers, found.has_more, found.next_cursor)


def _answer(blob: Blob, users: list[UserAnswer]) -> DamagedAnswer:
    remedies = dict.fromkeys(REMEDIES[user.kind] for user in users if user.kind in REMEDIES)
    return DamagedAnswer.model_validate(
        {
            "digest": blob.digest,
            "size": blob.size,
            "damage": blob.damage,
            "since": blob.damaged_at,
            "found_by": blob.found_by,
            "used_by": users[:MAX_USERS],
            "remedy": UPLOAD.format(digest=blob.digest) + "".join(remedies),
        }
    )


def _users(session: Session, owners: Iterable[str]) -> dict[str, UserAnswer]:
    """Return what the owners of blobs are, as `artifacts.service.keep` was told them."""
    keys: dict[str, list[str]] = defaultdict(list)
    for owner in owners:
        kind, _, key = owner.partition(":")
        keys[kind].append(key)
    users = {}
    for kind, statement in _numbered(keys).items():
        for row_id, model, number in session.execute(statement):
            users[f"{kind}:{row_id}"] = _user(kind, model=model, number=number)
    for job_id, of_model in session.execute(select(Job.id, Job.model).where(Job.id.in_(keys["job"]))):
        users[f"job:{job_id}"] = _user("job", model=of_model, name=job_id)
    for platform in keys["timing_cache"]:
        users[f"timing_cache:{platform}"] = _user("timing_cache", name=platform)
    return users


def _numbered(keys: Mapping[str, list[str]]) -> dict[str, Select[int, str, int]]:
    """Return, by kind, the query for the id, the model's name and the number of those with these ids."""
    ids = {kind: [int(key) for key in of_kind] for kind, of_kind in keys.items() if kind in NUMBERED}
    statements = {}
    for kind, of_kind in ids.items():
        table, number = NUMBERED[kind]
        statements[kind] = select(table.id, Model.name, number).where(table.model_id == Model.id, table.id.in_(of_kind))
    return statements


def _user(kind: str, *, model: str | None = None, number: int | None = None, name: str | None = None) -> UserAnswer:
    return UserAnswer.model_validate({"kind": kind, "model": model, "number": number, "name": name})
