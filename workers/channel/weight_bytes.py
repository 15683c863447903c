"""How large the weights of a request are."""

from collections.abc import Iterable

from workers.channel.messages import Build, Compare, MergeTimings, ParameterSource, Refit, Request


def weight_bytes(request: Request) -> int:
    """Return the stored bytes of the weights that a request works with."""
    match request:
        case MergeTimings():
            return 0
        case Build() | Refit():
            return stored_bytes(request.parameters)
        case Compare():
            return max((stored_bytes(engine.parameters) for engine in request.engines), default=0)
    return stored_bytes(request.engine.parameters)


def stored_bytes(parameters: Iterable[ParameterSource]) -> int:
    """Return the stored bytes of these parameters, which is about the memory that an engine with them keeps."""
    return sum(tensor.nbytes for parameter in parameters for tensor in parameter.tensors)
