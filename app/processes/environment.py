"""The environment that every Python process of this service is started with."""

import os

ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",  # set before its import: else onnxruntime's builds report to their makers
    "PYTHONSAFEPATH": "1",  # a folder `app` in the current directory must not hide this package
    "PYTHONUNBUFFERED": "1",
}


def python_environment() -> dict[str, str]:
    """Return this process's environment with the variables above."""
    return {**os.environ, **ENVIRONMENT}
