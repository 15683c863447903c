"""Break a running service in every way, again and again, and count what became of the jobs that it accepted.

python -m benchmarks.chaos                          1,000 kills, 50 freezes, 50 losses each of broker, database, store
python -m benchmarks.chaos --seconds 240            as many as fit into the time
python -m benchmarks.chaos --kills 20 --store 5     only these

The service is a scaled-out one: two APIs and three workers as processes, with a PostgreSQL, a Valkey and an S3 server
of their own. The exit status is 1 if a promise was broken.
"""

import argparse
import random
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from benchmarks.chaos import report
from benchmarks.chaos.audit import Audit
from benchmarks.chaos.campaign import Campaign, Limit, run
from benchmarks.chaos.faults import FAULTS
from benchmarks.chaos.fleet import APIS, SETTINGS, WORKERS, fleet
from benchmarks.chaos.load import CLIENTS, Load

RESULTS = Path(__file__).parents[1] / "results" / "chaos.json"
WHOLE = {"kills": 1000, "freezes": 50, "broker": 50, "database": 50, "store": 50}
SHARES = {"kills": 0.28, "freezes": 0.24, "broker": 0.16, "database": 0.16, "store": 0.16}
START_S = 25.0  # of a limited time, what the start of the service takes
SETTLE_S = 7.0  # and the end of each campaign
console = Console(highlight=False, width=150)


def main() -> int:
    """Run the campaigns; return the exit status."""
    given = _arguments()
    signal.signal(signal.SIGTERM, _interrupt)  # so that an ended run stops what it has started
    campaigns = [Campaign(kind) for kind in _limits(given)]
    folder = Path(tempfile.mkdtemp(prefix="es-chaos-"))
    about = {"seed": given.seed, "apis": APIS, "workers": WORKERS, "clients": CLIENTS, "settings": SETTINGS}

    def told() -> None:
        if given.json:
            report.write(given.json, campaigns, about | {"processes_that_ended_by_themselves": service.deaths()})

    try:
        with fleet(folder) as service:
            load = Load(service.urls, folder, given.seed)
            audit = Audit(service.settings)
            load.start()
            for campaign, limit in zip(campaigns, _limits(given).values(), strict=True):
                chance = random.Random(f"{given.seed} {campaign.kind}")  # noqa: S311 - nothing secret
                run(campaign, limit, service, load, audit, chance, told)
                console.print(report.table([campaign]))
            load.stop()
            deaths = service.deaths()
    finally:
        if given.logs:
            shutil.copytree(folder / "logs", given.logs, dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    console.print(report.table(campaigns))
    console.print(report.cases(campaigns), markup=False)
    console.print(f"seed {given.seed}; processes that ended by themselves: {deaths}")
    return 0 if all(campaign.is_clean for campaign in campaigns) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="break things for about so long")
    for kind in WHOLE:
        parser.add_argument(f"--{kind}", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="orders the faults")
    parser.add_argument("--json", type=Path, help=f"where the figures are kept; of a whole run: {RESULTS}")
    parser.add_argument("--logs", type=Path, help="a folder for the logs of all programs")
    given = parser.parse_args()
    if given.seconds is None and not any(getattr(given, kind) for kind in WHOLE):
        given.json = given.json or RESULTS
    return given


def _limits(given: argparse.Namespace) -> dict[str, Limit]:
    """Return how long the campaign of each kind lasts."""
    named = {kind: getattr(given, kind) for kind in FAULTS if getattr(given, kind)}
    if given.seconds is None:
        return {kind: Limit(faults=count) for kind, count in (named or WHOLE).items()}
    left = max(0.0, given.seconds - START_S - SETTLE_S * len(FAULTS))
    return {kind: Limit(seconds=share * left) for kind, share in SHARES.items()}


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
