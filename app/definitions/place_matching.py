"""Tells which weight of another export is which parameter of a definition: by its place, and by names if places tie.

Both graphs are walked from their outputs to what these are computed of. A weight is at the place of a parameter if the
walk comes to both at once. If the walk gets through, the definition computes what the other export computes, once each
parameter has the values found at its place: what is not equal is refused, and nothing is taken for likely.

One thing a walk cannot tell: which is which of two inputs of an Add or Mul that are computed alike, of weights of the
same shapes. Names tell it if both graphs have them, and so do weights that another place has told before.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from app.definitions.expression import Expression, Term
from app.definitions.graph_differences import GraphDifferences, Pair, graph_differs
from app.definitions.rejection import Rejected
from app.definitions.weight_rule import LITERAL_NAMES, LITERAL_NODE_NAMES
from app.errors import FieldError

MAX_SHOWN: Final = 5
Digest = Callable[[str], str]


@dataclass(slots=True)
class PlaceMatching:
    """A walk over a definition's expression and that of another export of the same model.

    `digest_of` returns a digest of the values of a weight of the other export; it is asked only if values decide.
    """

    mine: Expression
    other: Expression
    digest_of: Digest
    _found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _seen: set[Pair] = field(default_factory=set)
    _ties: list[Pair] = field(default_factory=list)
    _my_colours: list[bytes] = field(init=False)
    _other_colours: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._my_colours, self._other_colours = self.mine.colours(), self.other.colours()

    def weights_by_parameter(self) -> dict[str, str]:
        """Return the name of the weight at the place of each parameter that the outputs are computed of.

        Raises:
            Rejected: "graph_differs", or "ambiguous_weights" if a place does not tell which weight is which.
        """
        outputs = self._outputs()
        differences = GraphDifferences(self.mine, self.other, self._my_colours, self._other_colours).below(outputs)
        if differences:
            raise graph_differs(differences)
        self._walk(outputs)
        while self._ties:
            self._break_ties()
        found = {parameter: self._only(parameter, names) for parameter, names in self._found.items()}
        self._check_names(found)
        return found

    def _outputs(self) -> list[Pair]:
        mine, other = self.mine.outputs, self.other.outputs
        if mine.keys() != other.keys():
            raise graph_differs([f"the definition has the outputs {shown(mine)} where the file has {shown(other)}"])
        return [(number, other[name]) for name, number in mine.items()]

    def _walk(self, pairs: Iterable[Pair]) -> None:
        pending = list(pairs)
        while pending:
            pair = pending.pop()
            if pair in self._seen:
                continue
            self._seen.add(pair)
            mine, other = self.mine.terms[pair[0]], self.other.terms[pair[1]]
            if mine.parameter is not None and other.parameter is not None:
                self._found[mine.parameter].append(other.parameter)
            ordered = self._ordered(mine, other, self._my_colours, self._other_colours)
            if ordered is None:
                self._ties.append(pair)
            else:
                pending.extend(ordered)

    @staticmethod
    def _ordered(
        mine: Term, other: Term, my_colours: Sequence[bytes], other_colours: Sequence[bytes]
    ) -> list[Pair] | None:
        """Return what two terms read, in pairs; None if it cannot be told which belong together."""
        straight = list(zip(mine.reads, other.reads, strict=True))
        if not mine.is_commutative or len(set(mine.reads)) == 1 or len(set(other.reads)) == 1:
            return straight
        swapped = list(zip(mine.reads, other.reads[::-1], strict=True))
        fitting = [
            pairs for pairs in (straight, swapped) if all(my_colours[one] == other_colours[two] for one, two in pairs)
        ]
        return fitting[0] if len(fitting) == 1 else None

    def _break_ties(self) -> None:
        """Walk on from those ties that names or known places break, or equal values; Rejected if there are none."""
        tied, self._ties = self._ties, []
        mine, other = self._labels()
        broken = self._told(tied, self.mine.colours(mine), self.other.colours(other))
        if not broken:
            broken = self._equal_in_value(tied)
        if not broken:
            raise self._undecided(tied)
        self._ties.extend(pair for pair in tied if pair not in broken)
        self._walk([pair for pairs in broken.values() for pair in pairs])

    def _told(self, tied: Sequence[Pair], mine: Sequence[bytes], other: Sequence[bytes]) -> dict[Pair, list[Pair]]:
        told = {pair: self._ordered(self.mine.terms[pair[0]], self.other.terms[pair[1]], mine, other) for pair in tied}
        return {pair: ordered for pair, ordered in told.items() if ordered is not None}

    def _equal_in_value(self, tied: Sequence[Pair]) -> dict[Pair, list[Pair]]:
        """Return, in any order, what those ties read whose two inputs have the same weights, value by value."""
        names = self.other.parameters_of([number for _, number in tied])
        colours = self.other.colours({name: self.digest_of(name) for name in names})
        return {
            pair: list(zip(self.mine.terms[pair[0]].reads, reads, strict=True))
            for pair in tied
            if colours[(reads := self.other.terms[pair[1]].reads)[0]] == colours[reads[1]]
        }

    def _labels(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return what tells parameters and weights apart: the weight at a known place, or a name that both have."""
        known = {parameter: names[0] for parameter, names in self._found.items()}
        mine = {parameter: f"place {name}" for parameter, name in known.items()}
        other = {name: f"place {names[0]}" for names in self._found.values() for name in names}
        for name in self._shared_names() - mine.keys() - other.keys():
            mine[name] = other[name] = f"name {name}"
        return mine, other

    def _shared_names(self) -> set[str]:
        """Return the names that both graphs have for a weight of one dtype and shape, and that no exporter made up."""
        mine, other = (
            {term.parameter: term.key for term in terms if term.parameter is not None}
            for terms in (self.mine.terms, self.other.terms)
        )
        return {name for name, key in mine.items() if other.get(name) == key and not is_made_up(name)}

    def _only(self, parameter: str, names: Sequence[str]) -> str:
        """Return the one weight of all places that a parameter has; several must be equal in value."""
        different = sorted(set(names))
        if len(different) > 1 and len({self.digest_of(name) for name in different}) > 1:
            raise graph_differs([f"the definition has one {parameter!r:.200} where the file has {shown(different)}"])
        return parameter if parameter in different else different[0]

    def _check_names(self, found: Mapping[str, str]) -> None:
        """Raise Rejected if a weight has the name of one parameter and the place of another of its shape."""
        used = set(found.values())
        moved = {
            name: there
            for name in sorted(self._shared_names() & used & found.keys())
            if (there := found[name]) != name and self.digest_of(there) != self.digest_of(name)
        }
        if moved:
            places = [f"at the place of {name!r:.200} the file has {there!r:.200}" for name, there in moved.items()]
            raise _ambiguous(f"The names of weights contradict their places: {'; '.join(places[:MAX_SHOWN])}", places)

    def _undecided(self, tied: Sequence[Pair]) -> Rejected:
        mine = self.mine.told_apart_by([one for one, _ in tied])
        other = self.other.told_apart_by([one for _, one in tied])
        return _ambiguous(
            f"The inputs of {self.mine.terms[tied[0][0]].shown} are computed alike, so places do not tell which of the "
            f"weights {shown(other)} of the file is which of the parameters {shown(mine)}",
            [f"{name!r:.200} may be any of {shown(mine)}" for name in other],
        )


def shown(names: Iterable[str]) -> str:
    """Return the first names, sorted, for a message."""
    listed = sorted(names)
    more = len(listed) - MAX_SHOWN
    return ", ".join(f"'{name:.200}'" for name in listed[:MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _ambiguous(detail: str, places: Sequence[str]) -> Rejected:
    return Rejected(
        "ambiguous_weights",
        f"{detail}. Export the model with the names that the definition has, or register the file as a definition of "
        "its own with POST /v1/models/<model>/definitions.",
        [FieldError("/onnx", place) for place in places[:100]],
    )


def is_made_up(name: str) -> bool:
    """Whether an exporter numbered a tensor, so that another export may have the name for another one."""
    return bool(LITERAL_NAMES.search(name) or LITERAL_NODE_NAMES.search(name))
