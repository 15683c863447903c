"""Definitions computed as they stand, which engines are compared with.

The reference is the definition with none of its operators fused or folded, in an onnxruntime session that takes the
weights as inputs. So it shares with an onnxruntime engine neither the optimised graph, nor the kernels' packed
weights, nor the way the weights got there: had it any of these in common, a fault there would show up on both sides
and the comparison would prove nothing. As weights are its inputs, one session serves every weight version of a
definition, and a refit is verified at the price of a run.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cachetools import LRUCache
from onnx import ModelProto

from workers.channel.messages import EngineFile
from workers.engine_host import onnx_graph
from workers.engine_host.backends.base import Arrays
from workers.engine_host.cost import Costs
from workers.engine_host.stored_bytes import FileIdentity
from workers.engine_host.tensors import Array, MappedFiles, ParameterFiles

KEPT_REFERENCES = 8  # sessions without weights, a few hundred kilobytes each
KEPT_SHOWING = 2  # of one definition: what is measured with, and what is compared
KEPT_ANSWERS = 1000


@dataclass(frozen=True, slots=True)
class _Session:
    """A definition's session and parameters. `found` keeps what was found out about it with any weights."""

    session: Any
    parameters: Mapping[str, Any]
    tables: frozenset[str]
    found: dict[Hashable, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Traits:
    """Whether a graph quantises what it computes, not only its weights, and which outputs are behind a softmax."""

    quantises: bool
    probabilities: frozenset[str]


@dataclass(frozen=True, slots=True)
class Reference:
    """A definition with weights. `tables` are those of which only rows that inputs name are used.

    `found` is shared by all weight versions of the definition. `costs` says what is too much to run, and `engine` what
    it is a reference of. It gives the values `inner` of the graph as well as the outputs.
    """

    weights: Mapping[str, Array]
    tables: frozenset[str]
    found: dict[Hashable, Any]
    engine: EngineFile
    costs: Costs
    _session: Any
    inner: tuple[str, ...] = ()

    def run(self, inputs: Arrays, others: Arrays | None = None) -> dict[str, Array]:
        """Return the outputs; `others` are values for some of the parameters. BackendError where it cannot be run."""
        self.costs.check_run(self.engine, inputs)
        from workers.engine_host import onnxruntime_session as ort_session  # noqa: PLC0415 - only a verification needs the runtime

        return ort_session.run_session(self._session, {**inputs, **self.weights, **(others or {})})

    def showing(self, inner: tuple[str, ...]) -> "Reference":
        """Return a reference that gives these values of the graph as outputs as well; raises BackendError.

        The last few sessions are kept, for other weights.
        """
        sessions = self.found.setdefault("showing", LRUCache(KEPT_SHOWING))
        if inner not in sessions:
            definition = onnx_graph.parse(Path(self.engine.definition).read_bytes())
            sessions[inner] = _session_of(definition, inner)
        return replace(self, _session=sessions[inner], inner=inner)


class References:
    """Opens references; keeps the sessions of the last few definitions, which hold no weights.

    A definition is read again only if its file is another one: reading and digesting it took as long as running a
    small model.
    """

    def __init__(self, files: ParameterFiles, costs: Costs) -> None:
        self._files = files
        self._costs = costs
        self._sessions: LRUCache[FileIdentity, _Session] = LRUCache(KEPT_REFERENCES)
        self._traits: LRUCache[FileIdentity, Traits] = LRUCache(KEPT_ANSWERS)

    def open(self, engine: EngineFile) -> Reference:
        """Return the engine's definition with the engine's parameters; raises BackendError if no runtime takes it."""
        one = self._session(engine.definition)
        values = self._files.locate(engine.parameters)
        onnx_graph.check_values(one.parameters, values)
        mapped = MappedFiles()
        weights = {name: mapped.view(values[name]) for name in one.parameters}
        return Reference(weights, one.tables & weights.keys(), one.found, engine, self._costs, one.session)

    def traits(self, definition: str) -> "Traits":
        """Return what the graph at this path tells of how its outputs can be compared."""
        key = FileIdentity.of(definition)
        if key not in self._traits:
            graph = onnx_graph.parse(Path(definition).read_bytes()).graph
            self._traits[key] = Traits(onnx_graph.quantises(graph), onnx_graph.softmaxes(graph))
        return self._traits[key]

    def _session(self, definition: str) -> _Session:
        key = FileIdentity.of(definition)
        if key not in self._sessions:
            self._sessions[key] = _open(Path(definition).read_bytes())
        return self._sessions[key]


def _open(definition: bytes) -> _Session:
    model = onnx_graph.parse(definition)
    return _Session(_session_of(model), onnx_graph.parameters_of(model), onnx_graph.tables(model.graph))


def _session_of(definition: ModelProto, inner: Sequence[str] = ()) -> Any:  # noqa: ANN401 - onnxruntime is untyped
    from workers.engine_host import onnxruntime_session as ort_session  # noqa: PLC0415 - only a verification needs the runtime

    model = onnx_graph.with_parameters_as_inputs(definition)
    onnx_graph.show(model, inner)
    try:
        return ort_session.open_session(onnx_graph.serialize(model), ort_session.reference_options())
    except ort_session.ORT_ERRORS as error:
        raise ort_session.explained(error, "reference_failed") from error
