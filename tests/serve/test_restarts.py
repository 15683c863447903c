from app.serve.restarts import LAST_DELAY_S, MAX_QUICK_DEATHS, QUICK_S, Restarts


def test_each_quick_death_waits_longer_until_there_were_too_many() -> None:
    restarts = Restarts()
    delays = [restarts.after_death(0.0) for _ in range(MAX_QUICK_DEATHS)]
    waits = [delay for delay in delays if delay is not None]
    assert delays == [*waits, None]
    assert waits == sorted(set(waits))
    assert 0 < waits[0] < waits[-1] <= LAST_DELAY_S


def test_a_child_that_lived_for_a_while_starts_afresh() -> None:
    restarts = Restarts()
    first = restarts.after_death(0.0)
    for _ in range(2 * MAX_QUICK_DEATHS):
        assert restarts.after_death(QUICK_S + 1) == first
