"""Says where two graphs begin to differ, seen from their outputs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from app.definitions.expression import Expression, Term
from app.definitions.rejection import Rejected
from app.errors import FieldError

MAX_DIFFERENCES: Final = 5
Pair = tuple[int, int]


def graph_differs(differences: Sequence[str]) -> Rejected:
    """Return the refusal of a file whose graph is another one than the definition's."""
    return Rejected(
        "graph_differs",
        f"The file is no other export of the definition's graph: {'; '.join(differences)}. A weight that an exporter "
        "transposed, folded or merged is another one, too. Register the file as a definition of its own with POST "
        "/v1/models/<model>/definitions, or upload its weights as a checkpoint and bind them by rules.",
        [FieldError("/onnx", one) for one in differences],
    )


@dataclass(frozen=True, slots=True)
class GraphDifferences:
    """Compares a definition's expression with that of a file, by the `colours` of both."""

    mine: Expression
    other: Expression
    my_colours: Sequence[bytes]
    other_colours: Sequence[bytes]

    def below(self, pairs: Sequence[Pair]) -> list[str]:
        """Return the first differences between terms that should be equal, and what these are computed of."""
        return list(islice(self._below(pairs), MAX_DIFFERENCES))

    def _below(self, pairs: Sequence[Pair]) -> Iterator[str]:
        pending, seen = list(reversed(pairs)), set[Pair]()
        while pending:
            pair = pending.pop()
            if pair in seen or self._are_equal(pair):
                continue
            seen.add(pair)
            mine, other = self.mine.terms[pair[0]], self.other.terms[pair[1]]
            if mine.key == other.key and len(mine.reads) == len(other.reads):
                pending.extend(reversed(self._read(mine, other)))
            else:
                yield _difference(mine, other)

    def _are_equal(self, pair: Pair) -> bool:
        return self.my_colours[pair[0]] == self.other_colours[pair[1]]

    def _read(self, mine: Term, other: Term) -> list[Pair]:
        straight = list(zip(mine.reads, other.reads, strict=True))
        if not mine.is_commutative:
            return straight
        swapped = list(zip(mine.reads, reversed(other.reads), strict=True))
        return swapped if any(self._are_equal(pair) for pair in swapped) else straight


def _difference(mine: Term, other: Term) -> str:
    if mine.key[0] != other.key[0] or mine.key[0] == "input":
        return f"the definition has {mine.shown} where the file has {other.shown}"
    if mine.key[0] == "constant":
        return f"{mine.shown}, has other values or another shape in the file, as {other.shown}"
    if mine.parameter is None:
        return f"{mine.shown} of the definition and {other.shown} of the file have other attributes or inputs"
    turned = mine.key[1] == other.key[1] and mine.key[2] == tuple(reversed(_shape(other)))
    return f"the place of {mine.shown}, has {other.shown}, in the file{', which is it transposed' if turned else ''}"


def _shape(term: Term) -> tuple[int, ...]:
    shape = term.key[2]
    return shape if isinstance(shape, tuple) else ()
