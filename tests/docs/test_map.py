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


DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))


@pytest.mark.parametrize("record", DECISIONS, ids=lambda record: record.stem[:4])
def test_a_decision_says_when_it_was_made_whether_it_holds_what_it_governs_and_why(record: Path) -> None:
    text = record.read_text()
    head = re.match(
        r"# (\d{4})\. (.+)\n\n- Date: \d{4}-\d\d-\d\d\n"
        r"- Status: (accepted|superseded by \[\d{4}\]\(\S+\))\n- Governs: (.+)\n",
        text,
    )
    assert head is not None
    number, title, status, governs = head.groups()
    assert record.name.startswith(f"{number}-")
    assert [path for path in re.findall(r"`([^`]+)`", governs) if not (ROOT / path).exists()] == []
    assert text.index("\n## Decision\n") < text.index("\n## Why\n")
    index = (DOCS / "decisions/README.md").read_text().splitlines()
    (row,) = [line for line in index if line.startswith(f"| [{number}]({record.name}) |")]
    assert [cell.strip() for cell in row.strip("|").split("|")][2:] == [title, status]


def test_decisions_are_numbered_without_a_gap_and_superseded_by_a_later_one() -> None:
    assert [int(record.name[:4]) for record in DECISIONS] == [*range(1, len(DECISIONS) + 1)]
    for record in DECISIONS:
        for later in re.findall(r"superseded by \[(\d{4})\]", record.read_text()):
            assert int(later) > int(record.name[:4])
