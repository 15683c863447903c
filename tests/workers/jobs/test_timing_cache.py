"""What one build measures serves the next on such a device; a cache that cannot be had costs no build."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from app.artifacts.service import collect_orphans, record
from app.artifacts.store import ArtifactStore
from app.artifacts.tables import BlobUse
from app.engines.tables import TimingCache
from app.engines.timing_caches import replace_timing_cache
from app.errors import Unavailable
from app.fleet.backend_offer import BackendCapabilities
from tests.workers.networks import Network, perceptron
from tests.workers.service import Service, service_with
from tests.workers.weight_holding import OFFERED, PLATFORM, HeldWeights, HostInProcess, WeightHolding
from workers.channel.host import EngineHostDied
from workers.channel.messages import BackendError, Build, Built, LogLine, MergeTimings, Report
from workers.engine_host.backends.base import Arrays, LoadedEngine
from workers.jobs import timing_cache
from workers.jobs.worker import Worker

BUILD = {"definition": 1, "weights": 1, "backend": "tensorrt", "reuse": False}
OWNER = f"timing_cache:{PLATFORM}"


class Timing(WeightHolding):
    """Adds a line to its timing cache with each build; `given` are the caches that builds were given.

    `lines` is how many it comes to have; `platform` is that of the engines, which may be more than this device's;
    `meanwhile` is done in the course of a build.
    """

    lines = 99
    platform = PLATFORM

    @staticmethod
    def meanwhile() -> None: ...

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self.given: list[bytes | None] = []

    def build(self, request: Build, report: Report) -> tuple[Built, LoadedEngine]:
        given = Path(request.timing_cache).read_bytes() if request.timing_cache else None
        self.given.append(given)
        known = (given or b"").splitlines(keepends=True)
        if any(line != b"timed\n" for line in known):
            report(LogLine("warning", "the stored timing cache is of no use"))
            known = []
        path = Path(f"{request.plan}.timings")
        path.write_bytes(b"".join([*known, b"timed\n"][: self.lines]))
        self.meanwhile()
        built, engine = super().build(request, report)
        return replace(built, timing_cache=str(path), platform=self.platform), engine

    def merge_timings(self, request: MergeTimings, _report: Report) -> None:
        Path(request.merged).write_bytes(b"".join(Path(cache).read_bytes() for cache in request.caches))


@pytest.fixture
def backend(tmp_path: Path) -> Timing:
    (tmp_path / "host").mkdir()
    return Timing(tmp_path / "host")


@pytest.fixture
def serve(client: TestClient, worker: Worker, backend: Timing, tmp_path: Path) -> Callable[[str], Service]:
    """Start a service whose worker says of its timing cache what it is given."""
    worker.host.close()
    host = HostInProcess(tmp_path / "host")
    host.backend = backend
    host.close()

    def serve(kept: str) -> Service:
        capabilities = BackendCapabilities(timing_cache=kept)
        offered = {"tensorrt": OFFERED["tensorrt"].model_copy(update={"capabilities": capabilities})}
        network: Network = perceptron(tmp_path / "network.onnx")
        able = replace(worker, host=host, offered=offered)  # type: ignore[arg-type]
        return service_with(client, able, network, network.weights(seed=1))

    return serve


@pytest.fixture
def net(serve: Callable[[str], Service]) -> Service:
    return serve("stored")


def current(net: Service) -> TimingCache:
    with net.worker.database.reading() as session:
        return session.scalars(select(TimingCache)).one()


def owners(net: Service, digest: str) -> list[str]:
    with net.worker.database.reading() as session:
        return list(session.scalars(select(BlobUse.owner).where(BlobUse.digest == digest)))


def warnings_of(net: Service, job: dict[str, Any]) -> str:
    answer = net.client.get(f"/v1/jobs/{job['id']}/events", headers={"accept": "application/json"})
    logs = [event["data"] for event in answer.json()["data"] if event["type"] == "log"]
    return " ".join(line for log in logs if log["level"] == "warning" for line in log["lines"])


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_the_second_build_is_given_what_the_first_has_timed(net: Service, backend: Timing) -> None:
    net.result("/builds", BUILD)
    first = current(net)
    net.result("/builds", BUILD)
    second = current(net)
    assert backend.given == [None, b"timed\n"]
    assert (first.platform, first.digest, first.bytes) == (PLATFORM, digest_of(b"timed\n"), 6)
    assert second.digest == digest_of(b"timed\ntimed\n")


def test_it_belongs_to_the_device_that_timed_whatever_others_load_the_engine(net: Service, backend: Timing) -> None:
    backend.platform = "1.0/ampere_plus"
    net.result("/builds", BUILD)
    assert current(net).platform == PLATFORM
    net.result("/builds", BUILD)
    assert backend.given == [None, b"timed\n"]


def test_the_newest_is_kept_and_the_one_before_collected(net: Service, store: ArtifactStore) -> None:
    net.result("/builds", BUILD)
    older = current(net).digest
    net.result("/builds", BUILD)
    newer = current(net).digest
    collect_orphans(net.worker.database, store, older_than_s=-1)
    assert (store.size(older), owners(net, older)) == (None, [])
    assert (store.size(newer), owners(net, newer)) == (12, [OWNER])


def test_one_that_has_nothing_new_stays_as_it_is(net: Service, backend: Timing, store: ArtifactStore) -> None:
    backend.lines = 1
    net.result("/builds", BUILD)
    before = current(net)
    net.result("/builds", BUILD)
    assert (current(net).digest, current(net).updated_at) == (before.digest, before.updated_at)
    collect_orphans(net.worker.database, store, older_than_s=-1)
    assert store.size(before.digest) == 6


@pytest.fixture
def another(net: Service, backend: Timing, store: ArtifactStore, tmp_path: Path) -> Timing:
    """A backend, while whose next build another worker puts a cache of five lines into the store."""

    def publish() -> None:
        backend.meanwhile = Timing.meanwhile  # type: ignore[method-assign]
        (tmp_path / "theirs").write_bytes(b"timed\n" * 5)
        digest, nbytes = store.put_file(tmp_path / "theirs")
        with net.worker.database.transaction() as session:
            record(session, digest, nbytes)
            replace_timing_cache(session, PLATFORM, digest=digest, nbytes=nbytes)

    net.result("/builds", BUILD)
    backend.meanwhile = publish  # type: ignore[method-assign]
    return backend


def test_what_another_worker_has_timed_in_the_course_of_a_build_is_kept_with_its_own(
    net: Service, another: Timing, store: ArtifactStore
) -> None:
    job = net.do("/builds", BUILD)
    assert store.local_path(current(net).digest).read_bytes() == b"timed\n" * 7
    assert not warnings_of(net, job)
    net.result("/builds", BUILD)
    assert another.given == [None, b"timed\n", b"timed\n" * 7]
    assert store.local_path(current(net).digest).read_bytes() == b"timed\n" * 8


@pytest.mark.parametrize(
    "fault",
    [BackendError("timings_unreadable", "as if"), EngineHostDied("as if"), OperationalError("as if", {}, Exception())],
    ids=lambda fault: type(fault).__name__,
)
def test_where_that_cannot_be_merged_its_own_is_kept(
    net: Service, another: Timing, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    publish = another.meanwhile

    def then_fail() -> None:
        publish()
        if isinstance(fault, OperationalError):
            monkeypatch.setattr(timing_cache, "find_timing_cache", Mock(side_effect=fault))
        else:
            monkeypatch.setattr(another, "merge_timings", Mock(side_effect=fault))

    another.meanwhile = then_fail  # type: ignore[method-assign]
    job = net.do("/builds", BUILD)
    assert job["state"] == "succeeded"
    assert "without what others have timed since" in warnings_of(net, job)
    assert store.local_path(current(net).digest).read_bytes() == b"timed\n" * 2


def test_a_build_that_is_to_use_none_leaves_it_alone(net: Service, backend: Timing) -> None:
    net.result("/builds", BUILD)
    before = current(net)
    net.result("/builds", BUILD | {"options": {"timing_cache": False}})
    assert backend.given == [None, None]
    assert (current(net).digest, current(net).updated_at) == (before.digest, before.updated_at)


def test_a_damaged_one_is_begun_anew(net: Service, backend: Timing) -> None:
    net.result("/builds", BUILD)
    path = net.worker.store.local_path(current(net).digest)
    path.chmod(0o644)
    path.write_bytes(b"tmied\n")
    job = net.do("/builds", BUILD)
    assert (job["state"], backend.given) == ("succeeded", [None, None])
    assert f"the timing cache of '{PLATFORM}' cannot be read" in warnings_of(net, job)
    assert path.read_bytes() == b"timed\n"


def test_one_that_is_lost_is_begun_anew_and_comes_back(net: Service, backend: Timing, store: ArtifactStore) -> None:
    net.result("/builds", BUILD)
    lost = current(net).digest
    store.delete(lost)
    job = net.do("/builds", BUILD)
    assert (job["state"], backend.given) == ("succeeded", [None, None])
    assert f"the timing cache of '{PLATFORM}' cannot be read" in warnings_of(net, job)
    assert (current(net).digest, store.size(lost)) == (lost, 6)


def test_one_that_cannot_be_kept_fails_no_build(net: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    put_file = net.worker.store.put_file

    def put(path: Path, *, digest: str | None = None) -> tuple[str, int]:
        if path.name.endswith(".timings"):
            raise Unavailable("The store does not answer.")
        return put_file(path, digest=digest)

    monkeypatch.setattr(net.worker.store, "put_file", put)
    job = net.do("/builds", BUILD)
    assert job["state"] == "succeeded"
    assert "is not kept for later builds: The store does not answer." in warnings_of(net, job)


def test_one_of_an_engine_that_is_not_published_is_not_kept(
    net: Service, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_engine: HeldWeights, inputs: Arrays) -> dict[str, Any]:
        return {"y": inputs["x"] - 1}

    monkeypatch.setattr(HeldWeights, "run", broken)
    assert net.do("/builds", BUILD)["error"]["code"] == "verification_failed"
    with net.worker.database.reading() as session:
        assert session.scalars(select(TimingCache)).all() == []
    assert store.size(digest_of(b"timed\n")) is None


@pytest.mark.parametrize("kept", ["none", "kept in memory"])
def test_one_that_no_other_process_can_read_is_not_stored(
    serve: Callable[[str], Service], backend: Timing, kept: str
) -> None:
    net = serve(kept)
    for _ in range(2):
        net.result("/builds", BUILD)
    assert backend.given == [None, None]
    with net.worker.database.reading() as session:
        assert session.scalars(select(TimingCache)).all() == []
