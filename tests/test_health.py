import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app import health
from app.artifacts.strays import sweep_store
from app.main import create_app
from app.settings import MIB, Settings


def test_is_ready_when_database_broker_and_store_answer(client: TestClient) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 200
    checks = {"database": "ok", "broker": "ok", "store": "ok", "disk": "ok"}
    assert answer.json() == {"ready": True, "checks": checks, "workers": 0}


def _statvfs(full: Path, **values: int) -> Callable[[Path], SimpleNamespace]:
    """A statvfs(3) to which everything below `full` lies on another disk, of which some values are said."""

    def look(path: Path) -> SimpleNamespace:
        room = {"f_bavail": 1 << 20, "f_frsize": 4096, "f_files": 1 << 20, "f_favail": 1 << 20}
        return SimpleNamespace(**room | (values if path.is_relative_to(full) else {}))

    return look


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("folder", "what"), [("", "database"), ("artifacts", "artifact store"), ("scratch", "scratch")]
)
def test_is_not_ready_when_a_disk_it_writes_to_is_full_and_says_which_and_what_to_do(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, what: str
) -> None:
    (tmp_path / "scratch").mkdir(exist_ok=True)
    monkeypatch.setattr(os, "statvfs", _statvfs(tmp_path / folder, f_bavail=(64 * MIB - 1) // 4096))
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert answer.json()["checks"]["disk"].startswith(f"63 MiB are free where the {what}")
    assert "ENGINESMITH_MIN_FREE_BYTES" in answer.json()["checks"]["disk"]

    monkeypatch.setattr(os, "statvfs", _statvfs(tmp_path / folder, f_bavail=64 * MIB // 4096))
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_is_not_ready_without_inodes_where_the_filesystem_counts_them(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", _statvfs(tmp_path, f_favail=0))
    assert "inodes are used up" in client.get("/readyz").json()["checks"]["disk"]
    monkeypatch.setattr(os, "statvfs", _statvfs(tmp_path, f_favail=0, f_files=0))
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_disk_without_room_matters_only_where_something_is_written(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = settings.model_copy(update={"store_url": f"file://{tmp_path / 'other' / 'store'}"})
    with TestClient(create_app(elsewhere), "http://localhost") as client:
        monkeypatch.setattr(os, "statvfs", _statvfs(tmp_path / "artifacts", f_bavail=0))
        assert client.get("/readyz").status_code == 200
        monkeypatch.setattr(os, "statvfs", _statvfs(tmp_path / "other", f_bavail=0))
        assert client.get("/readyz").json()["checks"]["disk"].startswith("0 MiB are free where the artifact store lies")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 96 MiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts filesystems; the tests above need no root")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_is_not_ready_on_a_filesystem_that_was_filled_until_there_is_room_again(
    settings: Settings, small_disk: Path
) -> None:
    with TestClient(create_app(settings.model_copy(update={"data_dir": small_disk})), "http://localhost") as client:
        assert client.get("/readyz").status_code == 200
        ballast = small_disk / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            for _ in range(200):
                file.write(bytes(MIB))
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"]["disk"].startswith("0 MiB are free where the artifact store lies")
        ballast.unlink()
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_is_not_ready_without_a_broker_and_says_so(settings: Settings) -> None:
    lonely = settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})
    with TestClient(create_app(lonely), "http://localhost") as client:
        answer = client.get("/readyz")
        alive = client.get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["checks"]["broker"].startswith("does not answer")
    assert alive.status_code == 200


def test_metrics_count_requests_by_route(client: TestClient) -> None:
    client.get("/v1/models/nobody")
    text = client.get("/metrics").text
    assert 'enginesmith_http_requests_total{method="GET",route="/models/{model}",status="404"} 1.0' in text
    assert "enginesmith_workers 0.0" in text


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_store_that_hangs_is_told_and_keeps_one_thread_however_often_it_is_asked_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "READY_S", 0.2)
    with TestClient(
        create_app(settings.model_copy(update={"store_url": "s3://bucket/"})), "http://localhost"
    ) as client:
        for _ in range(3):
            answer = client.get("/readyz")
            assert answer.status_code == 503
            assert answer.json()["checks"] == {
                "database": "ok",
                "broker": "ok",
                "store": "hangs: no answer within 0.2 s",
                "disk": "ok",
            }
        assert [thread.name for thread in threading.enumerate()].count("check-store") == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_metrics_tell_what_sweeps_of_the_store_have_removed_and_when_one_ended(
    client: TestClient, app: FastAPI, tmp_path: Path
) -> None:
    assert "enginesmith_store_sweep_age_seconds" not in client.get("/metrics").text
    database, store = app.state.database, app.state.store
    (tmp_path / "stray").write_bytes(b"stray")
    store.put_file(tmp_path / "stray")
    sweep_store(database, store, older_than_s=-60, every_s=0)
    sweep_store(database, store, older_than_s=-60, every_s=0)
    text = client.get("/metrics").text
    assert 'enginesmith_store_sweep_removed_total{what="file"} 1.0' in text
    assert 'enginesmith_store_sweep_removed_total{what="upload"} 0.0' in text
    assert "\nenginesmith_store_sweep_age_seconds " in text
