"""Calls on blobs."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from app.artifacts import service
from app.artifacts.batches import too_large
from app.artifacts.damage import require_undamaged
from app.artifacts.dependencies import StoreDep
from app.artifacts.digest import hex_of
from app.artifacts.local import missing_error
from app.artifacts.schemas import EXAMPLE_DIGEST, BlobAnswer
from app.artifacts.serving import MEDIA_TYPE, serve_blob
from app.database import Database
from app.errors import TooLarge
from app.http.dependencies import DatabaseDep, SettingsDep
from app.http.pools import Pool
from app.http.problems import problem_response, problems
from app.http.routes import CLIENT_CLOSED_REQUEST
from app.settings import Settings

router = APIRouter(prefix="/blobs", tags=["blobs"])

SEEN_LATELY = 0.25  # a share of the grace period; a blob that is read again within it is not marked as seen again
CLIENT_PATIENCE_S = 1.0  # for which a client waits for "100 Continue" before it sends its body all the same
BINARY: dict[str, Any] = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}, "example": "test"}}
HEADERS: dict[str, Any] = {
    "ETag": {"schema": {"type": "string"}, "example": f'"{EXAMPLE_DIGEST}"'},
    "Accept-Ranges": {"schema": {"type": "string"}, "example": "bytes"},
}


def _digest(
    digest: Annotated[str, Path(description="`sha256:` and 64 lower-case hex digits.", examples=[EXAMPLE_DIGEST])],
) -> str:
    hex_of(digest)
    return digest


BlobDigest = Annotated[str, Depends(_digest)]


@router.put(
    "/{digest}",
    status_code=201,
    summary="Upload a blob",
    response_model=BlobAnswer,
    responses={200: {"model": BlobAnswer, "description": "It was there already."}, **problems(413, 422, 503)},
    openapi_extra={"requestBody": {"required": True, "content": BINARY}},
)
async def upload_blob(
    digest: BlobDigest, request: Request, database: DatabaseDep, store: StoreDep, settings: SettingsDep
) -> Response:
    """The body is the content, as `curl -T FILE` sends it.

    It is stored as it arrives and kept if its digest is the one in the path. A blob that is there already is read and
    digested; if its bytes are right, the answer comes without reading the body: ask with HEAD, or send
    `Expect: 100-continue`, to spare sending it. If they are damaged, the body replaces them.
    """
    limit = _limit(request, settings)
    if limit > settings.max_blob_bytes:
        detail = too_large(settings.max_blob_bytes)
        return problem_response(413, TooLarge.title, detail, TooLarge.code, headers=_unread(request))
    began = time.monotonic()
    transfers: Pool = request.app.state.pools.transfers
    if await transfers.run(service.touch, database, digest):
        size = await transfers.run(service.whole_size, database, store, digest)
        if size is not None:
            return _answer(digest, size, 200, _unread(request, time.monotonic() - began))
    try:
        size = await store.put_stream(request.stream(), expected=digest, limit=limit)
    except ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    await transfers.run(service.record_upload, database, store, digest, size)
    return _answer(digest, size, 201, {"Location": f"/v1/blobs/{digest}"})


@router.get(
    "/{digest}",
    summary="Download a blob",
    response_class=Response,
    responses={
        200: {"content": BINARY, "headers": HEADERS},
        206: {"content": BINARY, "headers": HEADERS, "description": "The range asked for."},
        304: {"description": "If-None-Match names it: the client has these bytes."},
        **problems(404, 412, 416, 422, 503),
    },
)
async def download_blob(
    digest: BlobDigest, request: Request, database: DatabaseDep, store: StoreDep, settings: SettingsDep
) -> Response:
    """The content. One Range is served, also under If-Range, so a broken download can go on where it stopped.

    What is damaged is answered with `blob_damaged`. If that shows only while a large blob is sent, the connection is
    closed before the blob's end.
    """
    transfers: Pool = request.app.state.pools.transfers
    return await transfers.run(_serve, digest, request, database, store, settings)


@router.head(
    "/{digest}",
    summary="Is a blob there?",
    response_class=Response,
    responses={200: {"headers": HEADERS}, **problems(404, 412, 422, 503)},
)
async def look_for_blob(
    digest: BlobDigest, request: Request, database: DatabaseDep, store: StoreDep, settings: SettingsDep
) -> Response:
    """The headers of a download. A blob that is there stays for another grace period, long enough to use it.

    A blob that is on record as damaged is answered with 503: upload it again.
    """
    transfers: Pool = request.app.state.pools.transfers
    await transfers.run(require_undamaged, database, digest)
    return await transfers.run(_serve, digest, request, database, store, settings)


def _serve(digest: str, request: Request, database: Database, store: StoreDep, settings: Settings) -> Response:
    if not service.touch(database, digest, unless_seen_within_s=SEEN_LATELY * settings.orphan_grace_s):
        raise missing_error(digest)
    return serve_blob(request, store, digest, filename=None, etag=digest)


def _limit(request: Request, settings: Settings) -> int:
    """Return the limit of the body in bytes: the announced length, or the longest allowed if none is announced."""
    announced = request.headers.get("content-length", "")
    return int(announced) if announced.isdecimal() else settings.max_blob_bytes


def _unread(request: Request, after_s: float = 0.0) -> dict[str, str]:
    """Return the headers of an answer that is given before the body is read.

    A client that waits for "100 Continue" never sends its body after this answer, unless it has tired of waiting, as
    curl and others do after a second. The connection then has no defined next byte, so it is closed. Any other client
    is sending already. To close its connection would reset it before the client sees the answer, so the server reads
    the body and discards it. `after_s` are the seconds that the client has waited.
    """
    waits = request.headers.get("expect", "").lower() == "100-continue" and after_s < CLIENT_PATIENCE_S
    return {"Connection": "close"} if waits else {}


def _answer(digest: str, size: int, status: int, headers: dict[str, str]) -> Response:
    return JSONResponse(BlobAnswer(digest=digest, size=size).model_dump(), status, headers | {"ETag": f'"{digest}"'})
