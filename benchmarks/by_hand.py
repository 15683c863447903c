"""Runs `tensorrt_raw`, which does the same work by hand, in processes of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
ENVIRONMENT = {"CUDA_MODULE_LOADING": "LAZY"}  # as an engine host has it


def build(onnx_file: Path) -> Figures:
    """Compile a graph."""
    command = _command("build", onnx_file, onnx_file.with_suffix(".raw-plan"))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=ENVIRONMENT | os.environ)
    return _figures(done.stdout)


@contextmanager
def refitting(
    plan: Path, *checkpoints: Path, environment: Mapping[str, str] = ENVIRONMENT
) -> Iterator[Callable[[str], Figures]]:
    """Keep a process that refits a plan, and give a function that has it do one thing.

    The function takes the thing to do, such as "all", and returns the figures. With the `environment` of an engine
    host, the process has all that makes the device faster there.
    """
    command, pipe = _command("refit", plan, *checkpoints), subprocess.PIPE
    environ = {**os.environ, **environment}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environ) as process:
        stdin, stdout = process.stdin, process.stdout
        if stdin is None or stdout is None:
            raise TypeError("there are no pipes")

        def ask(what: str) -> Figures:
            print(what, file=stdin, flush=True)
            return _figures(stdout.readline())

        yield ask
        stdin.close()


def _command(what: str, *paths: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.tensorrt_raw", what, *map(str, paths)]


def _figures(output: str) -> Figures:
    if not output:
        raise SystemExit("what was to be done by hand failed; see above")
    figures: Figures = json.loads(output.splitlines()[-1])
    return figures
