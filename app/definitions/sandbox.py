"""Runs the child that parses what clients upload, and turns every way it can end into an answer for the client.

The child has limits on memory, time, open files and file sizes (`limits.child_limits`). Of this process's environment
it gets only PYTHONPATH and LD_LIBRARY_PATH. It ends when this process ends. A crash, a timeout or a lack of memory is
blamed on the client's input and answered with 422. The answer is 503 if the child cannot be started
("parser_unavailable"), or if CHILDREN others run and none ends within SLOT_TIMEOUT_S ("busy").
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import BoundedSemaphore
from types import MappingProxyType
from typing import Any, Final

import structlog

import app
from app.definitions.limits import ChildLimits, child_limits
from app.definitions.parameter import ExternalRange, InputSpec, OutputSpec, Parameter
from app.errors import FieldError, Invalid, Unavailable
from app.scratch import scratch_folder

CHILDREN: Final = 2  # at a time, per process
SLOT_TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 128 * 1024 * 1024

log = structlog.get_logger()
_slots = BoundedSemaphore(CHILDREN)


@dataclass(frozen=True, slots=True)
class MadeDefinition:
    """A definition as the child made it. The files are removed when the block of `construct_*` ends.

    `weights` is None if the graph holds none, and `external` are those that lie in external data files. `constants` is
    what `constants.to_json` returned. `rules` are binding rules that apply after the client's.
    """

    graph: Path
    weights: Path | None
    source: dict[str, Any]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    parameters: tuple[Parameter, ...]
    rules: list[Any]
    constants: dict[str, Any]
    external: tuple[ExternalRange, ...]


@dataclass(frozen=True, slots=True)
class Matched:
    """The weights of another export under the names of a definition's parameters.

    `weights` is a safetensors file, or None if all of them lie in external data files, as `external` says.
    """

    weights: Path | None
    external: tuple[ExternalRange, ...]


@contextmanager
def construct_from_file(
    path: Path, scratch: Path, external_data: Mapping[str, Path] = MappingProxyType({}), opset: int | None = None
) -> Iterator[MadeDefinition]:
    """Parse an ONNX file, convert it if an opset is given, and yield the definition.

    `external_data` are the files that its data lie in, by location. Raises Invalid or Unavailable.
    """
    task = {"file": str(path.resolve()), "external_data": _resolved(external_data), "opset": opset}
    with _construct(task, child_limits(path.stat().st_size), scratch) as made:
        yield made


@contextmanager
def construct_from_config(
    family: str, config: Mapping[str, Any], precision: str, scratch: Path
) -> Iterator[MadeDefinition]:
    """Build a family's graph, and yield the definition; raises Invalid or Unavailable."""
    task = {"family": family, "config": config, "precision": precision}
    with _construct(task, child_limits(0), scratch) as made:
        yield made


@contextmanager
def match_export(
    path: Path, definition: Path, scratch: Path, external_data: Mapping[str, Path] = MappingProxyType({})
) -> Iterator[Matched]:
    """Match the weights of an ONNX file to the parameters of a definition's graph, and yield what matched.

    The files are removed when the block ends. Raises Invalid or Unavailable.
    """
    task = {
        "file": str(path.resolve()),
        "definition": str(definition.resolve()),
        "external_data": _resolved(external_data),
    }
    limits = child_limits(path.stat().st_size + definition.stat().st_size)
    with scratch_folder(scratch, "definition") as folder:
        directory = folder.resolve()
        weights = directory / "weights.safetensors"
        answer = _ask({**task, "weights": str(weights)}, limits, directory)
        external = tuple(ExternalRange.from_json(row) for row in answer["external"])
        yield Matched(weights if weights.exists() else None, external)


@contextmanager
def _construct(task: Mapping[str, Any], limits: ChildLimits, scratch: Path) -> Iterator[MadeDefinition]:
    with scratch_folder(scratch, "definition") as folder:
        directory = folder.resolve()
        graph, weights = directory / "definition.onnx", directory / "weights.safetensors"
        answer = _ask({**task, "graph": str(graph), "weights": str(weights)}, limits, directory)
        yield _made(answer, graph, weights)


def _resolved(files: Mapping[str, Path]) -> dict[str, str]:
    return {location: str(file.resolve()) for location, file in files.items()}


def _ask(task: Mapping[str, Any], limits: ChildLimits, directory: Path) -> Mapping[str, Any]:
    if not _slots.acquire(timeout=SLOT_TIMEOUT_S):
        raise Unavailable(
            f"{CHILDREN} definitions are being made already. Send the request again in a moment.", code="busy"
        )
    try:
        request = {"parent": os.getpid(), "limits": asdict(limits), "task": task}
        status = _run(json.dumps(request).encode(), limits.wall_s, directory)
    finally:
        _slots.release()
    return _read_answer(status, directory)


def _run(request: bytes, wall_s: float, directory: Path) -> int:
    """Run the child to its end and return its exit status; its output goes to the files "answer" and "log"."""
    command = [sys.executable, "-P", "-m", "app.definitions.child"]
    try:
        with (directory / "answer").open("wb") as answer, (directory / "log").open("wb") as errors:
            child = subprocess.Popen(  # noqa: S603 - a fixed command
                command, stdin=subprocess.PIPE, stdout=answer, stderr=errors, env=_environment(), cwd=directory
            )
    except OSError as error:
        raise Unavailable(
            f"The process that parses definitions could not be started: {error.strerror}. Try again later.",
            code="parser_unavailable",
        ) from error
    with child:
        try:
            child.communicate(request, timeout=wall_s)
        except subprocess.TimeoutExpired:
            child.kill()
        except BaseException:
            child.kill()
            raise
    return child.returncode


def _environment() -> dict[str, str]:
    """Return the child's environment: no secrets, the places of code, and a setting against thread pools."""
    root = str(Path(app.__path__[0]).parent)
    places = {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if os.environ.get(name)}
    return places | {
        "PATH": os.defpath,
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [places.get("PYTHONPATH")])]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _read_answer(status: int, directory: Path) -> Mapping[str, Any]:
    if status != 0:
        raise _died(status, directory)
    with (directory / "answer").open("rb") as file:
        data = file.read(MAX_ANSWER_BYTES + 1)
    if len(data) > MAX_ANSWER_BYTES:
        raise Invalid(
            f"The description of this definition's tensors is longer than {MAX_ANSWER_BYTES} bytes. Give the tensors "
            "shorter names, or split the model up.",
            code="too_large_graph",
        )
    answer: Mapping[str, Any] = json.loads(data)
    if "made" in answer:
        return answer["made"]  # type: ignore[no-any-return]
    rejected = answer["rejected"]
    errors = [FieldError(error["pointer"], error["detail"]) for error in rejected["errors"]]
    raise Invalid(rejected["detail"], code=rejected["code"], errors=errors)


def _died(status: int, directory: Path) -> Invalid:
    """Return the error of a child that gave no answer, and log what it printed.

    SIGKILL counts as a timeout: both time limits end in it. The kernel sends it too if the machine has no memory left,
    which looks the same here. The child's limit of memory makes that rare.
    """
    tail = (directory / "log").read_bytes()[-2000:].decode(errors="replace")
    log.warning("the parsing child died", status=status, log=tail)
    if status in {-signal.SIGXCPU, -signal.SIGKILL}:
        return Invalid(
            "Parsing takes longer than a file of its size may. Simplify the model and export it again.",
            code="parsing_timeout",
        )
    return Invalid(
        f"The parser did not survive this definition (exit status {status}). Check the file with "
        "onnx.checker.check_model and onnxruntime, and export it again.",
        code="parser_crashed",
    )


def _made(answer: Mapping[str, Any], graph: Path, weights: Path) -> MadeDefinition:
    return MadeDefinition(
        graph=graph,
        weights=weights if weights.exists() else None,
        source=answer["source"],
        inputs=tuple(InputSpec.from_json(item) for item in answer["inputs"]),
        outputs=tuple(OutputSpec.from_json(item) for item in answer["outputs"]),
        parameters=tuple(Parameter.from_json(row) for row in answer["parameters"]),
        rules=answer["rules"],
        constants=answer["constants"],
        external=tuple(ExternalRange.from_json(row) for row in answer["external"]),
    )
