"""Has a child parse what clients upload for definitions, and turns every way it can end into an answer for the client.

A crash, or more processor time or memory than a child may take, is blamed on the client's input and answered with 422.
The answer is 503 if no child can be started ("parser_unavailable"), or if a child is lost ("parsing_stalled",
"parser_killed").
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from app.children.failures import AnswerTooLong, ChildFailed, Crashed
from app.children.fork_server import read_written
from app.children.house import House
from app.children.limits import ChildLimits
from app.database import JsonText
from app.definitions.limits import child_limits
from app.errors import FieldError, Invalid


@dataclass(frozen=True, slots=True)
class MadeDefinition:
    """A definition as the child made it. The files are removed when the block of `construct_*` ends.

    `weights` is None if the graph holds none. `external` has the rows of those that lie in external data files, see
    `ExternalRange`; it is None if there are none. `constants` is what `constants.to_json` returned. `rules` are
    binding rules that apply after the client's. `parameters` are the rows of `Parameter.to_json`.
    """

    graph: Path
    weights: Path | None
    source: dict[str, Any]
    inputs: list[Any]
    outputs: list[Any]
    parameter_count: int
    parameters: JsonText
    rules: list[Any]
    constants: dict[str, Any]
    external: Path | None


@dataclass(frozen=True, slots=True)
class Matched:
    """The weights of another export under the names of a definition's parameters.

    `weights` is a safetensors file, or None if all of them lie in external data files, as `external` says.
    """

    weights: Path | None
    external: Path | None


@contextmanager
def construct_from_file(
    house: House, path: Path, external_data: Mapping[str, Path] = MappingProxyType({}), opset: int | None = None
) -> Iterator[MadeDefinition]:
    """Parse an ONNX file, convert it if an opset is given, and yield the definition.

    `external_data` are the files that its data lie in, by location. Raises Invalid or Unavailable.
    """
    task = {"file": str(path.resolve()), "external_data": _resolved(external_data), "opset": opset}
    with _construct(house, task, child_limits(path.stat().st_size)) as made:
        yield made


@contextmanager
def construct_from_config(
    house: House, family: str, config: Mapping[str, Any], precision: str
) -> Iterator[MadeDefinition]:
    """Build a family's graph, and yield the definition; raises Invalid or Unavailable."""
    task = {"family": family, "config": config, "precision": precision}
    with _construct(house, task, child_limits(0)) as made:
        yield made


@contextmanager
def match_export(
    house: House, path: Path, definition: Path, external_data: Mapping[str, Path] = MappingProxyType({})
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
    with house.folder("definition") as directory:
        weights = directory / "weights.safetensors"
        answer = _ask(house, "match", {**task, "weights": str(weights)}, limits, directory)
        yield Matched(weights if weights.exists() else None, _external(answer, directory))


@contextmanager
def _construct(house: House, task: Mapping[str, Any], limits: ChildLimits) -> Iterator[MadeDefinition]:
    with house.folder("definition") as directory:
        graph, weights = directory / "definition.onnx", directory / "weights.safetensors"
        answer = _ask(house, "make", {**task, "graph": str(graph), "weights": str(weights)}, limits, directory)
        yield MadeDefinition(
            graph=graph,
            weights=weights if weights.exists() else None,
            source=answer["source"],
            inputs=answer["inputs"],
            outputs=answer["outputs"],
            parameter_count=answer["parameters_count"],
            parameters=JsonText(_read(directory / "parameters.json")),
            rules=answer["rules"],
            constants=answer["constants"],
            external=_external(answer, directory),
        )


def _resolved(files: Mapping[str, Path]) -> dict[str, str]:
    return {location: str(file.resolve()) for location, file in files.items()}


def _external(answer: Mapping[str, Any], directory: Path) -> Path | None:
    return directory / "external.json" if answer["external_count"] else None


def _ask(
    house: House, function: str, task: Mapping[str, Any], limits: ChildLimits, directory: Path
) -> Mapping[str, Any]:
    try:
        answer = house.child(f"app.definitions.child:{function}", task, limits, directory)
    except ChildFailed as failure:
        raise _blamed(failure) from failure
    if "made" in answer:
        return answer["made"]  # type: ignore[no-any-return]
    rejected = answer["rejected"]
    errors = [FieldError(error["pointer"], error["detail"]) for error in rejected["errors"]]
    raise Invalid(rejected["detail"], code=rejected["code"], errors=errors)


def _read(path: Path) -> str:
    try:
        return read_written(path)
    except AnswerTooLong as failure:
        raise _blamed(failure) from failure


def _blamed(failure: ChildFailed) -> Invalid:
    if isinstance(failure, AnswerTooLong):
        return Invalid(
            f"The description of this definition's tensors is longer than {failure.most} bytes. Give the tensors "
            "shorter names, or split the model up.",
            code="too_large_graph",
        )
    if isinstance(failure, Crashed):
        return Invalid(
            f"The parser did not survive this definition (exit status {failure.status}). Check the file with "
            "onnx.checker.check_model and onnxruntime, and export it again.",
            code="parser_crashed",
        )
    return Invalid(
        "Parsing takes more processor time than a file of its size may. Simplify the model and export it again.",
        code="parsing_timeout",
    )
