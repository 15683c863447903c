import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from app import redaction
from app.database import Database
from app.jobs import events, lease, service
from app.jobs.lease import JobError
from app.redaction import learn, public, public_json, without_secrets
from app.registry.service import create_model
from app.serve.errors import CannotStart
from app.settings import Settings

PASSWORDS = ("database-pass%40word", "broker-passw0rd", "store-secret-9", "c0ffee" * 10)
PROGRAM = """
import logging, structlog
from app.observability import configure_logging
from app.settings import Settings
settings = Settings()
configure_logging(settings)
secrets = (settings.database_url, settings.broker_url, settings.store_url, settings.signing_key)
log = structlog.get_logger()
log.info("all", settings=settings, urls=secrets, nested={"url": [settings.broker_url]}, error=ValueError(secrets[0]))
logging.getLogger("library").warning("connecting to %s with %s", settings.database_url, settings.signing_key)
try:
    raise ConnectionError(settings.broker_url)
except ConnectionError:
    log.exception("failed")
    logging.getLogger("library").exception("failed")
raise RuntimeError(settings.store_url + " " + settings.signing_key)
"""


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Forget the secrets of a test after it."""
    yield
    redaction._secrets.clear()
    redaction._places.clear()
    redaction._patterns.clear()


@pytest.fixture
def secretive(tmp_path: Path) -> Settings:
    settings = Settings(
        data_dir=tmp_path / "data",
        database_url=f"postgresql+psycopg://user:{PASSWORDS[0]}@db/x",
        broker_url=f"redis://:{PASSWORDS[1]}@broker:6379/0",
        store_url=f"s3://bucket/x?secret_access_key={PASSWORDS[2]}",
        signing_key=PASSWORDS[3],
    )
    learn(settings)
    return settings


def test_known_secrets_are_hidden_wherever_they_stand(secretive: Settings) -> None:
    for secret in (*PASSWORDS, "database-pass@word"):
        assert without_secrets(f"x{secret}y") == "x***y"
    assert repr(secretive).count("***") == 0
    assert not [secret for secret in PASSWORDS if secret in repr(secretive)]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("to redis://:pw@host:1/0 and", "to redis://:***@host:1/0 and"),
        ("postgresql+psycopg://u:p:w@h/d", "postgresql+psycopg://u:***@h/d"),
        ("https://user@host/path", "https://user@host/path"),
        ("http://127.0.0.1:8000/docs", "http://127.0.0.1:8000/docs"),
        ("http://h:80/a, mail me@b", "http://h:80/a, mail me@b"),
    ],
)
def test_a_password_in_any_url_is_hidden(text: str, clean: str) -> None:
    assert without_secrets(text) == clean


def test_secrets_of_the_environment_are_hidden(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    learn(settings)
    assert without_secrets("denied for wJalrXUtnFEMI") == "denied for ***"


@pytest.mark.parametrize("as_json", ["true", "false"])
def test_no_log_line_and_no_traceback_has_a_secret(as_json: str) -> None:
    environment = {
        "ENGINESMITH_DATABASE_URL": f"postgresql+psycopg://user:{PASSWORDS[0]}@db/x",
        "ENGINESMITH_BROKER_URL": f"redis://:{PASSWORDS[1]}@broker:6379/0",
        "ENGINESMITH_STORE_URL": f"s3://key:{PASSWORDS[2]}@bucket/x",
        "ENGINESMITH_SIGNING_KEY": PASSWORDS[3],
        "ENGINESMITH_LOG_JSON": as_json,
    }
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    printed = ended.stdout + ended.stderr
    assert printed.count("failed") == 2
    assert "connecting to postgresql+psycopg://user:***@db/x with ***" in printed
    assert "RuntimeError: s3://key:***@bucket/x ***" in printed
    assert [secret for secret in (*PASSWORDS, "database-pass@word") if secret in printed] == []


def test_a_command_that_cannot_start_tells_no_secret(secretive: Settings) -> None:
    assert str(CannotStart("x", f"no answer from {secretive.database_url}")) == (
        "no answer from postgresql+psycopg://user:***@db/x"
    )


def test_of_a_path_on_this_machine_a_client_sees_the_last_part(settings: Settings) -> None:
    learn(settings)
    data = settings.data_dir
    site = Path(pytest.__file__).parent
    assert public(f"open '{data}/artifacts/ab/cdef': no such file") == "open '…/cdef': no such file"
    assert public(f'File "{site}/outcomes.py", line 7') == 'File "…/outcomes.py", line 7'
    assert (
        public(f"Load model from {data}/scratch/j-1/plan.onnx failed:bad") == "Load model from …/plan.onnx failed:bad"
    )
    assert public("file:///tmp/x/y.txt; /etc/passwd, (/proc/1/environ)") == "file://…/y.txt; …/passwd, (…/environ)"
    assert public(f"{data} is full") == "…/ is full"


@pytest.mark.parametrize(
    "text",
    [
        "node /encoder/layer.0/attention/MatMul has no kernel",
        "PUT /v1/blobs/sha256:00 and GET /v1/jobs",
        "https://example.com/usr/share",
        "1/2 of model/usr",
        "/bert/embeddings/Add",
    ],
)
def test_names_of_nodes_and_calls_stay(settings: Settings, text: str) -> None:
    learn(settings)
    assert public(text) == text


def test_texts_are_cleaned_at_any_depth() -> None:
    assert public_json({"/etc/a": ["/etc/x/b", 1, None, {"c": ("redis://:p@h",)}]}) == {
        "/etc/a": ["…/b", 1, None, {"c": ["redis://:***@h"]}]
    }


def test_events_and_errors_of_jobs_tell_neither_secrets_nor_places(
    database: Database, secretive: Settings, tmp_path: Path
) -> None:
    told = f"{tmp_path}/data/x.onnx by {secretive.broker_url}"
    clean = "…/x.onnx by redis://:***@broker:6379/0"
    with database.transaction() as session:
        model = create_model(session, "m", "", {}).id
        job_id = service.create(session, kind="build", model_id=model, queue="q", request={}, likeness="any").id
    held = lease.claim(database, job_id, worker="w", settings=secretive)
    assert held is not None
    lease.fail(
        database, held, JobError("x", told, [told], {"detail": told}), events=[events.Event("log", {"lines": [told]})]
    )
    with database.reading() as session:
        error = service.get_job(session, job_id).error
        rows = [row.data for row in events.list(session, job_id)]
    assert error == {"code": "x", "detail": clean, "log": [clean], "figures": {"detail": clean}}
    assert rows[-2:] == [{"lines": [clean]}, {"error": error}]
    assert str(tmp_path) not in json.dumps(rows)


def test_a_problem_tells_neither_secrets_nor_places(
    app: FastAPI, client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OperationalError("SELECT", {}, OSError(f"{settings.data_dir}/enginesmith.db redis://:pass@h"))

    monkeypatch.setattr(app.state.database, "reading", fail)
    monkeypatch.setattr(app.state.store, "check", lambda: (_ for _ in ()).throw(OSError(f"{settings.data_dir}/y")))
    for path in ("/readyz", "/v1/models"):
        answer = client.get(path)
        assert answer.status_code == 503
        assert str(settings.data_dir) not in answer.text
        assert "pass@h" not in answer.text
