"""Square matrices that lie the other way round than the definition's own weights: their shapes do not tell."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from app.bindings.embedded import EmbeddedWeights, ValuesOfEmbedded
from app.bindings.fits import TURN, then_turned
from app.bindings.proposed import is_square, named
from app.bindings.report import ParameterBinding
from app.bindings.rule_sets import literal, template
from app.weights.manifest import TensorEntry

MAX_SQUARES: Final = 8  # whose values are looked at: a checkpoint keeps its matrices alike


def turned_squares(
    embedded: EmbeddedWeights, bindings: Sequence[ParameterBinding], values: ValuesOfEmbedded
) -> Iterator[str]:
    """Yield a warning if square matrices are like the definition's own only the other way round.

    Some values of a few of them are compared. Those that are unlike either way after training tell nothing.
    """
    squares = [one for one in bindings if _is_open(one, embedded.entries, values.tensors)]
    told = ((one, values.is_transposed(one.parameter, one.tensors[0])) for one in squares[:MAX_SQUARES])
    turned = [(one, known[1]) for one, known in told if known is not None and known[0] != (TURN in one.transforms)]
    if turned:
        first, evidence = turned[0]
        rule = {
            "parameter": literal(first.parameter),
            "tensors": [template(name) for name in first.tensors],
            "transforms": [one.to_json() for one in then_turned(first.transforms)],
        }
        yield (
            f"{named([one.parameter for one, _ in turned])} seems to be fed the wrong way round: {evidence}. It is "
            f"square, so its shape does not tell. Add the rule {json.dumps(rule)} and one like it for each other "
            "matrix that the checkpoint keeps so; bindings/propose answers them all."
        )


def _is_open(one: ParameterBinding, first: Mapping[str, TensorEntry], tensors: Mapping[str, TensorEntry]) -> bool:
    """Whether a matrix is square, and is another one than at first."""
    if not is_square(one.shape) or len(one.tensors) != 1 or one.transforms not in {(), (TURN,)}:
        return False
    own, used = first.get(one.parameter), tensors[one.tensors[0]]
    return own is not None and (used.blake3 != own.blake3 or bool(one.transforms))
