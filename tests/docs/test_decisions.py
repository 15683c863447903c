"""Each decision says when it was made, whether it holds, what it governs and why."""

import re
from pathlib import Path

import pytest

from docs.pages.decisions import FOLDER, PAGE, Record, page, records

ROOT = Path(__file__).parents[2]
STATUS = re.compile(r"(accepted|superseded by)(?:;? ?[a-z ]*\[(\d{4})\]\((\S+)\))*")
RECORDS = records()


def test_the_index_is_what_the_records_say() -> None:
    assert PAGE.read_text() == page(), "run `make docs`"


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.number)
def test_a_record_governs_code_that_is_there_and_says_why(record: Record) -> None:
    assert record.file.startswith(f"{record.number}-")
    assert record.governs
    assert [path for path in record.governs if not (ROOT / path).exists()] == []
    text = (FOLDER / record.file).read_text()
    assert 0 < text.index("\n## Decision\n") < text.index("\n## Why\n")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.number)
def test_a_status_is_known_and_names_records_that_are_there(record: Record) -> None:
    assert STATUS.fullmatch(record.status)
    for number, file in re.findall(r"\[(\d{4})\]\((\S+)\)", record.status):
        assert number in {other.number for other in RECORDS if other.file == file}
    if record.status.startswith("superseded by"):
        assert record.status > f"superseded by [{record.number}]"  # by a later one


def test_records_are_numbered_without_a_gap() -> None:
    assert [int(record.number) for record in RECORDS] == [*range(1, len(RECORDS) + 1)]
