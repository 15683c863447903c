"""Every kind of job a worker does, by the name its row carries."""

from typing import Any

from workers.jobs.benchmark import BENCHMARK
from workers.jobs.build import BUILD
from workers.jobs.kind import Kind
from workers.jobs.materialise import MATERIALISE
from workers.jobs.refit import REFIT
from workers.jobs.run import RUN
from workers.jobs.verify import VERIFY

KINDS: dict[str, Kind[Any, Any]] = {
    "build": BUILD,
    "refit": REFIT,
    "materialise": MATERIALISE,
    "run": RUN,
    "verify": VERIFY,
    "benchmark": BENCHMARK,
}
