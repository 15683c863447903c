"""Multipart uploads that a killed API leaves in a bucket."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.paginate import PageIterator
from structlog.testing import capture_logs

from app.artifacts.remote import RemoteStore
from app.artifacts.store import open_store
from app.artifacts.strays import sweep_store, sweeps_so_far
from app.database import Database
from app.settings import Settings

HOUR_S = 3600.0
AGES_S = 30 * 365 * 24 * HOUR_S  # moto says of all uploads that they began in 2010
UPLOAD_AND_DIE = """
import asyncio, os, signal, sys
from collections.abc import AsyncIterator
from pathlib import Path
from app.artifacts.store import open_store
from app.settings import Settings

async def body() -> AsyncIterator[bytes]:
    for _ in range(20):
        yield bytes(1 << 20)
    await asyncio.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)

store = open_store(Settings(data_dir=Path(sys.argv[1]), store_url=sys.argv[2]))
asyncio.run(store.put_stream(body(), expected="sha256:" + "0" * 64, limit=1 << 30))
"""


@pytest.fixture
def client(s3_environment: str) -> Any:  # noqa: ANN401 - boto3 has no types
    return boto3.client("s3", endpoint_url=s3_environment, region_name="us-east-1")


def unfinished(client: Any, prefix: str) -> list[str]:  # noqa: ANN401 - likewise
    listed = client.list_multipart_uploads(Bucket="bucket", Prefix=prefix).get("Uploads", [])
    return [one["Key"] for one in listed]


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_sweep_ends_what_a_killed_process_was_uploading(database: Database, client: Any, tmp_path: Path) -> None:  # noqa: ANN401 - likewise
    prefix = uuid4().hex
    url = f"s3://bucket/{prefix}"
    killed = subprocess.run(
        [sys.executable, "-c", UPLOAD_AND_DIE, tmp_path, url], check=False, cwd=Path(__file__).parents[2]
    )
    assert killed.returncode == -signal.SIGKILL
    key = f"{prefix}/sha256/00/{'0' * 64}"
    assert unfinished(client, prefix) == [key]

    store = open_store(Settings(data_dir=tmp_path, store_url=url))
    sweep_store(database, store, older_than_s=AGES_S, every_s=0)
    assert unfinished(client, prefix) == [key]
    sweep_store(database, store, older_than_s=HOUR_S, every_s=0)
    assert unfinished(client, prefix) == []
    with database.reading() as session:
        assert sweeps_so_far(session).uploads == 1


def test_an_upload_that_ends_meanwhile_ends_no_sweep(
    client: Any,  # noqa: ANN401 - likewise
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prefix = uuid4().hex
    for number in range(2):
        client.create_multipart_upload(Bucket="bucket", Key=f"{prefix}/sha256/00/{number}")
    first = client.list_multipart_uploads(Bucket="bucket", Prefix=prefix)["Uploads"][0]
    gone = {"Key": first["Key"], "UploadId": "ended", "Initiated": first["Initiated"]}
    listed = client.get_paginator("list_multipart_uploads").paginate(Bucket="bucket", Prefix=prefix).build_full_result()
    monkeypatch.setattr(PageIterator, "__iter__", lambda _pages: iter([{"Uploads": [gone, *listed["Uploads"]]}]))
    store = open_store(Settings(data_dir=tmp_path, store_url=f"s3://bucket/{prefix}"))
    assert store.clear_leftovers(older_than_s=HOUR_S) == 2
    assert unfinished(client, prefix) == []


def test_what_lies_beside_the_artifacts_is_left_alone(client: Any, tmp_path: Path) -> None:  # noqa: ANN401 - likewise
    prefix = uuid4().hex
    theirs = [f"{prefix}-other/sha256/00/0", f"{prefix}/elsewhere"]
    for key in (*theirs, f"{prefix}/sha256/00/0"):
        client.create_multipart_upload(Bucket="bucket", Key=key)
    store = open_store(Settings(data_dir=tmp_path, store_url=f"s3://bucket/{prefix}"))
    assert store.clear_leftovers(older_than_s=HOUR_S) == 1
    assert sorted(unfinished(client, prefix)) == theirs


@pytest.mark.usefixtures("s3_environment")
@pytest.mark.parametrize("bucket", ["bucket", "missing"])
def test_where_they_cannot_be_listed_that_is_told_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: str
) -> None:
    if bucket == "bucket":
        monkeypatch.setitem(sys.modules, "boto3", None)
        monkeypatch.setitem(sys.modules, "boto3.exceptions", None)
    store = open_store(Settings(data_dir=tmp_path, store_url=f"s3://{bucket}/"))
    assert isinstance(store, RemoteStore)
    with capture_logs() as logs:
        assert store.clear_leftovers(older_than_s=HOUR_S) == 0
    assert logs[0]["log_level"] == "warning"
    assert "lifecycle rule" in logs[0]["remedy"]
