import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.artifacts.cache import ArtifactCache
from app.errors import Unavailable
from tests.artifacts.conftest import digest_of

FILES = [bytes([number]) * 1000 for number in range(4)]


def cache_of(tmp_path: Path, max_bytes: int, *, keep_s: float = 0.0) -> ArtifactCache:
    cache = ArtifactCache(tmp_path, max_bytes, keep_s=keep_s)
    cache.prepare()
    return cache


def ask(cache: ArtifactCache, data: bytes) -> Path:
    return cache.path(digest_of(data), lambda: [data])


def fill(cache: ArtifactCache) -> list[Path]:
    """Ask for every file, each a minute after the one before."""
    paths: list[Path] = []
    for age, data in enumerate(reversed(FILES)):
        paths.insert(0, ask(cache, data))
        os.utime(paths[0], (1e9 - 60 * age,) * 2)
    return paths


def no_download() -> Iterator[bytes]:
    raise RuntimeError("a copy was there, nothing had to be downloaded")


def test_downloads_once(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 10_000)
    assert ask(cache, FILES[0]).read_bytes() == FILES[0]
    assert cache.path(digest_of(FILES[0]), no_download).read_bytes() == FILES[0]


def test_evicts_the_least_recently_used(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 3000)
    roomy = cache_of(tmp_path, 10_000)
    paths = fill(roomy)
    roomy.path(digest_of(FILES[0]), no_download)  # the oldest, now used again
    ask(cache, b"new" * 300)
    assert [path.exists() for path in paths] == [True, False, False, True]


def test_keeps_what_was_just_handed_out_even_above_its_size(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 1500, keep_s=3600)
    paths = [ask(cache, data) for data in FILES]
    assert all(path.exists() for path in paths)


def test_an_open_copy_stays_readable_after_eviction(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 1500)
    path = ask(cache, FILES[0])
    with path.open("rb") as reader:
        os.utime(path, (1e9, 1e9))
        ask(cache, FILES[1])
        assert not path.exists()
        assert reader.read() == FILES[0]


def test_keeps_nothing_of_a_damaged_download(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 10_000)
    with pytest.raises(Unavailable) as damaged:
        cache.path(digest_of(FILES[0]), lambda: [FILES[0][:-1]])
    assert damaged.value.code == "blob_damaged"
    assert [path for path in (tmp_path / "sha256").rglob("*") if path.is_file()] == []
    assert list((tmp_path / "incoming").iterdir()) == []


def test_many_who_ask_at_once_share_one_download(tmp_path: Path) -> None:
    downloads: list[int] = []
    together = threading.Barrier(6)

    def download() -> Iterator[bytes]:
        downloads.append(1)
        yield FILES[0]

    def start() -> None:
        cache = cache_of(tmp_path, 10_000)
        together.wait()
        cache.path(digest_of(FILES[0]), download)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(downloads) == 1
