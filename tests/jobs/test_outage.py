from datetime import datetime, timedelta

import pytest

from app.database import now
from app.jobs import outage
from app.jobs.outage import LEAST_TRIES, LONGEST_PAUSE_S, Outage, again_at, lasts_too_long, next_outage


def met(times: int, since: datetime) -> Outage:
    return Outage("store_unavailable", "The store does not answer.", since.isoformat(), times)


def test_an_outage_counts_on_and_remembers_the_first_time() -> None:
    first = next_outage(None, "store_unavailable", "no answer")
    second = next_outage(first.to_json(), "database_unavailable", "no answer either")
    assert (second.since, second.times, second.code) == (first.since, 2, "database_unavailable")


@pytest.mark.parametrize(("times", "longest_s"), [(1, 1.0), (2, 2.0), (4, 8.0), (7, 60.0), (10_000, LONGEST_PAUSE_S)])
def test_pauses_grow_to_a_limit_and_have_a_random_part(
    times: int, longest_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = now()
    monkeypatch.setattr(outage, "now", lambda: moment)
    pauses = [(again_at(met(times, moment)) - moment).total_seconds() for _ in range(50)]
    assert all(longest_s / 2 <= pause <= longest_s for pause in pauses)
    assert len(set(pauses)) > 1


@pytest.mark.parametrize(
    ("times", "lasted_s", "too_long"),
    [(LEAST_TRIES, 3601, True), (LEAST_TRIES, 3500, False), (LEAST_TRIES - 1, 10**6, False), (1000, 3500, False)],
)
def test_an_outage_lasts_too_long_once_it_was_met_often_and_for_long(
    times: int, lasted_s: float, *, too_long: bool
) -> None:
    assert lasts_too_long(met(times, now() - timedelta(seconds=lasted_s)), 3600.0) == too_long
