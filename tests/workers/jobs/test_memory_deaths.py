"""An engine host that died for want of memory is told from one that died of something else."""

import signal
from pathlib import Path

import pytest

from workers.channel.host import EngineHostDied, EngineHostNotStarted
from workers.jobs import memory_deaths
from workers.jobs.memory_deaths import as_memory_death, kills

KILLED = EngineHostDied("The engine host was killed by SIGKILL.", ["compiling"], status=-signal.SIGKILL)


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's count for a control group."""
    path = tmp_path / "memory.events"
    path.write_text("low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\noom_group_kill 9\n")
    monkeypatch.setattr(memory_deaths, "VMSTAT", tmp_path / "missing")
    monkeypatch.setattr(memory_deaths, "CGROUPS", (path,))
    return path


def test_this_kernel_counts() -> None:
    assert kills() >= 0
    assert "\noom_kill " in memory_deaths.VMSTAT.read_text()


def test_a_host_that_the_kernel_killed_for_memory_is_recognised(events: Path) -> None:
    before = kills()
    assert before == 1
    events.write_text("oom 3\noom_kill 2\n")
    told = as_memory_death(KILLED, before)
    assert (told.code, told.log, told.status) == ("out_of_memory", ["compiling"], -9)
    assert "SIGKILL" in told.detail
    assert "smaller profile" in told.detail


@pytest.mark.usefixtures("events")
def test_a_host_that_somebody_killed_is_not() -> None:
    assert as_memory_death(KILLED, kills()) is KILLED


def test_a_kill_for_memory_elsewhere_explains_no_crash(events: Path) -> None:
    crashed = EngineHostDied("The engine host was killed by SIGSEGV.", [], status=-signal.SIGSEGV)
    before = kills()
    events.write_text("oom_kill 2\n")
    assert as_memory_death(crashed, before) is crashed


@pytest.mark.usefixtures("events")
@pytest.mark.parametrize(
    "words",
    ["terminate called after throwing an instance of 'std::bad_alloc'", "MemoryError", "mmap: Cannot allocate memory"],
)
def test_a_host_that_could_not_allocate_is_recognised_by_its_last_words(words: str) -> None:
    died = EngineHostDied("The engine host was killed by SIGABRT.", ["compiling", words, "  what():"], status=-6)
    assert as_memory_death(died, kills()).code == "out_of_memory"


def test_a_host_that_had_no_request_is_not_looked_at(events: Path) -> None:
    before = kills()
    events.write_text("oom_kill 2\n")
    started = EngineHostNotStarted("The engine host was killed by SIGKILL.", [], status=KILLED.status)
    assert as_memory_death(started, before) is started
