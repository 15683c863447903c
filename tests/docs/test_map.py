"""docs/architecture.md, glossary.md and the decisions are held to the tree."""

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ARCHITECTURE = (DOCS / "architecture.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
NAMED_PATH = re.compile(r"`((?:app|workers|migrations|tests|benchmarks|docs|examples)/[\w./-]*)`")


def test_the_table_of_folders_is_the_tree() -> None:
    listed = re.findall(r"^\| `([^`]+)/` \|", ARCHITECTURE, flags=re.MULTILINE)
    assert [folder for folder in listed if not (ROOT / folder).is_dir()] == []
    packages = {
        str(path.parent.relative_to(ROOT)) for top in ("app", "workers") for path in (ROOT / top).rglob("__init__.py")
    }
    assert packages - set(listed) == set()
    assert max(Counter(listed).values()) == 1


def test_every_wall_is_named_as_its_contract_is() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    names = {re.sub(r"^\w+: ", "<slice>: ", contract["name"]) for contract in contracts}  # one for each slice
    walls = re.findall(r"^- (.*)$", ARCHITECTURE.partition("## Walls")[2], flags=re.MULTILINE)
    assert sorted(walls) == sorted(names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_a_page_names_is_there(page: Path) -> None:
    assert [path for path in NAMED_PATH.findall(page.read_text()) if not (ROOT / path).exists()] == []


def test_the_glossary_has_each_word_once() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", (DOCS / "glossary.md").read_text(), flags=re.MULTILINE)
    words = Counter(word for row in rows if row not in {"word", "---"} for word in row.split(", "))
    assert len(words) > 60
    assert [word for word, times in words.items() if times > 1] == []
