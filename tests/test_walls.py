"""Each wall of the house, broken on purpose: its contract says so."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLICES = ("artifacts", "bindings", "definitions", "engines", "fleet", "jobs", "registry", "sweeps", "weights")
# By contract: a file, and an import that it must not have.
BREAKS = {
    "workers import app, never back": ("app/errors.py", "import workers.identity"),
    "no circle between folders, nor between files of one folder": (
        "app/artifacts/digest.py",
        "import app.artifacts.store",
    ),
    "app never imports a runtime, a compiler or CUDA": ("app/errors.py", "import onnxruntime"),
    "what speaks HTTP for all slices knows none of them": ("app/http/fields.py", "import app.registry.tables"),
    "jobs know nothing of what they make": ("app/jobs/state.py", "import app.engines.against"),
    "within a slice imports run from router to service to tables": (
        "app/registry/tables.py",
        "import app.registry.service",
    ),
    "pure modules import neither the web framework, the database nor the queue": (
        "app/weights/dtypes.py",
        "import sqlalchemy",
    ),
    "the worker and its engine host meet in the channel only": (
        "workers/jobs/news.py",
        "import workers.engine_host.tensors",
    ),
    "the engine host knows nothing of the worker": ("workers/engine_host/tensors.py", "import workers.channel.host"),
    "the engine host has no logging framework, no database and no queue": (
        "workers/engine_host/tensors.py",
        "import structlog",
    ),
    "a backend is opened by the catalog, and imported by nothing else": (
        "workers/engine_host/engines.py",
        "import workers.engine_host.backends.tensorrt.packing",
    ),
    **{f"{one}: other slices use what is open": ("app/health.py", f"import app.{one}.router") for one in SLICES},
    "aliases: other slices use what is open": ("app/health.py", "import app.aliases.service"),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what is said of each contract by a house in which every wall is broken."""
    house = tmp_path_factory.mktemp("house")
    for folder in ("app", "workers"):
        shutil.copytree(ROOT / folder, house / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(ROOT / "pyproject.toml", house)
    for file, line in BREAKS.values():
        path = house / file
        path.write_text(f"{path.read_text()}\n{line}\n")
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=house, capture_output=True, text=True, check=False)
    lines = (line.rpartition(" ") for line in done.stdout.splitlines())
    return {name: verdict for name, _, verdict in lines if verdict in {"KEPT", "BROKEN"}}


def test_every_contract_is_broken_here() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {contract["name"] for contract in project["tool"]["importlinter"]["contracts"]} == BREAKS.keys()


@pytest.mark.parametrize("contract", BREAKS)
def test_a_broken_wall_is_seen(said: dict[str, str], contract: str) -> None:
    assert said[contract] == "BROKEN"
