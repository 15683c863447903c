"""One campaign: faults of one kind while clients post jobs, and what became of the jobs."""

import random
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.chaos.audit import Audit, Findings
from benchmarks.chaos.faults import FAULTS
from benchmarks.chaos.fleet import Fleet
from benchmarks.chaos.load import Load, Promise

RECOVERY_S = 60.0  # how long a success may take after a fault
PATIENCE_S = 90.0  # how long the last jobs of a campaign may take
STUCK = 3  # so many faults that nothing recovered from end a campaign
PAUSE_S = (0.2, 1.2)
LOOK_S = 0.1


@dataclass(slots=True)
class Campaign:
    """One kind of fault: what was broken, and what became of it.

    `next_success_s` are the seconds from the end of each fault to the next job that succeeded, `in_flight_s` those to
    the end of the last job that was under way. `stuck` counts the faults after which nothing succeeded for a minute.
    """

    kind: str
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    next_success_s: list[float] = field(default_factory=list)
    in_flight_s: list[float] = field(default_factory=list)
    stuck: int = 0
    jobs: int = 0
    findings: Findings = field(default_factory=Findings)
    refused: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not (self.stuck or self.refused or any(self.findings.broken().values()))


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a campaign lasts: a number of faults, or seconds."""

    faults: int | None = None
    seconds: float | None = None

    def rounds(self) -> Iterator[int]:
        """Yield one number for each fault that there is to be; there is one at least."""
        began = time.monotonic()
        number = 0
        while self.faults is None or number < self.faults:
            if self.seconds is not None and number and time.monotonic() - began > self.seconds:
                return
            yield number
            number += 1


def run(
    campaign: Campaign,
    limit: Limit,
    fleet: Fleet,
    load: Load,
    audit: Audit,
    chance: random.Random,
    told: Callable[[], None],
) -> None:
    """Break things until the limit is reached, let all jobs end, and look what became of them.

    `told` is called after each fault, when the campaign has new figures.
    """
    began = time.monotonic()
    first, refused = len(load.promises), len(load.refused)
    met: list[tuple[float, list[Promise]]] = []
    load.resume()
    for _ in limit.rounds():
        campaign.faults[FAULTS[campaign.kind](fleet, load, chance)] += 1
        over = time.time()
        met.append((over, load.open_jobs()))
        if not _succeeds(load, over):
            campaign.stuck += 1
        _measure(campaign, load, met, first)
        campaign.seconds = time.monotonic() - began
        told()
        if campaign.stuck == STUCK:
            break
        time.sleep(chance.uniform(*PAUSE_S))
    load.pause(PATIENCE_S)
    campaign.findings = audit.look(load.promises[first:], fleet.host_kills)
    campaign.refused = load.refused[refused:]
    _measure(campaign, load, met, first)
    campaign.seconds = time.monotonic() - began
    told()
    if load.open_jobs():
        load.abandon()
        fleet.heal()


def _succeeds(load: Load, moment: float) -> bool:
    deadline = time.monotonic() + RECOVERY_S
    while not load.success_since(moment):
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True


def _measure(campaign: Campaign, load: Load, met: list[tuple[float, list[Promise]]], first: int) -> None:
    promises = load.promises[first:]
    campaign.jobs = len(promises)
    successes = sorted(one.ended for one in promises if one.ended is not None and one.succeeded)
    nexts = [(over, bisect_left(successes, over)) for over, _ in met]
    campaign.next_success_s = [successes[place] - over for over, place in nexts if place < len(successes)]
    ends = [(over, [one.ended for one in jobs]) for over, jobs in met]
    campaign.in_flight_s = [
        max(0.0, max(whole) - over) for over, ended in ends if (whole := [one for one in ended if one is not None])
    ]
