from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from benchmarks.chaos.campaign import Campaign, Limit


def test_a_number_of_faults_is_a_limit() -> None:
    assert list(Limit(faults=3).rounds()) == [0, 1, 2]


def test_seconds_are_a_limit_but_one_fault_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Iterator[float] = iter(range(100))
    monkeypatch.setattr("benchmarks.chaos.campaign.time.monotonic", lambda: next(clock))
    assert list(Limit(seconds=0).rounds()) == [0]
    assert list(Limit(seconds=3).rounds()) == [0, 1, 2, 3]
    assert list(islice(Limit().rounds(), 5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("what", ["lost", "doubled", "dangling", "wrong", "failed"])
def test_any_finding_breaks_a_promise(what: str) -> None:
    one = Campaign("kills")
    assert one.is_clean
    getattr(one.findings, what).append("a case")
    assert not one.is_clean


@pytest.mark.parametrize("given", [{"stuck": 1}, {"refused": ["POST: 422"]}])
def test_so_does_a_service_that_is_stuck_or_refuses(given: dict[str, Any]) -> None:
    assert not Campaign("kills", **given).is_clean
