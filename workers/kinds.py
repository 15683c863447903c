"""Every kind of job a worker does, by the name its row carries."""

from typing import Any

from workers.benchmark import BENCHMARK
from workers.build import BUILD
from workers.kind import Kind
from workers.materialise import MATERIALISE
from workers.refit import REFIT
from workers.run import RUN
from workers.verify import VERIFY

KINDS: dict[str, Kind[Any, Any]] = {
    "build": BUILD,
    "refit": REFIT,
    "materialise": MATERIALISE,
    "run": RUN,
    "verify": VERIFY,
    "benchmark": BENCHMARK,
}
