"""Unfinished multipart uploads in an S3 bucket: a killed process leaves them behind, and its owner pays for them.

obstore does not list them, so boto3 does (the extra `s3`). It takes credentials from where obstore takes them.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from obstore.store import S3Store

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
CONNECT_S, READ_S = 10, 30
REMEDY = (
    "Install the extra `s3`, and let the service list and abort multipart uploads; or give the bucket a lifecycle rule "
    "that does."
)
log = structlog.get_logger(__name__)


def end_unfinished_uploads(objects: S3Store, folder: str, *, older_than_s: float) -> int:
    """End the multipart uploads of keys in a folder that began more than `older_than_s` seconds ago; return how many.

    If the bucket cannot list them, none is ended, and a warning names the remedy.
    """
    try:
        from boto3.exceptions import Boto3Error  # noqa: PLC0415 - an extra, and slow to import
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - likewise
    except ImportError:
        log.warning("unfinished uploads are not ended: boto3 is not installed", remedy=REMEDY)
        return 0
    bucket = str(objects.config["bucket"])
    prefix = "/".join(filter(None, [(objects.prefix or "").strip("/"), folder, ""]))
    try:
        return _end_all(_client(os.environ), bucket, prefix, datetime.now(UTC) - timedelta(seconds=older_than_s))
    except (Boto3Error, BotoCoreError, ClientError) as error:
        log.warning("unfinished uploads are not ended", error=str(error), remedy=REMEDY)
        return 0


def _end_all(client: Any, bucket: str, prefix: str, before: datetime) -> int:  # noqa: ANN401 - boto3 has no types
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    old = [one for page in pages for one in page.get("Uploads", []) if one["Initiated"] < before]
    ended = 0
    for one in old:
        with suppress(client.exceptions.NoSuchUpload):  # it has ended meanwhile
            client.abort_multipart_upload(Bucket=bucket, Key=one["Key"], UploadId=one["UploadId"])
            ended += 1
    return ended


def _client(environment: Mapping[str, str]) -> Any:  # noqa: ANN401 - likewise
    import boto3  # noqa: PLC0415 - likewise
    from botocore.config import Config  # noqa: PLC0415 - likewise

    endpoint = next((environment[name] for name in ENDPOINTS if environment.get(name)), None)
    region = next((environment[name] for name in REGIONS if environment.get(name)), None)
    by_host = environment.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in {"1", "true"}
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        s3={"addressing_style": "virtual" if by_host else "path" if endpoint else "auto"},
    )
    return boto3.client("s3", endpoint_url=endpoint, region_name=region, config=config)
