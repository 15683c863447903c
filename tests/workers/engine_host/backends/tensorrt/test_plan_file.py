import errno
import hashlib
from pathlib import Path

import pytest

from app.artifacts.writeback import WRITEBACK
from workers.engine_host.backends.tensorrt.plan_file import mapped_plan, write_plan, writing_plan


@pytest.mark.parametrize("size", [0, 1, 5_000_000, WRITEBACK, 2 * WRITEBACK + 1])
def test_a_plan_is_written_whole_and_its_digest_is_the_files(tmp_path: Path, size: int) -> None:
    plan = bytes(range(256)) * (size // 256) + bytes(size % 256)
    path = tmp_path / "engine.plan"
    path.write_bytes(b"longer than what is written, or older" * 3)

    digest, nbytes = write_plan(plan, path)

    assert path.read_bytes() == plan
    assert (digest, nbytes) == (f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}", size)


def test_the_disk_begins_before_the_plan_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "engine.plan"
    begun: list[tuple[int, int]] = []

    def start_writeback(_descriptor: int, offset: int, nbytes: int) -> None:
        assert path.stat().st_size == offset + nbytes
        begun.append((offset, nbytes))

    monkeypatch.setattr("workers.engine_host.backends.tensorrt.plan_file.start_writeback", start_writeback)
    write_plan(bytes(2 * WRITEBACK + 1), path)
    assert begun == [(0, WRITEBACK), (WRITEBACK, WRITEBACK), (2 * WRITEBACK, 1)]


def test_a_plan_of_wider_elements_is_written_by_its_bytes(tmp_path: Path) -> None:
    plan = memoryview(bytes(range(64))).cast("i")
    digest, nbytes = write_plan(plan, tmp_path / "engine.plan")
    assert nbytes == 64
    assert digest == f"sha256:{hashlib.sha256(bytes(range(64))).hexdigest()}"


def test_a_plan_written_beside_a_block_is_there_after_it(tmp_path: Path) -> None:
    with writing_plan(b"plan", tmp_path / "engine.plan") as written:
        pass
    assert (tmp_path / "engine.plan").read_bytes() == b"plan"
    assert written.result() == (f"sha256:{hashlib.sha256(b'plan').hexdigest()}", 4)


def test_nothing_is_left_of_a_plan_beside_whose_writing_something_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="as if"), writing_plan(b"plan", tmp_path / "engine.plan"):
        raise RuntimeError("as if")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_plan_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("workers.engine_host.backends.tensorrt.plan_file.start_writeback", full)
    with pytest.raises(OSError, match="No space left"):
        write_plan(b"plan", tmp_path / "engine.plan")
    assert list(tmp_path.iterdir()) == []


def test_a_mapped_plan_is_the_files_content_and_read_only(tmp_path: Path) -> None:
    (tmp_path / "engine.plan").write_bytes(b"plan")
    with mapped_plan(tmp_path / "engine.plan") as mapped:
        assert bytes(mapped) == b"plan"
        assert memoryview(mapped).nbytes == 4
        with pytest.raises(TypeError):
            mapped[0] = 0
    assert mapped.closed
