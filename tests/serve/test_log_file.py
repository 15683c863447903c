import os
from pathlib import Path

from app.serve.log_file import TAIL_BYTES, LogFile


def test_a_log_past_its_limit_moves_aside_while_the_child_goes_on_writing(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "api.log", max_bytes=10)
    descriptor = log.open()
    os.write(descriptor, b"a long first line\n")
    log.rotate()
    os.write(descriptor, b"second\n")
    log.rotate()
    os.close(descriptor)
    assert (tmp_path / "api.log.1").read_bytes() == b"a long first line\n"
    assert (tmp_path / "api.log").read_bytes() == b"second\n"


def test_the_tail_holds_the_last_words_of_the_present_run_alone(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "api.log")
    for words in (b"of an earlier run\n", b"x" * TAIL_BYTES + b"last words\n"):
        descriptor = log.open()
        os.write(descriptor, words)
        os.close(descriptor)
    assert log.tail().endswith("last words")
    assert "earlier" not in log.tail()
    assert len(log.tail()) <= TAIL_BYTES


def test_a_cut_log_still_has_a_tail(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "api.log", max_bytes=4)
    os.close(log.open())
    (tmp_path / "api.log").write_text("long enough\n")
    os.close(log.open())
    log.rotate()
    (tmp_path / "api.log").write_text("new\n")
    assert log.tail() == "new"
