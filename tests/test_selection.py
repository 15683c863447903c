"""`make test-fast` leaves out what kills a process and what needs a server other than Valkey."""

import ast
from pathlib import Path

import pytest

from tests.conftest import SLOW_FILES

FILES = sorted(Path(__file__).parent.rglob("test_*.py"))
KILLS = ("signal.SIGKILL", "signal.SIGSTOP", ".kill(")


def test_every_file_that_is_slow_as_a_whole_is_there() -> None:
    assert {file.name for file in FILES} >= SLOW_FILES


def test_a_test_that_kills_is_marked() -> None:
    marked_one_by_one = [file for file in FILES if file.name not in SLOW_FILES and "gpu" not in file.parts]
    kill = {file.name: [test for test in functions_of(file) if kills(test)] for file in marked_one_by_one}
    assert any(kill.values())
    unmarked = [test.name for tests in kill.values() for test in tests if "pytest.mark.slow" not in decorators(test)]
    assert unmarked == []


def functions_of(file: Path) -> list[ast.FunctionDef]:
    every = ast.walk(ast.parse(file.read_text()))
    return [one for one in every if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")]


def kills(test: ast.FunctionDef) -> bool:
    return any(word in ast.unparse(test) for word in KILLS)


def decorators(test: ast.FunctionDef) -> list[str]:
    return [ast.unparse(one) for one in test.decorator_list]


def test_what_needs_a_server_is_marked(request: pytest.FixtureRequest, database_url: str) -> None:
    assert (request.node.get_closest_marker("slow") is not None) == database_url.startswith("postgresql")
