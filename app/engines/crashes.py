"""Crashes of compilers: taken down by the worker, and avoided by later requests.

A mark says that one version of a backend crashed twice as it compiled a definition with certain profiles and options.
Weights are no part of it. Builds of the same go to workers of other versions, or are refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.database import insert_into, now
from app.definitions.tables import CompilerCrash, Definition
from app.engines.fingerprint import recipe
from app.engines.targets import Target
from app.engines.work import BuildWork
from app.errors import Conflict, Unavailable
from app.fleet.offers import Member, fleet_offers
from app.jobs.queue import queue_of
from app.settings import Settings

OTHER_VERSION_WANTED = "other_version_wanted"
TELLING = frozenset({"profiling_verbosity"})  # options that say what an engine tells of itself, not what is compiled


def take_down(
    session: Session, work: BuildWork, backend_version: str, *, job_id: str, layer: str | None, detail: str
) -> None:
    """Mark what a build asked for as something at which this version of its backend crashes."""
    key = _key_of(session, work, backend_version)
    values = {"layer": layer, "detail": detail, "job_id": job_id, "at": now()}
    session.execute(
        insert_into(session, CompilerCrash)
        .values(**key, backend=work.backend, profiles=work.profiles, options=work.options, **values)
        .on_conflict_do_update(index_elements=list(key), set_=values)
    )


def forget(session: Session, work: BuildWork, backend_version: str) -> None:
    """Remove the mark of a build that has succeeded after all."""
    key = _key_of(session, work, backend_version)
    session.execute(delete(CompilerCrash).where(*(getattr(CompilerCrash, name) == key[name] for name in key)))


def require_no_crash(session: Session, settings: Settings, work: BuildWork, backend_version: str, queue: str) -> None:
    """Leave a build at which this version of the backend crashes, unless a retry is asked for.

    Raises Unavailable OTHER_VERSION_WANTED if a worker alive that takes jobs of the build's queue has a version that is
    not known to crash at it, and Conflict "compiler_crashes" otherwise.
    """
    if work.retry_crashed:
        return
    marks = _marks(session, work.definition_id, work.backend, work.profiles, work.options)
    if backend_version not in marks:
        return
    takers = [one for one in fleet_offers(session, settings).offering(work.backend) if _takes(one, queue)]
    others = sorted({one.said.version for one in takers} - marks.keys())
    if not others:
        raise _refusal(session, [marks[backend_version]])
    raise Unavailable(
        f"{work.backend} {backend_version} crashes at this build. It waits for a worker with {', '.join(others)}.",
        code=OTHER_VERSION_WANTED,
    )


def avoid_crashes(
    session: Session, target: Target, *, definition_id: int, profiles: Sequence[Any], options: Mapping[str, Any]
) -> tuple[Target, Conflict | None]:
    """Return the workers of a target that do not crash at a build, or all of them and the error if each does.

    If no worker alive offers the backend, the worker that takes the job looks by itself.
    """
    marks = _marks(session, definition_id, target.backend, profiles, options)
    members = target.members
    spared = tuple(member for member in members if member.said.version not in marks)
    if len(spared) == len(members):
        return target, None
    if not spared:
        return target, _refusal(session, [marks[version] for version in sorted({one.said.version for one in members})])
    return target.narrowed(spared), None


def _takes(member: Member, queue: str) -> bool:
    platforms = (None, *(member.said.loads or [member.platform]))
    return any(queue == queue_of(member.backend, platform) for platform in platforms)


def _marks(
    session: Session, definition_id: int, backend: str, profiles: Sequence[Any], options: Mapping[str, Any]
) -> dict[str, CompilerCrash]:
    """Return by version of the backend what is marked of a build."""
    digest = session.scalars(select(Definition.digest).where(Definition.id == definition_id)).one()
    key = _recipe(digest, backend, profiles, options)
    same = (CompilerCrash.definition_id == definition_id, CompilerCrash.recipe == key)
    return {mark.backend_version: mark for mark in session.scalars(select(CompilerCrash).where(*same))}


def _key_of(session: Session, work: BuildWork, backend_version: str) -> dict[str, Any]:
    digest = session.scalars(select(Definition.digest).where(Definition.id == work.definition_id)).one()
    key = _recipe(digest, work.backend, work.profiles, work.options)
    return {"definition_id": work.definition_id, "recipe": key, "backend_version": backend_version}


def _recipe(definition_digest: str, backend: str, profiles: Sequence[Any], options: Mapping[str, Any]) -> str:
    compiled = {name: value for name, value in options.items() if name not in TELLING}
    return recipe(definition_digest=definition_digest, backend=backend, profiles=profiles, options=compiled)


def _refusal(session: Session, marks: Sequence[CompilerCrash]) -> Conflict:
    mark = marks[-1]
    number = session.scalars(select(Definition.version).where(Definition.id == mark.definition_id)).one()
    versions = ", ".join(one.backend_version for one in marks)
    at = f"as it compiled '{mark.layer}'" if mark.layer else "as it compiled"
    return Conflict(
        f"The compiler of {mark.backend} {versions} crashes on definition {number} with these profiles and options: it "
        f"did so twice {at}, the last time in job {mark.job_id}. Change the graph at that layer, the options or the "
        "profiles, or use another backend or another version of this one. "
        '"retry_crashed": true has it tried all the same, such as after a repair of the machine.',
        code="compiler_crashes",
    )
