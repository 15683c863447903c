import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.artifacts.cache import ArtifactCache
from app.artifacts.local import LocalStore
from app.errors import Unavailable
from tests.artifacts.conftest import digest_of

FILES = [bytes([number]) * 1000 for number in range(4)]
HOLDER = """
import sys
from pathlib import Path

from app.artifacts.cache import ArtifactCache

cache = ArtifactCache(Path(sys.argv[1]), 1500)
with cache.holding():
    cache.path(sys.argv[2], lambda: [])
    print("held", flush=True)
    sys.stdin.read()
"""


def cache_of(tmp_path: Path, max_bytes: int, *, keep_s: float = 0.0) -> ArtifactCache:
    cache = ArtifactCache(tmp_path, max_bytes, keep_s=keep_s)
    cache.prepare()
    return cache


def ask(cache: ArtifactCache, data: bytes) -> Path:
    return cache.path(digest_of(data), lambda: [data])


def asked_long_ago(path: Path, age_s: float = 0.0) -> None:
    os.utime(path.parents[2] / "used" / path.name, (1e9 - age_s,) * 2)


def fill(cache: ArtifactCache) -> list[Path]:
    """Ask for every file, each a minute after the one before."""
    paths: list[Path] = []
    for age, data in enumerate(reversed(FILES)):
        paths.insert(0, ask(cache, data))
        asked_long_ago(paths[0], 60 * age)
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
        asked_long_ago(path)
        ask(cache, FILES[1])
        assert not path.exists()
        assert reader.read() == FILES[0]


def test_what_is_asked_for_while_holding_stays_until_that_ends(tmp_path: Path) -> None:
    cache, neighbour = (cache_of(tmp_path, 1500, keep_s=3600) for _ in range(2))
    with cache.holding():
        held = ask(cache, FILES[0])
        ask(cache, FILES[0])
        passing = ask(neighbour, FILES[1])
        for path in (held, passing):
            asked_long_ago(path)
        ask(neighbour, FILES[2])
        assert (held.exists(), passing.exists()) == (True, False)
    ask(neighbour, FILES[3])
    assert not held.exists()
    assert list((tmp_path / "held").iterdir()) == []


def test_what_was_asked_for_before_is_not_held(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 1500, keep_s=3600)
    path = ask(cache, FILES[0])
    asked_long_ago(path)
    with cache.holding():
        ask(cache, FILES[1])
    assert not path.exists()


def test_a_disk_without_room_for_a_folder_fails_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_options: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = cache_of(tmp_path, max_bytes=1000)
    monkeypatch.setattr("app.scratch.tempfile.mkdtemp", full)
    with cache.holding():
        assert ask(cache, b"data").read_bytes() == b"data"


@pytest.mark.slow
def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 1500, keep_s=3600)
    path = ask(cache, FILES[0])
    command = [sys.executable, "-c", HOLDER, str(tmp_path), digest_of(FILES[0])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        asked_long_ago(path)
        ask(cache, FILES[1])
        assert path.exists()
        os.kill(holder.pid, signal.SIGKILL)
    ask(cache, FILES[2])
    assert not path.exists()


@pytest.mark.parametrize("error", [Unavailable("full", code="store_full"), PermissionError("read-only")])
def test_what_it_has_no_room_for_is_not_kept_and_that_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise error

    cache = cache_of(tmp_path / "cache", 10_000)
    path = tmp_path / "plan"
    path.write_bytes(FILES[0])
    monkeypatch.setattr(LocalStore, "put_file", full)
    cache.adopt(path, digest_of(FILES[0]))
    assert not path.exists()
    monkeypatch.undo()
    assert ask(cache, FILES[0]).read_bytes() == FILES[0]


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
