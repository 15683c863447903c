"""The kinds of jobs, by the name that a job's row and the API use."""

from typing import Literal

Kind = Literal["build", "refit", "materialise", "run", "verify", "benchmark", "compare"]
