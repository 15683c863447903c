"""Lazy refits and the plans written after them, with a backend whose plans hold the weights."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save
from sqlalchemy import select, update

from app.artifacts.checked import Checked
from app.artifacts.service import collect_orphans
from app.artifacts.signing import FORM
from app.artifacts.store import ArtifactStore
from app.artifacts.tables import Blob, BlobUse
from app.engines.stages import no_time
from app.engines.tables import Engine
from app.jobs.service import create, get_job
from app.settings import Settings
from tests.workers.networks import Network, Weights
from tests.workers.service import Service, computed, service_with
from tests.workers.weight_holding import OFFERED, PLATFORM, HeldWeights, HostInProcess, weights_in
from workers.channel.messages import DEVICE_OUT_OF_MEMORY, BackendError, Materialise, Refit, Refitted, Report, Request
from workers.engine_host.backends.base import Arrays, LoadedEngine
from workers.jobs.attempt import run_job
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker

Array = np.ndarray[Any, np.dtype[Any]]
PATIENCE_S = 30
DEADLINE_S = Settings().job_deadline_s


@pytest.fixture
def second(weights: Weights) -> Weights:
    return {"0.bias": np.asarray(weights["0.bias"]) + 1}


@pytest.fixture
def x() -> Array:
    return np.random.default_rng(7).standard_normal((3, 8)).astype(np.float32)


@pytest.fixture
def host(tmp_path: Path) -> HostInProcess:
    (tmp_path / "host").mkdir()
    return HostInProcess(tmp_path / "host")


@pytest.fixture
def net(client: TestClient, worker: Worker, host: HostInProcess, network: Network, weights: Weights) -> Service:
    """A service with engine 1, whose plan holds weights 1."""
    worker.host.close()
    net = service_with(client, replace(worker, host=host, offered=OFFERED), network, weights)  # type: ignore[arg-type]
    assert net.result("/builds", {"definition": 1, "weights": 1, "backend": "tensorrt"})["engine"] == 1
    return net


def engine(net: Service, number: int) -> dict[str, Any]:
    found: dict[str, Any] = net.client.get(f"/v1/models/net/engines/{number}").json()
    return found


def refit_lazily(net: Service, changed: Weights, parent: int = 1) -> dict[str, Any]:
    weights = net.add_weights(changed, base=parent)
    return net.result("/refits", {"engine": parent, "weights": weights, "materialise": "lazy"})


def asked(host: HostInProcess, kind: type[Request], do: Callable[[], None]) -> None:
    """Have `do` called before the next request of this kind is carried out."""

    def before(request: Request) -> None:
        if isinstance(request, kind):
            host.before = lambda _request: None
            do()

    host.before = before


def verified(monkeypatch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    """Have `do` called before the next verification runs its engine."""
    run = HeldWeights.run

    def once(engine: HeldWeights, inputs: Arrays) -> dict[str, Array]:
        monkeypatch.setattr(HeldWeights, "run", run)
        do()
        return run(engine, inputs)

    monkeypatch.setattr(HeldWeights, "run", once)


def test_a_lazy_refit_publishes_an_engine_that_runs_without_a_plan(
    net: Service, weights: Weights, second: Weights, x: Array
) -> None:
    result = refit_lazily(net, second)
    assert (result["engine"], result["method"], result["materialised"]) == (2, "refit", False)
    found = engine(net, 2)
    assert (found["platform"], found["materialised"], found["plan_digest"]) == (PLATFORM, False, None)
    assert found["verification"]["ok"] is True
    np.testing.assert_allclose(net.run(2, x), computed({**weights, **second}, x), rtol=1e-5)
    np.testing.assert_allclose(net.run(1, x), computed(weights, x), rtol=1e-5)


def test_an_eager_refit_publishes_its_own_plan(net: Service, weights: Weights, second: Weights) -> None:
    result = net.result("/refits", {"engine": 1, "weights": net.add_weights(second)})
    assert result["materialised"] is True
    plan = weights_in(net.client.get("/v1/models/net/engines/2/plan").content)
    for name, value in {**weights, **second}.items():
        np.testing.assert_array_equal(plan[name], value)


def test_an_engine_without_a_plan_is_loaded_from_its_base_once_the_host_has_forgotten_it(
    net: Service, host: HostInProcess, weights: Weights, second: Weights, x: Array
) -> None:
    third = {"1.bias": np.asarray(weights["1.bias"]) - 1}
    refit_lazily(net, second)
    host.close()
    refit_lazily(net, third, parent=2)
    host.close()
    np.testing.assert_allclose(net.run(3, x), computed({**weights, **second, **third}, x), rtol=1e-5)
    base = net.worker.store.local_path(engine(net, 1)["plan_digest"])
    assert host.backend.loaded == [str(base)] * 2
    manifest = net.client.get("/v1/models/net/engines/3/manifest").json()
    assert (manifest["plan"]["base"], manifest["parents"][0]["number"]) == (1, 2)


def test_a_refit_writes_the_plan_of_an_engine_whose_parent_has_none(
    net: Service, host: HostInProcess, weights: Weights, second: Weights, x: Array
) -> None:
    third = {"1.bias": np.asarray(weights["1.bias"]) - 1}
    refit_lazily(net, second)
    result = net.result("/refits", {"engine": 2, "weights": net.add_weights(third, base=2)})
    assert result["materialised"] is True
    host.close()
    np.testing.assert_allclose(net.run(3, x), computed({**weights, **second, **third}, x), rtol=1e-5)
    assert host.backend.loaded == [str(net.worker.store.local_path(engine(net, 3)["plan_digest"]))]


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_plan_written_later_is_the_engines_own(
    net: Service, host: HostInProcess, weights: Weights, second: Weights, x: Array, *, forgotten: bool
) -> None:
    refit_lazily(net, second)
    if forgotten:
        host.close()
    job = net.do("/engines/2/materialise", {})
    assert (job["state"], job["kind"], job["result"]["engine"]) == ("succeeded", "materialise", 2)
    found = engine(net, 2)
    assert (found["materialised"], found["plan_digest"]) == (True, job["result"]["plan_digest"])
    assert job["result"]["seconds"] > 0
    host.close()
    host.backend.loaded.clear()
    np.testing.assert_allclose(net.run(2, x), computed({**weights, **second}, x), rtol=1e-5)
    assert host.backend.loaded == [str(net.worker.store.local_path(found["plan_digest"]))]


def test_engines_of_one_compiled_plan_share_it_in_name(net: Service, second: Weights) -> None:
    refit_lazily(net, second)
    net.result("/engines/2/materialise", {})
    roots = [net.client.get(f"/v1/models/net/engines/{number}/manifest").json()["plan"]["root"] for number in (1, 2)]
    assert roots == [engine(net, 1)["plan_digest"]] * 2
    assert engine(net, 2)["plan_digest"] != roots[0]


def test_of_two_jobs_that_write_a_plan_the_slower_takes_what_is_there(
    net: Service, host: HostInProcess, second: Weights
) -> None:
    refit_lazily(net, second)
    slower = net.post("/engines/2/materialise", {})["id"]
    faster: list[str] = []

    def overtake() -> None:
        """Do another job for the same plan, from its load to its end, while the first one writes."""
        with net.worker.database.transaction() as session:
            request = {"engine_id": get_job(session, slower).request["engine_id"]}
            job = create(session, kind="materialise", model_id=1, queue="any", request=request, likeness="any")
        faster.append(job.id)
        run_job(net.worker, job.id)

    asked(host, Materialise, overtake)
    run_job(net.worker, slower)
    digests = [net.job(job_id)["result"]["plan_digest"] for job_id in (*faster, slower)]
    assert digests == [engine(net, 2)["plan_digest"]] * 2
    with net.worker.database.reading() as session:
        plans = [use.digest for use in session.scalars(select(BlobUse).where(BlobUse.owner == "engine:2"))]
    assert plans == digests[:1]


def test_a_job_that_finds_the_plan_written_succeeds_with_it(net: Service, second: Weights) -> None:
    refit_lazily(net, second)
    first = net.post("/engines/2/materialise", {})["id"]
    with net.worker.database.transaction() as session:
        request = get_job(session, first).request
        late = create(session, kind="materialise", model_id=1, queue="any", request=request, likeness="any").id
    for job_id in (first, late):
        run_job(net.worker, job_id)
    assert net.job(late)["result"] == net.job(first)["result"] | no_time()


def test_the_plan_of_a_base_outlives_collection(
    net: Service, host: HostInProcess, weights: Weights, second: Weights, x: Array
) -> None:
    refit_lazily(net, second)
    collect_orphans(net.worker.database, net.worker.store, older_than_s=-1)
    host.close()
    np.testing.assert_allclose(net.run(2, x), computed({**weights, **second}, x), rtol=1e-5)


def test_a_plan_is_put_into_the_store_while_the_engine_is_verified(
    net: Service, second: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)

    def meet() -> None:
        both.wait(PATIENCE_S)  # broken, and so an error, where the other side does not come

    put_file = net.worker.store.put_file

    def put(path: Path, *, digest: str | None = None) -> tuple[str, int]:
        meet()
        return put_file(path, digest=digest)

    monkeypatch.setattr(net.worker.store, "put_file", put)
    verified(monkeypatch, meet)
    result = net.result("/refits", {"engine": 1, "weights": net.add_weights(second)})
    assert result["materialised"] is True


def test_the_plan_of_a_build_can_still_be_loaded_where_it_was_written_while_it_is_put(
    net: Service, host: HostInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    put_file = net.worker.store.put_file

    def put(path: Path, *, digest: str | None = None) -> tuple[str, int]:
        made = put_file(path, digest=digest)
        done.set()
        return made

    def fill() -> None:
        assert done.wait(PATIENCE_S)
        raise BackendError(DEVICE_OUT_OF_MEMORY, "full")  # so that every engine goes and this one is loaded again

    monkeypatch.setattr(net.worker.store, "put_file", put)
    verified(monkeypatch, fill)
    request = {"definition": 1, "weights": 1, "backend": "tensorrt", "reuse": False}
    assert net.result("/builds", request)["engine"] == 2
    (loaded,) = host.backend.loaded
    assert not Path(loaded).is_relative_to(net.worker.store.local_path(engine(net, 2)["plan_digest"]).parents[2])


def test_a_plan_that_was_written_here_is_not_read_again_before_it_is_refitted(
    net: Service, second: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    conclude = Checked._conclude

    def note(checked: Checked, digest: str, *rest: Any) -> None:  # noqa: ANN401 - as the method it stands for
        read.append(digest)
        conclude(checked, digest, *rest)

    monkeypatch.setattr(Checked, "_conclude", note)
    child = net.result("/refits", {"engine": 1, "weights": net.add_weights(second)})["engine"]
    assert net.result("/refits", {"engine": child, "weights": 1, "reuse": False})["engine"] == 3
    lazy = refit_lazily(net, {"0.bias": np.asarray(second["0.bias"]) + 1})["engine"]
    net.client.put("/v1/models/net/aliases/a", json={"engine": lazy})
    (job,) = net.client.get("/v1/jobs", params={"kind": "materialise"}).json()["data"]
    run_job(net.worker, job["id"])
    net.result("/refits", {"engine": lazy, "weights": 1, "reuse": False})
    assert not {one["plan_digest"] for one in net.engines()}.intersection(read)
    digest = engine(net, child)["plan_digest"]
    path = net.worker.store.local_path(digest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[::-1])
    job = net.do("/refits", {"engine": child, "weights": 1, "reuse": False})
    assert job["error"]["code"] == "plan_damaged"
    assert read.count(digest) == 1


def test_a_damaged_plan_is_mended_where_the_same_one_is_made_again(
    net: Service, host: HostInProcess, second: Weights
) -> None:
    path = net.worker.store.local_path(engine(net, 1)["plan_digest"])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[::-1])
    host.backend._numbers = itertools.count()  # so that the plan is the same as the first
    again = net.result("/builds", {"definition": 1, "weights": 1, "backend": "tensorrt", "reuse": False})["engine"]
    assert engine(net, again)["plan_digest"] == engine(net, 1)["plan_digest"]
    for mended in (1, again):
        net.result("/refits", {"engine": mended, "weights": net.add_weights(second), "reuse": False})


def test_a_verification_without_room_does_not_refit_again(
    net: Service, host: HostInProcess, second: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    refits: list[str | None] = []
    refit = host.backend.refit

    def counted(request: Refit, resident: LoadedEngine | None, report: Report) -> tuple[Refitted, LoadedEngine]:
        refits.append(request.plan)
        return refit(request, resident, report)

    def full(_engine: HeldWeights, _inputs: Arrays) -> dict[str, Array]:
        raise BackendError(DEVICE_OUT_OF_MEMORY, "full")

    monkeypatch.setattr(host.backend, "refit", counted)
    monkeypatch.setattr(HeldWeights, "run", full)
    job = net.do("/refits", {"engine": 1, "weights": net.add_weights(second)})
    assert job["error"]["code"] == DEVICE_OUT_OF_MEMORY
    assert len(refits) == 1


@pytest.mark.parametrize("fault", ["verification_failed", "load_failed"])
def test_the_plan_of_an_engine_that_is_not_published_is_left_to_collection(
    net: Service,
    second: Weights,
    store: ArtifactStore,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    put: list[str] = []
    done = threading.Event()
    put_file = net.worker.store.put_file

    def noted_put(path: Path, *, digest: str | None = None) -> tuple[str, int]:
        made = put_file(path, digest=digest)
        put.append(made[0])
        done.set()
        return made

    def broken(_engine: HeldWeights, inputs: Arrays) -> dict[str, Array]:
        assert done.wait(PATIENCE_S)
        if fault == "load_failed":
            raise BackendError(fault, "It broke.")
        return {"y": inputs["x"] - 1}

    monkeypatch.setattr(net.worker.store, "put_file", noted_put)
    monkeypatch.setattr(HeldWeights, "run", broken)
    job = net.do("/refits", {"engine": 1, "weights": net.add_weights(second)})
    assert (job["state"], job["error"]["code"]) == ("failed", fault)
    assert [row["number"] for row in net.engines()] == [1]
    with net.worker.database.reading() as session:
        assert session.get(Blob, put[0]) is not None
        assert session.scalar(select(BlobUse).where(BlobUse.digest == put[0])) is None
    collect_orphans(net.worker.database, store, older_than_s=-2 * DEADLINE_S)
    assert store.size(put[0]) is None


@pytest.mark.parametrize("state", ["failed", "released", "canceled"])
def test_a_job_that_has_to_stop_ends_at_once_and_what_it_was_putting_is_collected(
    net: Service, second: Weights, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    put: list[str] = []
    ended = threading.Event()
    put_file = net.worker.store.put_file
    job = net.post("/refits", {"engine": 1, "weights": net.add_weights(second)})["id"]

    def stop() -> None:
        if state == "failed":
            net.worker.settings = net.worker.settings.model_copy(update={"job_deadline_s": 0.0})
        elif state == "released":
            net.worker.stopping.set()
        else:
            net.client.post(f"/v1/jobs/{job}/cancel")

    def slow_put(path: Path, *, digest: str | None = None) -> tuple[str, int]:
        stop()
        made = put_file(path, digest=digest)
        assert ended.wait(PATIENCE_S)
        put.append(made[0])
        return made

    monkeypatch.setattr(net.worker.store, "put_file", slow_put)
    run_job(net.worker, job)
    events = net.client.get(f"/v1/jobs/{job}/events").json()["data"]
    assert (events[-1]["type"], put) == (state, [])
    assert state != "failed" or net.job(job)["error"]["code"] == "deadline_exceeded"
    ended.set()
    net.worker.io.submit(lambda: None).result(PATIENCE_S)  # it has one thread, so the put is over
    assert store.size(put[0]) is not None
    collect_orphans(net.worker.database, store, older_than_s=-2 * DEADLINE_S)
    assert store.size(put[0]) is None
    assert [row["number"] for row in net.engines()] == [1]


def test_a_put_that_has_not_begun_when_its_job_ends_never_does(
    net: Service, second: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[Path] = []
    over = threading.Event()
    net.worker.io.submit(over.wait, PATIENCE_S)  # what an earlier job left behind takes the only thread

    def broken(_engine: HeldWeights, _inputs: Arrays) -> dict[str, Array]:
        raise BackendError("load_failed", "It broke.")

    job = net.post("/refits", {"engine": 1, "weights": net.add_weights(second)})["id"]
    monkeypatch.setattr(Watch, "during", lambda _watch, action, *args: action(*args))
    monkeypatch.setattr(net.worker, "put", lambda path, **_digest: put.append(path))
    monkeypatch.setattr(HeldWeights, "run", broken)
    run_job(net.worker, job)
    over.set()
    net.worker.io.submit(lambda: None).result(PATIENCE_S)
    assert (net.job(job)["error"]["code"], put) == ("load_failed", [])


def test_a_put_that_fails_fails_the_job_and_leaves_nothing(
    net: Service, second: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, *, digest: str | None = None) -> tuple[str, int]:
        raise OSError(f"no room for {digest}")

    monkeypatch.setattr(net.worker.store, "put_file", full)
    job = net.do("/refits", {"engine": 1, "weights": net.add_weights(second)})
    assert job["state"] == "queued"  # the disk may have room again
    assert [row["number"] for row in net.engines()] == [1]


def test_a_download_waits_for_its_worker(net: Service, second: Weights, weights: Weights) -> None:
    refit_lazily(net, second)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(net.client.get, "/v1/models/net/engines/2/plan")
        while not (jobs := net.client.get("/v1/jobs", params={"kind": "materialise"}).json()["data"]):
            pass
        run_job(net.worker, jobs[0]["id"])
        plan = weights_in(answer.result(PATIENCE_S).content)
    np.testing.assert_array_equal(plan["0.bias"], second["0.bias"])
    np.testing.assert_array_equal(plan["1.bias"], weights["1.bias"])


@pytest.mark.parametrize("materialise", ["eager", "lazy"])
def test_an_equal_engine_made_meanwhile_without_a_plan_is_reused_by_lazy_jobs_only(
    net: Service, second: Weights, materialise: str
) -> None:
    weights = net.add_weights(second)
    waiting = net.post("/refits", {"engine": 1, "weights": weights, "materialise": materialise})["id"]
    net.result("/refits", {"engine": 1, "weights": weights, "materialise": "lazy", "reuse": False})
    run_job(net.worker, waiting)
    result = net.job(waiting)["result"]
    number = result["engine"]
    assert (result["reused"], number) == ((True, 2) if materialise == "lazy" else (False, 3))
    assert engine(net, number)["materialised"] is (materialise == "eager")


def test_a_refit_asks_its_host_for_what_the_client_asked(net: Service, host: HostInProcess, second: Weights) -> None:
    requests: list[Request] = []
    host.before = requests.append
    weights = net.add_weights(second)
    net.result("/refits", {"engine": 1, "weights": weights, "materialise": "lazy", "reuse": False})
    net.result("/refits", {"engine": 1, "weights": weights, "reuse": False})
    net.result("/refits", {"engine": 1, "weights": weights, "reuse": False, "verify": {"against": "finite"}})
    asked = [(one.plan is not None, one.check.against) for one in requests if isinstance(one, Refit)]
    assert asked == [(False, "reference"), (True, "reference"), (True, "finite")]


def row_of(net: Service, number: int) -> Engine:
    with net.worker.database.reading() as session:
        return session.scalars(select(Engine).where(Engine.number == number)).one()


def set_row(net: Service, number: int, **values: Any) -> None:  # noqa: ANN401 - of any column
    with net.worker.database.transaction() as session:
        session.execute(update(Engine).where(Engine.number == number).values(**values))


def test_a_lazy_engine_whose_row_was_changed_is_not_loaded(net: Service, second: Weights, x: Array) -> None:
    refit_lazily(net, second)
    run = {"engine": 2, "inputs": net.upload(save({"x": x}))}
    first, lazy = row_of(net, 1), row_of(net, 2)
    set_row(net, 2, weights_id=first.weights_id)
    assert net.do("/runs", run)["error"]["code"] == "bad_signature"
    set_row(net, 2, weights_id=lazy.weights_id)
    net.result("/engines/2/materialise", {})
    net.result("/runs", run)
    assert row_of(net, 2).plan_signature != lazy.plan_signature


def test_a_lazy_engine_is_not_loaded_from_a_plan_that_was_compiled_by_itself(
    net: Service, second: Weights, x: Array
) -> None:
    refit_lazily(net, second)
    build = {"definition": 1, "weights": 1, "backend": "tensorrt", "options": {"precision": "fp16"}}
    assert net.result("/builds", build)["engine"] == 3
    set_row(net, 2, base_id=row_of(net, 3).id)
    job = net.do("/runs", {"engine": 2, "inputs": net.upload(save({"x": x}))})
    assert job["error"]["code"] == "bad_signature"


def test_a_lazy_engine_of_the_release_before_is_loaded_and_signed_with_its_plan(
    net: Service, second: Weights, x: Array
) -> None:
    refit_lazily(net, second)
    set_row(net, 2, plan_signature=None, signature_form=1)
    net.run(2, x)
    net.result("/engines/2/materialise", {})
    net.run(2, x)
    assert row_of(net, 2).signature_form == FORM
