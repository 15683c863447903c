"""Looks at a build before it is queued: a child asks what the backend tells of the definition without a device."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
from cachetools import LRUCache
from fastapi import Depends, Request

from app.artifacts.store import ArtifactStore
from app.children.children import Children
from app.children.failures import ChildFailed, ChildLost
from app.children.house import Order as ChildOrder
from app.children.limits import PATIENCE, ChildLimits
from app.database import Database
from app.engines.checks import Order
from app.engines.enqueue import CheapestPlacement, EnginePlacement
from app.engines.queries import find_versions
from app.errors import FieldError, Invalid
from app.http.pools import current_pool
from app.jobs.submission import Placement

CHECK: Final = "workers.engine_host.before_build:check"  # by name: the child imports it, and nothing here does
KEPT: Final = 500  # answers
MAX_NAMED: Final = 5
MIB: Final = 1024 * 1024
Looked = Mapping[str, Any]  # what the child answers
UNTOLD: Final[Looked] = {"verdicts": None, "largest_value": None, "endless": None}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Asked:
    """What a child is asked: a build by its definition's digest, and the versions of the backend it is asked about.

    Without `details`, it is asked no more than whether the definition is refused.
    """

    digest: str
    backend: str
    versions: tuple[str, ...]
    profiles: Sequence[Any]
    options: Mapping[str, Any]
    details: bool

    @classmethod
    def of(cls, order: Order, versions: Sequence[str], *, details: bool) -> "Asked":
        """Ask about the build of an order."""
        backend, digest = order.target.backend, order.definition_digest
        return cls(digest, backend, tuple(versions), order.profiles, order.options, details)

    @property
    def key(self) -> str:
        """Equal for equal questions."""
        rows = [self.digest, self.backend, self.versions, self.profiles, self.options, self.details]
        return json.dumps(rows, sort_keys=True)


class Preflights:
    """Asks children, and remembers their answers: a definition never changes, and neither does this release."""

    def __init__(self, database: Database, store: ArtifactStore, children: Children) -> None:
        self._database = database
        self._store = store
        self._house = children.preflights
        self._known: LRUCache[str, Looked] = LRUCache(KEPT)  # changed on the event loop only

    async def look(self, asked: Asked) -> Looked:
        """Return what the child answers (`workers.engine_host.before_build.check`), or `UNTOLD` if it fails.

        Raises Unavailable "busy" at once if too many requests wait for children.
        """
        known = self._known.get(asked.key)
        if known is None:
            made = await self._house.fill(ChildOrder, ("preflight", asked.key), self._looking(asked), _itself)
            if made is None:
                return UNTOLD
            known = self._known[asked.key] = made
        return known

    async def vet(self, placement: Placement) -> Placement:
        """Return the placement of a build with its order vetted; other placements stay as they are."""
        if not isinstance(placement, EnginePlacement | CheapestPlacement):
            return placement
        return replace(placement, order=await self.vet_order(placement.order))

    async def vet_order(self, order: Order) -> Order:
        """Return an order without the workers that do not take its definition, and as it is if nothing is known.

        Raises Invalid "preflight_refused" if every worker alive that could make the engine is known to refuse the
        definition. What was compiled before is taken: that is better evidence.
        """
        members = order.target.members
        if not members or not all(member.said.checks_before_jobs for member in members):
            return order
        built = await current_pool.get().run(self._versions, order)
        versions = sorted({member.said.version for member in members} - built)
        verdicts = (await self.look(Asked.of(order, versions, details=False)))["verdicts"] if versions else None
        refused = {one["version"]: one for one in verdicts or () if one["taken"] is False}
        takers = tuple(member for member in members if member.said.version not in refused)
        if not takers:
            raise _refused(order, refused)
        return replace(order, target=order.target.narrowed(takers))

    def _versions(self, order: Order) -> frozenset[str]:
        with self._database.reading() as session:
            return find_versions(session, order.model_id, order.recipe)

    def _looking(self, asked: Asked) -> Callable[[], Looked | None]:
        def look() -> Looked | None:
            path = self._store.local_path(asked.digest).resolve()
            task = {
                "definition": str(path),
                "backend": asked.backend,
                "versions": list(asked.versions),
                "profiles": asked.profiles,
                "options": asked.options,
                "details": asked.details,
            }
            with self._house.folder("preflight") as directory:
                return self._answered(task, _limits(path.stat().st_size), directory)

        return look

    def _answered(self, task: Mapping[str, Any], limits: ChildLimits, directory: Path) -> Looked | None:
        try:
            answer = self._house.child(CHECK, task, limits, directory)
        except (ChildFailed, ChildLost) as failure:
            log.warning("the look at a definition failed", failure=repr(failure))
            return None
        return None if "rejected" in answer else answer  # it took more memory than it may


def _itself(made: Looked | None) -> Looked | None:
    return made


def _limits(file_bytes: int) -> ChildLimits:
    """Return the limits for one definition: it is rewritten for each opset, in several copies at a time."""
    seconds = 60 + file_bytes // (4 * MIB)
    return ChildLimits(
        address_space=4096 * MIB + 16 * file_bytes,
        file_size=256 * MIB + file_bytes,
        cpu_s=seconds,
        wall_s=PATIENCE * seconds,
    )


def _refused(order: Order, refused: Mapping[str, Mapping[str, Any]]) -> Invalid:
    version, verdict = next(iter(refused.items()))
    findings = [_text(one) for one in verdict["refused"]]
    more = f" and {len(findings) - MAX_NAMED} more reasons" if len(findings) > MAX_NAMED else ""
    others = f", nor do {', '.join(list(refused)[1:])}" if len(refused) > 1 else ""
    return Invalid(
        f"{order.target.backend} {version} does not take the definition{others}: "
        f"{'; '.join(findings[:MAX_NAMED])}{more}. {' '.join(verdict['remedies'])} POST …/builds/check tells more. If "
        'this is wrong, ask with "preflight": "ignore".',
        code="preflight_refused",
        errors=[FieldError("/definition", finding) for finding in findings],
    )


def _text(finding: Mapping[str, Any]) -> str:
    nodes, count = finding["nodes"], finding["count"]
    shown = ", ".join(nodes[:MAX_NAMED]) + (f" and {count - MAX_NAMED} more" if count > MAX_NAMED else "")
    return f"{finding['operator']}{f' ({shown})' if nodes else ''}: {finding['reason']}"


def _preflights(request: Request) -> Preflights:
    preflights: Preflights = request.app.state.preflights
    return preflights


PreflightsDep = Annotated[Preflights, Depends(_preflights)]
