import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update
from typer.testing import CliRunner

from app.artifacts import service as artifacts
from app.artifacts.store import ArtifactStore
from app.artifacts.tables import Blob, BlobUse
from app.cli import app as commands
from app.database import Database, now
from app.engines.requests import request_build
from app.engines.schemas import BuildRequest
from app.jobs import idempotency, service
from app.jobs.retention import blobs_owner
from app.jobs.tables import IdempotencyKey, Job
from app.pruning import prunable, prune, retire
from app.registry.service import create_model
from app.settings import Settings
from tests.engines.workbench import Workbench

LONG_AGO = timedelta(days=365)
NOTHING = {
    "idempotency keys": 0,
    "jobs whose blobs were released": 0,
    "jobs": 0,
    "events": 0,
    "unneeded blobs": 0,
    "files without a row": 0,
}


@pytest.fixture
def bench(database: Database, settings: Settings) -> Workbench:
    with database.transaction() as session:
        create_model(session, "minilm", "", {})
    bench = Workbench(database, settings)
    bench.add_definition()
    bench.add_epoch(1)
    bench.add_worker()
    return bench


def put(store: ArtifactStore, folder: Path, data: bytes) -> str:
    path = folder / "outgoing"
    path.write_bytes(data)
    digest = store.put_file(path)[0]
    os.utime(store.local_path(digest), (time.time() - LONG_AGO.total_seconds(),) * 2)
    return digest


@pytest.fixture
def aged(bench: Workbench, database: Database, store: ArtifactStore, tmp_path: Path) -> dict[str, str]:
    """A year ago: a build that made an engine, a run with outputs, an unneeded blob, and a file without a row."""
    build = bench.submit(request_build, BuildRequest(definition=1, weights=1))
    bench.publish(build)
    digests = {name: put(store, tmp_path, name.encode()) for name in ("outputs", "unneeded", "stray")}
    with database.transaction() as session:
        run = service.create_finished(
            session, kind="run", model_id=1, queue="q", request={}, result={"outputs": digests["outputs"]}
        )
        idempotency.remember(session, "key", "digest", run.id)
        for name in ("outputs", "unneeded"):
            artifacts.record(session, digests[name], len(name))
        artifacts.keep(session, digests["outputs"], blobs_owner(run.id))
    with database.transaction() as session:
        session.execute(update(Job).values(finished_at=now() - LONG_AGO, state="succeeded"))
        session.execute(update(IdempotencyKey).values(created_at=now() - LONG_AGO))
        session.execute(update(Blob).where(Blob.digest.in_(digests.values())).values(seen_at=now() - LONG_AGO))
    return digests | {"build": build.id, "run": run.id}


def counts(database: Database, store: ArtifactStore, settings: Settings) -> dict[str, tuple[int, int | None]]:
    return {one.kind: (one.count, one.bytes) for one in prunable(database, store, settings)}


def test_what_would_go_is_told_and_stays(
    database: Database, store: ArtifactStore, settings: Settings, aged: dict[str, str]
) -> None:
    expected = {
        "jobs": (1, None),
        "events": (2, None),
        "idempotency keys": (1, None),
        "jobs whose blobs are released": (1, None),
        "blobs that those release": (1, 7),
        "unneeded blobs": (1, 8),
        "files without a row": (1, 5),
    }
    assert counts(database, store, settings) == expected
    assert counts(database, store, settings) == expected
    oldest = [one.oldest for one in prunable(database, store, settings) if one.kind != "events"]
    assert all(one is not None and abs(now() - LONG_AGO - one) < timedelta(minutes=5) for one in oldest)
    assert store.size(aged["stray"]) == 5


def test_what_may_go_goes_and_the_rest_tells_what_it_told(
    database: Database, store: ArtifactStore, settings: Settings, aged: dict[str, str], client: TestClient
) -> None:
    manifest = client.get("/v1/models/minilm/engines/1/manifest").json()
    assert prune(database, store, settings) == dict.fromkeys(NOTHING, 1) | {"events": 3}  # a release is an event too
    assert store.size(aged["stray"]) is store.size(aged["unneeded"]) is None
    assert store.size(aged["outputs"]) == 7  # released, and collected a grace later
    with database.reading() as session:
        assert session.scalars(select(Job.id)).all() == [aged["build"]]
        assert aged["outputs"] not in session.scalars(select(BlobUse.digest)).all()
    assert client.get(f"/v1/jobs/{aged['run']}").status_code == 404
    assert client.get(f"/v1/jobs/{aged['build']}").json()["id"] == aged["build"]
    assert client.get("/v1/models/minilm/engines/1/manifest").json() == manifest
    assert prune(database, store, settings) == NOTHING


def test_a_setting_of_0_keeps_for_ever(
    database: Database, store: ArtifactStore, settings: Settings, aged: dict[str, str]
) -> None:
    names = ("keep_jobs_days", "keep_outputs_days", "keep_idempotency_keys_days")
    forever = settings.model_copy(update=dict.fromkeys(names, 0.0))
    assert retire(database, forever) == {}
    assert list(counts(database, store, forever)) == ["unneeded blobs", "files without a row"]
    with database.reading() as session:
        assert set(session.scalars(select(Job.id))) == {aged["build"], aged["run"]}


def invoke(settings: Settings, *arguments: str) -> str:
    environment = {
        "ENGINESMITH_DATA_DIR": str(settings.data_dir),
        "ENGINESMITH_DATABASE_URL": settings.database_url,
    }
    done = CliRunner().invoke(commands, ["prune", *arguments], env=environment)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.usefixtures("aged")
def test_the_command_prints_a_table_or_json(settings: Settings) -> None:
    table = invoke(settings, "--dry-run").splitlines()
    assert table[0].split() == ["kind", "count", "MiB", "oldest", "setting"]
    assert next(line for line in table if line.startswith("files without a row")).endswith("ENGINESMITH_ORPHAN_GRACE_S")
    rows: list[dict[str, Any]] = json.loads(invoke(settings, "--dry-run", "--json"))
    assert {row["kind"]: row["count"] for row in rows}["unneeded blobs"] == 1
    assert json.loads(invoke(settings, "--json")) == dict.fromkeys(NOTHING, 1) | {"events": 3}
    assert invoke(settings).split() == ["removed", "count"] + [
        word for kind in NOTHING for word in (*kind.split(), "0")
    ]
