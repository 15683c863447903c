"""What may not be imported where, looked at in a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"tensorrt", "tensorrt_rtx", "onnxruntime", "onnx", "onnx_ir", "cuda", "torch", "transformers", "workers"}


def imported_by(module: str, then: str = "pass") -> set[str]:
    """Return the top-level names in sys.modules after one import, and what is done `then`."""
    script = f"import sys, {module}; {then}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_api_imports_no_runtime_no_compiler_and_no_worker() -> None:
    found = imported_by("app.main")
    assert "fastapi" in found
    assert not found & HEAVY


def test_the_api_knows_the_backends_by_name_alone() -> None:
    assert not imported_by("app.backends", "app.backends.backend_names()") & HEAVY


def test_no_runtime_is_imported_to_tell_what_is_installed() -> None:
    found = imported_by(
        "app.processes.gpus", "app.processes.gpus.all_devices(); app.backends.installed_backends('cpu')"
    )
    assert "workers" in found  # where the entries of our own lie
    assert not found & ((HEAVY - {"workers"}) | {"numpy", "pydantic"})


def test_the_engine_host_imports_nothing_that_only_its_worker_needs() -> None:
    assert not imported_by("workers.engine_host.child") & {"asyncio", "structlog", "sqlalchemy", "celery", "redis"}


@pytest.mark.parametrize("module", ["app.cli", "app.serve.supervisor"])
def test_the_command_line_loads_nothing_a_command_does_not_need(module: str) -> None:
    assert not imported_by(module) & (HEAVY | {"fastapi", "sqlalchemy", "alembic", "celery", "numpy", "pydantic"})


def test_the_house_stands_as_the_import_contracts_say() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
