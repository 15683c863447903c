"""Answering GET and HEAD for stored bytes: validators, one range, bounded memory."""

import re
from collections.abc import AsyncIterator, Iterator
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app.artifacts.byte_ranges import ByteRange, parse_range
from app.artifacts.local import missing_error
from app.artifacts.store import ArtifactStore
from app.errors import PreconditionFailed, RangeNotSatisfiable
from app.http.pools import Pool
from app.http.problems import problem_response
from app.settings import KIB

MEDIA_TYPE = "application/octet-stream"
CHUNK = 256 * KIB  # a client that takes its answer slowly keeps two of them in memory
ENTITY_TAG = re.compile(r'(?:W/)?("[^"]*")')


def serve_blob(request: Request, store: ArtifactStore, digest: str, *, filename: str | None, etag: str) -> Response:
    """Answer a GET or HEAD with the artifact, part of it, 304 or 416.

    `etag` is the bare tag, without quotes; it must change with the bytes. If there is a `filename`, browsers save the
    answer under that name.

    Raises:
        NotFound: "blob_not_found".
        PreconditionFailed: If-Match names other bytes.
    """
    size = store.size(digest)
    if size is None:
        raise missing_error(digest)
    tag = f'"{etag}"'
    headers = {"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": "private, max-age=31536000, immutable"}
    if (if_match := request.headers.get("if-match")) is not None and not _names(if_match, tag):
        raise PreconditionFailed(f"If-Match does not name the present ETag, {tag}. Read the resource again.")
    if (if_none_match := request.headers.get("if-none-match")) is not None and _names(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    headers |= {"X-Content-Type-Options": "nosniff"} | _disposition(filename)
    if request.method == "HEAD":
        return Response(media_type=MEDIA_TYPE, headers=headers | {"Content-Length": str(size)})
    try:
        part = _requested_part(request, tag, size)
    except RangeNotSatisfiable as error:
        unsatisfied = {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"}
        return problem_response(error.status, error.title, error.detail, error.code, headers=unsatisfied)
    return _send(request.app.state.pools.transfers, store, digest, part, size, headers)


def _requested_part(request: Request, tag: str, size: int) -> ByteRange | None:
    """Return the range to send, None for all bytes; if If-Range names other bytes, the Range header is ignored."""
    header = request.headers.get("range")
    if header is None or request.headers.get("if-range", tag).strip() != tag:
        return None
    return parse_range(header, size)


def _send(
    transfers: Pool, store: ArtifactStore, digest: str, part: ByteRange | None, size: int, headers: dict[str, str]
) -> Response:
    start, stop = (part.start, part.stop) if part is not None else (0, size)
    headers["Content-Length"] = str(stop - start)
    if part is not None:
        headers["Content-Range"] = part.content_range
    chunks = store.iter_bytes(digest, start, stop, CHUNK)
    return StreamingResponse(_read(transfers, chunks), 206 if part is not None else 200, headers, media_type=MEDIA_TYPE)


async def _read(transfers: Pool, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the chunks, each read in a thread once it is its turn."""
    while chunk := await transfers.run(next, chunks, b""):
        yield chunk


def _names(header: str, tag: str) -> bool:
    """Return whether an If-Match or If-None-Match header lists the tag or is "*"."""
    return header.strip() == "*" or tag in ENTITY_TAG.findall(header)


def _disposition(filename: str | None) -> dict[str, str]:
    return (
        {} if filename is None else {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(filename, safe='')}"}
    )
