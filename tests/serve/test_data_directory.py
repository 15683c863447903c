import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from app.serve.data_directory import DataDirectory, make_private
from app.serve.errors import CannotStart

HOLD_AND_DIE = """
import os, signal, sys
from pathlib import Path
from app.serve.data_directory import DataDirectory, make_private
data = DataDirectory(Path(sys.argv[1]))
(data.runtime / "socket").touch()
print(data.runtime, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_directory_is_made_for_its_user_alone(tmp_path: Path) -> None:
    with DataDirectory(tmp_path / "deep" / "data") as data:
        assert stat.S_IMODE(data.path.stat().st_mode) == 0o700
        assert stat.S_IMODE(data.runtime.stat().st_mode) == 0o700


def test_one_that_others_enter_is_closed_to_them_if_it_is_ours_and_left_alone_if_not(tmp_path: Path) -> None:
    ours, shared = tmp_path / "ours", tmp_path / "shared"
    for path in (ours, shared):
        path.mkdir()
        path.chmod(0o755)
    (ours / "enginesmith.db").touch()
    (shared / "letter").touch()
    for path, mode in ((ours, 0o700), (shared, 0o755)):
        make_private(path)
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_file_in_its_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(CannotStart, match="it is a file") as raised:
        make_private(tmp_path / "data")
    assert raised.value.code == "data_dir_unwritable"


def test_a_second_holder_is_told_the_process_id_of_the_first(tmp_path: Path) -> None:
    with (
        DataDirectory(tmp_path),
        pytest.raises(
            CannotStart, match=f"in use by the Enginesmith with process id {os.getpid()}.*--data-dir"
        ) as raised,
    ):
        DataDirectory(tmp_path)
    assert raised.value.code == "data_dir_in_use"


def test_closing_gives_the_lock_back_and_removes_the_runtime_directory(tmp_path: Path) -> None:
    with DataDirectory(tmp_path) as data:
        runtime = data.runtime
    assert not runtime.exists()
    DataDirectory(tmp_path).close()


@pytest.mark.slow
def test_what_a_killed_holder_left_behind_is_removed(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", HOLD_AND_DIE, tmp_path], capture_output=True, text=True, check=False)
    left_behind = Path(killed.stdout.strip())
    assert (left_behind / "socket").exists()
    DataDirectory(tmp_path).close()
    assert not left_behind.exists()


def test_a_lock_file_that_names_another_directory_removes_nothing(tmp_path: Path) -> None:
    precious = tmp_path / "enginesmith-precious"
    precious.mkdir()
    data = tmp_path / "data"
    data.mkdir()
    (data / "lock").write_text(json.dumps({"pid": 1, "runtime": str(precious)}))
    DataDirectory(data).close()
    assert precious.exists()


@pytest.mark.parametrize("path", ["/proc/enginesmith", "/dev/null/enginesmith"])
def test_a_directory_that_cannot_be_made_is_a_clear_error(path: str) -> None:
    with pytest.raises(CannotStart, match=f"Cannot write to the data directory {path}.*--data-dir") as raised:
        DataDirectory(Path(path))
    assert raised.value.code == "data_dir_unwritable"


def test_a_file_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(CannotStart, match=r"Cannot write to the data directory .*: it is a file"):
        DataDirectory(tmp_path / "data")


def test_a_full_disk_is_said_and_leaves_neither_a_lock_nor_a_runtime_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(CannotStart, match="No space left on device") as raised:
            DataDirectory(tmp_path / "data")
    assert raised.value.code == "data_dir_unwritable"
    assert list((tmp_path / "tmp").iterdir()) == []
    DataDirectory(tmp_path / "data").close()
