"""What every Python process of this service is started with."""

import os

ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime's own builds report to its makers unless this is set before its import
    "PYTHONSAFEPATH": "1",  # a folder named `app` where the user happens to stand is not ours
    "PYTHONUNBUFFERED": "1",
}


def python_environment() -> dict[str, str]:
    """Return this process's environment with what ours need."""
    return {**os.environ, **ENVIRONMENT}
