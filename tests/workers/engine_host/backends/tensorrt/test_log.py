from typing import Any

import pytest

from workers.channel.messages import LogLine
from workers.engine_host.backends.tensorrt.library import trt
from workers.engine_host.backends.tensorrt.log import Log


@pytest.mark.timeout(10)
def test_a_line_said_while_another_is_passed_on_is_passed_on_too() -> None:
    log = Log()
    passed: list[Any] = []

    def report(message: object) -> None:
        passed.append(message)
        if len(passed) == 1:
            log.log(trt.ILogger.Severity.INFO, "destroyed")  # as an object does that is collected meanwhile

    log.attach(report)
    log.log(trt.ILogger.Severity.WARNING, "first")

    assert passed == [LogLine("warning", "first"), LogLine("info", "destroyed")]


@pytest.mark.parametrize(
    ("severity", "level"),
    [("INTERNAL_ERROR", "error"), ("ERROR", "error"), ("WARNING", "warning"), ("INFO", "info"), ("VERBOSE", None)],
)
def test_a_line_has_the_level_of_its_severity_and_a_verbose_one_is_dropped(severity: str, level: str | None) -> None:
    log = Log()
    passed: list[Any] = []
    log.attach(passed.append)

    log.log(trt.ILogger.Severity.__members__[severity], "a line")

    assert [line.level for line in passed] == ([] if level is None else [level])
    assert log.errors == (["a line"] if level == "error" else [])
