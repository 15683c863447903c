"""The table of releases in docs/backends.md is the one of the bindings."""

import json
from pathlib import Path

import pytest

from docs.pages import backends
from docs.pages.backends import PAGE, TABLE, page


def test_the_table_is_what_the_bindings_say() -> None:
    assert PAGE.read_text() == page(), "run `make docs`"


def test_a_release_that_gains_something_changes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = json.loads(TABLE.read_text())
    table["releases"][0]["capabilities"]["strip_plan"] = True
    changed = tmp_path / "table.json"
    changed.write_text(json.dumps(table))
    monkeypatch.setattr(backends, "TABLE", changed)
    assert page() != PAGE.read_text()
