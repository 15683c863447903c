"""What is timed and kept; the caches and the builder's configuration are stand-ins."""

from pathlib import Path
from typing import Any

import pytest

from tests.workers.engine_host.backends.tensorrt.releases import release_8, release_10
from workers.channel.messages import BackendError
from workers.engine_host.backends.tensorrt.capabilities import capabilities
from workers.engine_host.backends.tensorrt.library import trt
from workers.engine_host.backends.tensorrt.log import Log
from workers.engine_host.backends.tensorrt.timing_cache import Timings


class TimingCache:
    """In place of `trt.ITimingCache`; one read from "damaged" is refused where it is combined."""

    def __init__(self, content: bytes = b"") -> None:
        self.entries = {content} - {b""}

    def combine(self, other: "TimingCache", *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if b"damaged" in other.entries:
            return False
        self.entries |= other.entries
        return True

    def serialize(self) -> bytes:
        return b"+".join(sorted(self.entries))


class Config:
    """In place of `trt.IBuilderConfig`; `refuses` is how many caches it does not take."""

    def __init__(self, refuses: int = 0) -> None:
        self.refuses = refuses
        self.cache: TimingCache | None = None
        self.flags: list[str] = []

    def create_timing_cache(self, content: bytes) -> TimingCache | None:
        return None if content == b"unreadable" else TimingCache(content)

    def set_timing_cache(self, cache: TimingCache, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.refuses -= 1
        if self.refuses >= 0:
            return False
        self.cache = cache
        return True

    def set_flag(self, flag: trt.BuilderFlag) -> None:
        self.flags.append(flag.name)

    def entries(self) -> set[bytes]:
        assert self.cache is not None
        return self.cache.entries


@pytest.fixture
def heard() -> list[Any]:
    return []


@pytest.fixture
def log(heard: list[Any]) -> Log:
    log = Log()
    log.attach(heard.append)
    return log


def used(timings: Timings, stored: Path | None, config: Config | None = None) -> Config:
    config = config or Config()
    builder_config: Any = config
    timings.use(builder_config, stored)
    return config


def test_what_was_timed_is_kept_for_later_builds_and_written(tmp_path: Path, log: Log) -> None:
    timings = Timings(capabilities(release_10()), log)
    assert not timings.write(tmp_path / "nothing yet")
    first = used(timings, None)
    first.entries().add(b"gemm")
    (tmp_path / "stored").write_bytes(b"conv")

    assert used(timings, tmp_path / "stored").entries() == {b"conv", b"gemm"}

    assert timings.write(tmp_path / "timings")
    another = Timings(capabilities(release_10()), log)
    assert used(another, tmp_path / "timings").entries() == {b"conv+gemm"}


@pytest.mark.parametrize("content", [b"damaged", b"unreadable", None])
def test_stored_timings_of_no_use_are_warned_of_and_left_out(
    heard: list[Any], tmp_path: Path, log: Log, content: bytes | None
) -> None:
    stored = tmp_path / "stored"
    if content is not None:
        stored.write_bytes(content)
    log.errors.append("Myelin error from unknown graph")
    assert used(Timings(capabilities(release_10()), log), stored).entries() == set()
    (warning,) = heard
    assert (warning.level, "begun anew" in warning.text) == ("warning", True)
    assert log.errors == []  # if the build fails, that is not why


def test_timings_that_the_builder_refuses_are_begun_anew(heard: list[Any], log: Log) -> None:
    timings = Timings(capabilities(release_10()), log)
    used(timings, None).entries().add(b"of another device")
    assert used(timings, None, Config(refuses=1)).entries() == set()
    assert [line.level for line in heard] == ["warning"]


def test_a_release_that_cannot_read_timings_shares_them_in_memory(tmp_path: Path, log: Log) -> None:
    timings = Timings(capabilities(release_8()), log)
    (tmp_path / "stored").write_bytes(b"conv")
    used(timings, tmp_path / "stored").entries().add(b"gemm")
    assert used(timings, None).entries() == {b"gemm"}
    assert not timings.write(tmp_path / "timings")


def test_a_build_that_can_have_no_cache_at_all_does_without(heard: list[Any], log: Log, tmp_path: Path) -> None:
    timings = Timings(capabilities(release_10()), log)
    assert used(timings, None, Config(refuses=2)).flags == ["DISABLE_TIMING_CACHE"]
    assert not timings.write(tmp_path / "timings")
    assert [line.level for line in heard] == ["warning"]
    assert used(timings, None).entries() == set()  # the next build tries again


def test_a_build_is_told_whether_anything_is_known(log: Log, tmp_path: Path) -> None:
    (tmp_path / "stored").write_bytes(b"conv")
    (tmp_path / "damaged").write_bytes(b"damaged")
    config: Any = Config()
    timings, others = (Timings(capabilities(release_10()), log) for _ in range(2))
    assert [timings.use(config, stored) for stored in (None, None)] == [False, True]
    assert [others.use(config, tmp_path / name) for name in ("damaged", "stored")] == [False, True]


def test_what_several_workers_have_timed_is_merged_whatever_is_known_here(tmp_path: Path, log: Log) -> None:
    timings, config = Timings(capabilities(release_10()), log), Config()
    used(timings, None).entries().add(b"known here")
    for name in (b"conv", b"gemm"):
        (tmp_path / name.decode()).write_bytes(name)
    builder_config: Any = config
    timings.merge(builder_config, [str(tmp_path / "conv"), str(tmp_path / "gemm")], tmp_path / "merged")
    assert (tmp_path / "merged").read_bytes() == b"conv+gemm"


@pytest.mark.parametrize("content", [b"damaged", b"unreadable", None])
def test_timings_of_no_use_are_not_merged(tmp_path: Path, log: Log, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "theirs").write_bytes(content)
    builder_config: Any = Config()
    with pytest.raises(BackendError, match="timings_unreadable"):
        Timings(capabilities(release_10()), log).merge(builder_config, [str(tmp_path / "theirs")], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("fault", ["no room on the disk", "nothing to write"])
def test_timings_that_cannot_be_written_fail_no_build(
    heard: list[Any], log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    timings = Timings(capabilities(release_10()), log)
    used(timings, None)
    path = tmp_path / ("missing/timings" if fault.startswith("no room") else "timings")
    if fault == "nothing to write":
        monkeypatch.setattr(TimingCache, "serialize", lambda _cache: None)
    assert not timings.write(path)
    assert [(line.level, "not kept" in line.text) for line in heard] == [("warning", True)]
    assert not path.exists()
