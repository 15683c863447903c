from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import func, select

from app.bindings import service
from app.bindings.report import BindingReport, ParameterBinding
from app.bindings.service import Pair, UnsavedReport, load_report, record
from app.bindings.tables import Binding
from app.database import Database
from app.definitions.parameter import Parameter
from app.errors import Invalid

REPORT = BindingReport((ParameterBinding("w", "F32", (2,), ("w",)),), ignored=("step",))


def rows(content: str, dtype: str = "F32") -> list[Any]:
    return [["w", dtype, [2], content, "sha256:" + content, 0, 8]]


def pair(tensors: list[Any], dtype: str = "F32") -> Pair:
    unread: Any = SimpleNamespace(non_finite=None)
    return Pair(unread, unread, (Parameter("w", (2,), dtype),), tensors, ())


@pytest.fixture(autouse=True)
def _nothing_bound_yet() -> Iterator[None]:
    service._bound_before.cache_clear()
    yield
    service._bound_before.cache_clear()


def test_versions_that_differ_in_values_alone_share_their_report() -> None:
    assert pair(rows("one")).bind([]) is pair(rows("two")).bind([])


def test_tensors_of_another_dtype_parameters_and_rules_of_their_own_are_bound_anew() -> None:
    assert pair(rows("one")).bind([]).ok
    assert not pair(rows("one", "I8")).bind([]).ok
    assert not pair(rows("one"), "I8").bind([]).ok
    assert pair(rows("one")).bind([{"ignore": "none"}]).warnings


def test_a_rule_that_cannot_be_used_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(Invalid, match="Rule 0 cannot be used"):
            pair(rows("one")).bind([{"parameter": "(", "tensors": ["w"]}])


def test_a_report_of_very_many_tensors_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_KEPT_TENSORS", 0)
    assert pair(rows("one")).bind([]) == pair(rows("one")).bind([])
    assert service._bound_before.cache_info().currsize == 0


def test_a_report_is_one_row_however_often_it_is_recorded(database: Database) -> None:
    unsaved = UnsavedReport.of(REPORT)
    with database.transaction() as session:
        first = record(session, unsaved)
    with database.transaction() as session:
        assert record(session, unsaved) == first
        other = record(session, UnsavedReport.of(BindingReport(REPORT.bindings)))  # the same but for what it ignores
        assert other != first
        assert session.scalar(select(func.count()).select_from(Binding)) == 2
        assert BindingReport.from_json(load_report(session, first)) == REPORT


def test_a_report_that_a_twin_has_just_recorded_is_found(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both look before either inserts."""
    unsaved = UnsavedReport.of(REPORT)
    with database.transaction() as session:
        first = record(session, unsaved)
    with database.transaction() as session, monkeypatch.context() as patch:
        patch.setattr(session, "scalar", lambda _statement: None)
        assert record(session, unsaved) == first
