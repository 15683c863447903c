"""The environment that every Python process of this service is started with."""

import os
from collections.abc import Mapping

ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",  # set before its import: else onnxruntime's builds report to their makers
    "PYTHONSAFEPATH": "1",  # a folder `app` in the current directory must not hide this package
    "PYTHONUNBUFFERED": "1",
}


def python_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return an environment, this process's if none is given, with the variables above."""
    return {**environment, **ENVIRONMENT}
