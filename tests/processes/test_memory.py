import subprocess
import sys
from pathlib import Path

import pytest

from app.processes import memory
from app.processes.memory import go_first_if_memory_runs_out, machine_bytes, meminfo, own_bytes

GIB = 1 << 30
MIB = 1 << 20
TAKES = """
import mmap, sys
reserved = mmap.mmap(-1, 1 << 36, flags=mmap.MAP_PRIVATE, prot=0)
file = open(sys.argv[1], "rb")
mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
read = sum(mapped[::4096])
written = b"1" * (64 << 20)
print("taken", flush=True)
sys.stdin.read()
"""


def test_a_process_is_charged_what_it_writes_to_and_neither_files_nor_reserved_space(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1" * 100 * MIB)
    with subprocess.Popen(
        [sys.executable, "-c", TAKES, str(tmp_path / "file")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 64 * MIB < own_bytes(process.pid) < 100 * MIB
        process.kill()


def test_the_narrowest_limit_around_this_process_counts_as_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = tmp_path / "system.slice" / "worker.service"
    unit.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("4:memory:/old\n0::/system.slice/worker.service\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "OLD_LIMIT", tmp_path / "limit_in_bytes")
    assert machine_bytes() == meminfo()["MemTotal"]
    (unit / "memory.max").write_text("max\n")
    (unit.parent / "memory.max").write_text(f"{GIB // 2}\n")
    assert machine_bytes() == GIB // 2
    (tmp_path / "limit_in_bytes").write_text(f"{GIB // 4}\n")
    assert machine_bytes() == GIB // 4


@pytest.mark.parametrize(("before", "after"), [("0", "500"), ("-900", "500"), ("800", "800")])
def test_it_asks_to_go_before_others_and_never_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    monkeypatch.setattr(memory, "OWN_SCORE", tmp_path / "oom_score_adj")
    memory.OWN_SCORE.write_text(before)
    go_first_if_memory_runs_out()
    assert memory.OWN_SCORE.read_text() == after
