import pytest

from app.jobs.state import FINAL, HELD, TRANSITIONS, State, before


def test_a_finished_job_never_moves_again() -> None:
    assert {State.SUCCEEDED, State.FAILED, State.CANCELED} == FINAL
    assert not any(final in before(state) for final in FINAL for state in State)


def test_every_state_says_what_follows_it() -> None:
    assert set(TRANSITIONS) == set(State)


def test_every_state_but_the_final_ones_leads_to_an_end() -> None:
    reached = set(FINAL)
    for _ in State:
        reached |= {state for state, following in TRANSITIONS.items() if following & reached}
    assert reached == set(State)


def test_a_job_whose_cancel_was_asked_can_only_end_canceled() -> None:
    assert TRANSITIONS[State.CANCELING] == {State.CANCELED}


def test_only_a_queued_job_can_be_claimed() -> None:
    assert before(State.RUNNING) == (State.QUEUED,)


@pytest.mark.parametrize("state", sorted(HELD))
def test_a_held_job_can_be_taken_from_a_worker_that_is_gone(state: State) -> None:
    assert TRANSITIONS[state] & {State.QUEUED, State.CANCELED}
