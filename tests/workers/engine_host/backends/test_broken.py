"""The conformance checks catch what they are meant for: each broken toy by its own check, and by no other."""

from pathlib import Path

import pytest

from tests.adding.toy_backend import Abacus
from tests.workers.engine_host.backends.broken import BROKEN
from workers.channel.messages import BackendError
from workers.engine_host.conformance import PROMISES, BrokenPromise, Check, Harness, promises_of
from workers.engine_host.tensors import ParameterFiles


def test_there_is_a_toy_that_breaks_each_promise() -> None:
    assert BROKEN.keys() == set(PROMISES)


@pytest.mark.parametrize(("check", "toy"), BROKEN.items(), ids=[check.__name__ for check in BROKEN])
def test_a_broken_promise_is_caught_by_its_own_check_alone(check: Check, toy: type[Abacus], tmp_path: Path) -> None:
    concerned = promises_of(harness(toy, tmp_path))
    assert [one.__name__ for one in concerned if breaks(toy, one, tmp_path)] == [check.__name__]


def breaks(toy: type[Abacus], check: Check, folder: Path) -> bool:
    try:
        check(harness(toy, folder))
    except (BrokenPromise, BackendError):
        return True
    return False


def harness(toy: type[Abacus], folder: Path) -> Harness:
    return Harness("toy", toy(ParameterFiles(folder / "made")), folder, preflight=toy.preflight)
