"""Where stored artifacts can be damaged: files of a store or of a cache, and objects of a bucket."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import obstore
from obstore.store import from_url


class Place(Protocol):
    """Where artifacts can be damaged."""

    def read(self, digest: str) -> bytes:
        """Return the bytes that lie there."""

    def write(self, digest: str, content: bytes, *, in_place: bool) -> None:
        """Have other bytes lie there."""


@dataclass(frozen=True)
class Files:
    """Files of a local store or of a cache; what is written has the times of what was there."""

    root: Path

    def read(self, digest: str) -> bytes:
        """See `Place`."""
        return self._path(digest).read_bytes()

    def write(self, digest: str, content: bytes, *, in_place: bool) -> None:
        """See `Place`. Without `in_place` another file takes the name."""
        path = self._path(digest)
        before = path.stat()
        path.chmod(0o644)
        target = path if in_place else path.with_name(f"{path.name}.new")
        with target.open("r+b" if in_place else "xb") as file:
            file.write(content)
            file.truncate()
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
        target.replace(path)

    def has(self, digest: str) -> bool:
        """Return whether there is such a file."""
        return self._path(digest).exists()

    def _path(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self.root / "sha256" / name[:2] / name


class Objects:
    """The objects of a bucket."""

    def __init__(self, url: str) -> None:
        self._objects = from_url(url)

    def read(self, digest: str) -> bytes:
        """See `Place`."""
        return bytes(obstore.get(self._objects, self._key(digest)).bytes())

    def write(self, digest: str, content: bytes, *, in_place: bool) -> None:  # noqa: ARG002 - an object is replaced
        """See `Place`."""
        obstore.put(self._objects, self._key(digest), content)

    def _key(self, digest: str) -> str:
        name = digest.removeprefix("sha256:")
        return f"sha256/{name[:2]}/{name}"


@contextmanager
def bucket() -> Iterator[str]:
    """Start an S3 server in this process, and yield the URL of a bucket of it."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - only what is remote needs it

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
    }
    os.environ.update(names)
    try:
        import httpx2  # noqa: PLC0415 - likewise

        httpx2.put(f"http://{host}:{port}/bucket").raise_for_status()
        yield "s3://bucket/damage"
    finally:
        server.stop()
