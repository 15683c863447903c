"""The folders of the tests are those of the code, so that either is found from the other."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
ELSEWHERE = {
    "adding": "one toy of each thing that docs/adding.md says how to add",
    "gpu": "whole jobs on a real card, which no one folder does",
    "packaging": "the Dockerfile and the compose file stand at the root",
}
FILES = sorted(TESTS.rglob("test_*.py"))
MODULES = [path for top in ("app", "workers") for path in (ROOT / top).rglob("*.py")]


def code_folders(folder: Path) -> list[Path]:
    """Where the code may stand that a folder of tests is about; the tests of `app` leave its name out."""
    inner = folder.relative_to(TESTS)
    return [path for path in (ROOT / "app" / inner, ROOT / inner) if path.is_dir()]


def imports(file: Path) -> set[str]:
    """Return the dotted name of each module that a file imports, or imports something from."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def missed(file: Path, folder: Path) -> list[Path]:
    """Return the modules that a test is named after and imports, if none of that name is what `folder` is about."""
    named = [path for path in MODULES if path.stem == file.stem.removeprefix("test_")]
    if any(path.parent in code_folders(folder) for path in named):
        return []
    imported = imports(file)
    return [path for path in named if ".".join(path.relative_to(ROOT).with_suffix("").parts) in imported]


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES} - {TESTS}), ids=lambda path: path.name)
def test_a_folder_of_tests_has_a_folder_of_code(folder: Path) -> None:
    assert bool(code_folders(folder)) != (folder.name in ELSEWHERE)


def test_a_test_named_after_a_module_stands_in_the_folder_of_that_module() -> None:
    assert {file: found for file in FILES if (found := missed(file, file.parent))} == {}


def test_a_test_in_the_folder_above_its_module_is_found() -> None:
    example = TESTS / "definitions" / "families" / "test_bert.py"
    assert [path.name for path in missed(example, TESTS / "definitions")] == ["bert.py"]
