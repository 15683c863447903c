"""Every backend keeps its promises: each that this installation knows, on each device it works on, and two toys."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from app.backends import backend_entry, backend_names
from tests.workers.engine_host.backends.abacus.backend import Abacus, Slate
from workers.channel.messages import BackendError
from workers.engine_host.backends.base import Backend
from workers.engine_host.conformance import PROMISES, Check, Harness, promises_of
from workers.engine_host.device import describe_device
from workers.engine_host.tensors import ParameterFiles


@dataclass(frozen=True)
class Candidate:
    """A backend and the kind of device it is opened on; `settings` are fields of the harness."""

    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)

    def open(self, folder: Path) -> Harness:
        device = "cuda:0" if self.kind == "cuda" else self.kind
        if not _is_there(device):
            pytest.skip("no NVIDIA GPU")
        try:
            return Harness.open(self.name, device, folder, **self.settings)
        except BackendError as error:
            pytest.skip(f"not here: {error}")


LEAST_SEARCH = {"options": {"optimization_level": 0}}
CANDIDATES = (
    Candidate("onnxruntime", "cpu"),
    Candidate("tensorrt", "cuda", LEAST_SEARCH),
    Candidate("tensorrt_rtx", "cpu"),
    Candidate("tensorrt_rtx", "cuda", LEAST_SEARCH),
)
TOYS: tuple[Callable[[ParameterFiles], Backend], ...] = (Abacus, Slate)


def named(check: Check) -> str:
    return check.__name__.removeprefix("check_")


def candidates() -> list[Any]:
    marks = {"cuda": pytest.mark.gpu}
    return [
        pytest.param(one, id=f"{one.name}-{one.kind}", marks=[marks[one.kind]] if one.kind in marks else [])
        for one in CANDIDATES
    ]


def keeps(check: Check, harness: Harness) -> None:
    if check not in promises_of(harness):
        pytest.skip("it does not offer what this is about")
    check(harness)


@pytest.mark.parametrize("check", PROMISES, ids=named)
@pytest.mark.parametrize("candidate", candidates())
def test_it_keeps_the_promise(candidate: Candidate, check: Check, tmp_path: Path) -> None:
    keeps(check, candidate.open(tmp_path))


@pytest.mark.parametrize("check", PROMISES, ids=named)
@pytest.mark.parametrize("toy", TOYS)
def test_a_toy_keeps_the_promise(toy: Callable[[ParameterFiles], Backend], check: Check, tmp_path: Path) -> None:
    keeps(check, Harness("toy", toy(ParameterFiles(tmp_path / "made")), tmp_path))


def test_every_backend_is_a_candidate_on_each_of_its_devices() -> None:
    known = {(name, kind) for name in backend_names() for kind in backend_entry(name).devices}
    assert {(one.name, one.kind) for one in CANDIDATES} == known


def test_every_promise_concerns_a_toy(tmp_path: Path) -> None:
    concerned = {
        check for toy in TOYS for check in promises_of(Harness("toy", toy(ParameterFiles(tmp_path)), tmp_path))
    }
    assert concerned == set(PROMISES)


@cache
def _is_there(device: str) -> bool:
    try:
        describe_device(device)
    except BackendError:
        return False
    return True
