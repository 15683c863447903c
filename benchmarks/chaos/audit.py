"""Whether what was promised was kept: every accepted job ended, once, with the right result, and nothing dangles."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

from sqlalchemy import exists, func, select

from app.artifacts.listing import Stored
from app.artifacts.service import collect_orphans
from app.artifacts.store import ArtifactStore, open_store
from app.artifacts.strays import call_for_sweep, sweep_store
from app.database import Database
from app.settings import Settings
from app.tables import Blob, Engine, IdempotencyKey, Job, JobEvent
from benchmarks.chaos.load import FINAL, Promise
from workers.jobs.faults import MAX_STRIKES

NOW_S = -1.0  # a negative grace: everything that nothing keeps is old enough


@dataclass(slots=True)
class Findings:
    """What is wrong; each list has one line for each case."""

    lost: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)  # as promised: the campaign killed the job's host twice

    def broken(self) -> dict[str, list[str]]:
        """Return the promises that were broken."""
        return {what: cases for what, cases in asdict(self).items() if what != "struck"}


class Audit:
    """Looks into database and store while nothing happens there."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = Database(settings.database)
        self._store = open_store(settings)
        self._read: set[str] = set()
        self._keyless = self._jobs_without_key()

    def look(self, promises: Iterable[Promise], host_kills: Sequence[float] = ()) -> Findings:
        """Return what is wrong with these promises, and with all that database and store hold.

        `host_kills` are the times at which the campaign killed engine hosts, in seconds since the epoch.
        """
        found = Findings()
        with self._database.reading() as session:
            jobs = {job.id: job for job in session.scalars(select(Job))}
            engines = Counter(session.scalars(select(Engine.job_id)))
            of_weights = Counter(session.scalars(select(Engine.weights)))
            ends = Counter(session.scalars(select(JobEvent.job_id).where(JobEvent.type.in_(FINAL))))
            events = dict(session.execute(select(JobEvent.job_id, func.count()).group_by(JobEvent.job_id)).all())
            keys = dict(session.execute(select(IdempotencyKey.key, IdempotencyKey.job_id)).all())
        for promise in promises:
            job = jobs.get(promise.job_id)
            if job is None or job.state not in FINAL:
                found.lost.append(f"{promise.kind} {promise.job_id}: {'no row' if job is None else job.state}")
                continue
            self._check(promise, job, found, made=engines[job.id], of_weights=of_weights[promise.weights])
            if job.state != "succeeded":
                cases = found.struck if _is_struck(promise, job, host_kills) else found.failed
                error = job.error or {}
                cases.append(f"{promise.kind} {job.id}: {job.state} {error.get('code')}: {error.get('detail')}")
            if keys.get(promise.key) != job.id:
                found.doubled.append(f"{promise.kind} {job.id}: its key names {keys.get(promise.key)}")
            if ends[job.id] != 1 or events.get(job.id) != job.last_event:
                told = f"{events.get(job.id)} events of {job.last_event}"
                found.doubled.append(f"{promise.kind} {job.id}: ended {ends[job.id]} times, {told}")
        found.doubled += [f"job {job_id}: no key made it" for job_id in self._jobs_without_key() - self._keyless]
        self._check_bytes(found)
        return found

    def _jobs_without_key(self) -> set[str]:
        made = exists().where(IdempotencyKey.job_id == Job.id)
        with self._database.reading() as session:
            return set(session.scalars(select(Job.id).where(~made)))

    def _check(self, promise: Promise, job: Job, found: Findings, *, made: int, of_weights: int) -> None:
        what = f"{promise.kind} {job.id}"
        if job.state != "succeeded":
            if made:
                found.doubled.append(f"{what}: {job.state}, and made {made} engines")
            return
        result = job.result or {}
        if promise.kind == "run":
            if result.get("outputs") != promise.outputs:
                found.wrong.append(f"{what}: outputs {result.get('outputs')} instead of {promise.outputs}")
        elif promise.kind == "fresh":
            if of_weights != 1:
                found.doubled.append(f"{what}: {of_weights} engines of weights {promise.weights}")
        elif made != 1:
            found.doubled.append(f"{what}: {made} engines")

    def _check_bytes(self, found: Findings) -> None:
        """Collect all that nothing needs; after that rows and files must be the same, and whole."""
        grace_s = NOW_S - self._settings.job_deadline_s  # a job's blobs count as seen that far ahead
        collect_orphans(self._database, self._store, older_than_s=grace_s)
        call_for_sweep(self._database)
        sweep_store(self._database, self._store, older_than_s=grace_s, every_s=self._settings.store_sweep_interval_s)
        with self._database.reading() as session:
            rows = dict(session.execute(select(Blob.digest, Blob.size)).all())
            plans = {plan for plan in session.scalars(select(Engine.plan_digest)) if plan is not None}
        files = {stored.digest: stored.size for stored in stored_files(self._store)}
        for digest, size in rows.items():
            if files.get(digest) != size:
                found.dangling.append(f"row {digest}: {size} bytes, {files.get(digest)} in the store")
        found.dangling += [f"file {digest}: no row" for digest in files.keys() - rows.keys()]
        for digest in (plans & files.keys()) - self._read:
            data = self._store.read(digest, 0, files[digest])
            if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
                found.wrong.append(f"plan {digest}: damaged")
            self._read.add(digest)
        found.dangling += [f"plan {digest}: no file" for digest in plans - files.keys()]


def _is_struck(promise: Promise, job: Job, host_kills: Sequence[float]) -> bool:
    """Whether a job failed as decision 0094 says, by two kills of the campaign while it was under way."""
    error = job.error or {}
    if error.get("code") != "engine_host_died_twice" or "SIGKILL" not in error.get("detail", ""):
        return False
    ended = promise.ended or time.time()
    return sum(promise.accepted <= moment <= ended for moment in host_kills) >= MAX_STRIKES


def stored_files(store: ArtifactStore) -> Iterator[Stored]:
    """Yield everything that lies in the store."""
    last: str | None = None
    while page := store.page(last):
        yield from page
        last = page[-1].digest
