"""Every backend keeps its promises: each that this installation knows, on each device it works on, and two toys."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from app.backends import backend_entry, backend_names
from tests.adding.toy_backend import Abacus, Slate
from workers.channel.messages import BackendError
from workers.engine_host.conformance import (
    BUILDING,
    HELD_PLANS,
    PREFLIGHT,
    PROMISES,
    REFITTING,
    REFITTING_BESIDE,
    REFITTING_IN_PLACE,
    RUNNING,
    WEIGHTLESS_PLANS,
    Check,
    Harness,
    promises_of,
)
from workers.engine_host.device import describe_device
from workers.engine_host.tensors import ParameterFiles

IN_PLACE = (*BUILDING, *PREFLIGHT, *RUNNING, *REFITTING, *REFITTING_IN_PLACE, *HELD_PLANS)
BESIDE = (*BUILDING, *PREFLIGHT, *RUNNING, *REFITTING, *REFITTING_BESIDE, *WEIGHTLESS_PLANS)
TOYS: dict[str, type[Abacus]] = {"abacus": Abacus, "slate": Slate}


@dataclass(frozen=True)
class Candidate:
    """A backend on a kind of device, and the checks that concern it there; `settings` are fields of the harness."""

    name: str
    kind: str
    promises: tuple[Check, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def harness(self, folder: Path) -> Harness:
        if self.name in TOYS:
            toy = TOYS[self.name]
            return Harness(self.name, toy(ParameterFiles(folder / "made")), folder, preflight=toy.preflight)
        device = "cuda:0" if self.kind == "cuda" else self.kind
        if not _is_there(device):
            pytest.skip("no NVIDIA GPU")
        try:
            return Harness.open(self.name, device, folder, **self.settings)
        except BackendError as error:
            pytest.skip(f"it does not open here: {error}")


LEAST_SEARCH = {"options": {"optimization_level": 0}}
CANDIDATES = (
    Candidate("onnxruntime", "cpu", BESIDE),
    Candidate("tensorrt", "cuda", IN_PLACE, LEAST_SEARCH),
    Candidate("tensorrt_rtx", "cpu", (*BUILDING, *PREFLIGHT)),
    Candidate("tensorrt_rtx", "cuda", IN_PLACE, LEAST_SEARCH),
    Candidate("abacus", "cpu", IN_PLACE),
    Candidate("slate", "cpu", BESIDE),
)


def param(candidate: Candidate, *check: Check) -> Any:  # noqa: ANN401 - pytest names no type for it
    marks = [pytest.mark.gpu] if candidate.kind == "cuda" else []
    names = [one.__name__.removeprefix("check_") for one in check]
    return pytest.param(candidate, *check, id="-".join([candidate.name, candidate.kind, *names]), marks=marks)


@pytest.mark.parametrize(("candidate", "check"), [param(one, check) for one in CANDIDATES for check in one.promises])
def test_it_keeps_the_promise(candidate: Candidate, check: Check, tmp_path: Path) -> None:
    check(candidate.harness(tmp_path))


@pytest.mark.parametrize("candidate", [param(one) for one in CANDIDATES])
def test_it_is_checked_for_all_that_it_offers(candidate: Candidate, tmp_path: Path) -> None:
    assert promises_of(candidate.harness(tmp_path)) == candidate.promises


def test_every_backend_is_a_candidate_on_each_of_its_devices() -> None:
    known = {(name, kind) for name in backend_names() for kind in backend_entry(name).devices}
    assert {(one.name, one.kind) for one in CANDIDATES if one.name not in TOYS} == known


def test_every_promise_concerns_a_toy() -> None:
    assert {*IN_PLACE, *BESIDE} == set(PROMISES)


@cache
def _is_there(device: str) -> bool:
    try:
        describe_device(device)
    except BackendError:
        return False
    return True
