import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.scratch import remove_abandoned, scratch_folder

OWNER = """
import sys
from pathlib import Path
import pytest

from app.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1]), "worker") as folder:
    (folder / "plan").write_text("x")
    print("made", flush=True)
    sys.stdin.read()
"""


def test_a_folder_goes_with_its_block(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "scratch", "worker") as folder:
        (folder / "plan").write_text("x")
        assert folder.name.startswith("worker-")
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.slow
def test_a_killed_owners_folder_is_removed_and_a_living_ones_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "made\n"
        assert remove_abandoned(tmp_path) == 0
        os.kill(owner.pid, signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == 1
    assert remove_abandoned(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_taken_for_abandoned_before_it_was_held_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter(["before it is opened", "before it is locked"])
    opening, locking = os.open, fcntl.flock

    def opened(path: Path, flags: int) -> int:
        if next(moments, None) == "before it is opened":
            path.rmdir()
        return opening(path, flags)

    def locked(descriptor: int, operation: int) -> None:
        if next(moments, None) == "before it is locked":
            next(tmp_path.iterdir()).rmdir()
        locking(descriptor, operation)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(fcntl, "flock", locked)
    with scratch_folder(tmp_path, "worker") as folder:
        (folder / "plan").write_text("x")
    assert list(moments) == []


def test_there_may_be_no_scratch_yet(tmp_path: Path) -> None:
    assert remove_abandoned(tmp_path / "scratch") == 0
