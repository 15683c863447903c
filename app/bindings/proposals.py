"""Rules that would bind what is not bound yet, each with what speaks for it, and what cannot be told.

A rule is proposed only if a single tensor comes into question. If several do, or if nothing says how a square matrix
lies, that is said instead: a guess would bind, and compute something else.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from app.bindings.companions import TypedTensor
from app.bindings.fits import TURN, Fit, Fits, extents, then_turned
from app.bindings.misfits import misfits
from app.bindings.naming import Namesake, kind, namesakes, plain
from app.bindings.proposed import EXPORTED, NO_TWINS, Proposal, Proposed, Twin, Unclear, is_square, named
from app.bindings.recurrent import made_of
from app.bindings.rule_sets import Fed, RuleFor, rule_set
from app.bindings.steps import TensorType, Transform
from app.definitions.parameter import Parameter

ALIKE = "their names end alike, as those of two copies of a model do, of which a rule may ignore one"


class KnownValues(Protocol):
    """What is known of values: those of the definition's embedded weights, and those of the tensors."""

    def partner(self, parameter: str, tensors: tuple[str, ...]) -> tuple[str, bool, str] | None:
        """Return the one tensor whose values are the parameter's, whether transposed, and how that is known."""

    def is_transposed(self, parameter: str, tensor: str) -> tuple[bool, str] | None:
        """Say whether a square tensor lies the other way round than the parameter, and how that is known."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A parameter that is not bound. `tensors` are those that its rule found, none if one of them is missing."""

    parameter: Parameter
    tensors: tuple[str, ...] = ()
    transforms: tuple[Transform, ...] = ()

    @property
    def type(self) -> TensorType:
        """The type that it wants."""
        return TensorType(self.parameter.dtype, self.parameter.shape)


def propose(
    wanted: Sequence[Wanted],
    bound: Mapping[str, Fed],
    parameters: Sequence[Parameter],
    tensors: Mapping[str, TypedTensor],
    spare: Collection[str],
    values: KnownValues | None = None,
    twins: Mapping[str, Sequence[Twin]] = NO_TWINS,
) -> Proposed:
    """Return rules for what is `wanted`.

    `bound` says what feeds the parameters that are bound as they are, and `spare` which tensors feed nothing and stand
    for themselves. `twins` are the parameters that others were tied to.
    """
    return _Proposer(bound, parameters, tensors, values, twins).propose(wanted, spare)


@dataclass
class _Proposer:
    bound: Mapping[str, Fed]
    parameters: Sequence[Parameter]
    tensors: Mapping[str, TypedTensor]
    values: KnownValues | None
    twins: Mapping[str, Sequence[Twin]]
    fed: list[Fed] = field(default_factory=list)
    unclear: list[Unclear] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    settled: set[str] = field(default_factory=set)
    doubted: set[str] = field(default_factory=set)  # square matrices of which that is said
    turned: bool = False  # whether any tensor of a parameter's own name lies the other way round

    def __post_init__(self) -> None:
        self.fits = Fits(self.tensors)

    def propose(self, wanted: Sequence[Wanted], spare: Collection[str]) -> Proposed:
        for one in wanted:
            if one.tensors:
                self._mend(one)
        missing = {one.parameter.name: one for one in wanted if not one.tensors}
        alike = namesakes(missing, spare)
        self._by_name(missing, alike)
        self._by_value(missing, spare)
        self._by_shape(missing, spare)
        self._by_gates(missing)
        self._by_tie(missing)
        unsettled = [one.parameter for name, one in missing.items() if name not in self.settled]
        free = dict.fromkeys(name for name in spare if name not in self.taken)
        self.unclear += misfits(unsettled, free, self.tensors, alike)
        self._squares()
        rules = rule_set(self.fed, self.bound, [parameter.name for parameter in self.parameters])
        return Proposed(tuple(_proposal(one) for one in rules), tuple(self.unclear))

    def _mend(self, one: Wanted) -> None:
        """Find what is lacking between a parameter and the tensors of its rule."""
        if len(one.tensors) == 1 and not one.transforms and (fits := self.fits.of(one.type, one.tensors[0])):
            told = self._layout(one.parameter.name, one.tensors[0]) if len(fits) > 1 else None
            self._feed(one, fits[told[0] if told else 0], (told[1],) if told else ())

    def _by_name(self, missing: Mapping[str, Wanted], alike: Mapping[str, Sequence[Namesake]]) -> None:
        for name, found in alike.items():
            one = missing[name]
            fitting = [known for known in found if self.fits.of(one.type, known.tensor)]
            if len(fitting) == 1 and (fitting[0].is_whole or fitting[0].support > 1):
                self._named(one, fitting[0])
            elif len(fitting) > 1:
                self._say([name], [known.tensor for known in fitting], ALIKE)

    def _named(self, one: Wanted, known: Namesake) -> None:
        fits, name = self.fits.of(one.type, known.tensor), one.parameter.name
        told = self._layout(name, known.tensor) if len(fits) > 1 else None
        fit = fits[0] if told is None else fits[told[0]]
        self._feed(one, fit, (_alike(name, known.tensor), *([told[1]] if told else [])))
        if len(fits) > 1 and told is None and name.startswith(EXPORTED):
            self._say_square([name], [known.tensor])

    def _candidates(self, missing: Mapping[str, Wanted], spare: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Return, for each parameter that nothing is said of, the free tensors that fit by shape and kind.

        Parameters of one type and kind have the very same ones.
        """
        by_extents: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for tensor in spare:
            if tensor not in self.taken:
                by_extents[extents(self.tensors[tensor].shape)].append(tensor)
        groups: dict[tuple[TensorType, str], tuple[str, ...]] = {}
        found = {}
        for name, one in missing.items():
            if name in self.settled:
                continue
            key = one.type, kind(name)
            if key not in groups:
                near = by_extents.get(extents(one.type.shape), ())
                groups[key] = tuple(t for t in near if kind(t) in {"", key[1] or kind(t)} and self.fits.of(one.type, t))
            found[name] = groups[key]
        return found

    def _by_value(self, missing: Mapping[str, Wanted], spare: Collection[str]) -> None:
        if self.values is None:
            return
        for name, candidates in self._candidates(missing, spare).items():
            found = self.values.partner(name, candidates) if candidates else None
            if found is not None and found[0] not in self.taken:
                tensor, is_turned, evidence = found
                fits = self.fits.of(missing[name].type, tensor)
                fit = next((fit for fit in fits if (TURN in fit[1]) == is_turned), fits[0])
                self._feed(missing[name], fit, (evidence,))

    def _by_shape(self, missing: Mapping[str, Wanted], spare: Collection[str]) -> None:
        by_parameter = self._candidates(missing, spare)
        groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name, found in by_parameter.items():
            groups[found].append(name)
        rivals: dict[str, list[str]] = defaultdict(list)
        for found, names in groups.items():
            for tensor in found:
                rivals[tensor] += names
        for found, names in groups.items():
            wanting = list(dict.fromkeys(other for tensor in found for other in rivals[tensor]))
            if len(found) == len(wanting) == 1:
                self._shaped(missing[names[0]], found[0])
            elif found and not self.settled.issuperset(names):
                tensors = sorted({tensor for other in wanting for tensor in by_parameter[other]})
                self._say(wanting, tensors, "their shapes fit")

    def _by_gates(self, missing: Mapping[str, Wanted]) -> None:
        """Feed a recurrent operator by the one layer of PyTorch that makes something of its parameter's shape."""
        open_ones = [one for name, one in missing.items() if name not in self.settled]
        if not open_ones:
            return
        used = {tensor for fed in self.bound.values() for tensor in fed.tensors}
        makings = made_of(self.tensors, [name for name in self.tensors if name not in used | self.taken])
        for shape in {made.shape for made in makings}:
            wanting = [one for one in open_ones if one.type.shape == shape]
            fitting = [made for made in makings if made.shape == shape]
            if len(wanting) == len(fitting) == 1:
                told = "it alone makes something of this shape, with the gates in the order of ONNX"
                self._feed(wanting[0], (fitting[0].tensors, fitting[0].transforms, (told,)), ())
            elif wanting:
                tensors = [tensor for made in fitting for tensor in made.tensors]
                self._say([one.parameter.name for one in wanting], tensors, "their shapes fit")

    def _by_tie(self, missing: Mapping[str, Wanted]) -> None:
        """Feed what the weights have no tensor for by that of the parameter it was tied to: tied heads are left out."""
        feeding = {**self.bound, **{one.parameter: one for one in self.fed}}
        for name in [name for name in missing if name not in self.settled]:
            for twin in self.twins.get(name, ()):
                if (fed := feeding.get(twin.other)) is not None:
                    transforms = then_turned(fed.transforms) if twin.turned else fed.transforms
                    self.settled.add(name)
                    self.fed.append(Fed(name, fed.tensors, transforms, (twin.evidence,)))
                    break

    def _shaped(self, one: Wanted, tensor: str) -> None:
        fits, name = self.fits.of(one.type, tensor), one.parameter.name
        only = f"{tensor} alone of all tensors that feed nothing fits {name}, and fits no other parameter"
        if len(fits) > 1:
            fit = next((fit for fit in fits if TURN in fit[1]), fits[0]) if name.startswith(EXPORTED) else fits[0]
            self._feed(one, fit, (only, *_convention(name)))
            self._say_square([name], [tensor])
        else:
            self._feed(one, fits[0], (only, *_convention(name)))

    def _feed(self, one: Wanted, fit: Fit, why: tuple[str, ...]) -> None:
        tensors, transforms, evidence = fit
        self.turned |= TURN in transforms and plain(tensors[0])[-1:] == plain(one.parameter.name)[-1:]
        self.taken.update(tensors)
        self.settled.add(one.parameter.name)
        self.fed.append(Fed(one.parameter.name, tensors, transforms, (*why, *evidence)))

    def _layout(self, parameter: str, tensor: str) -> tuple[bool, str] | None:
        return None if self.values is None else self.values.is_transposed(parameter, tensor)

    def _squares(self) -> None:
        """Look at the square matrices, whose shape does not tell how they lie.

        Those under their parameters' very names are doubted only if other matrices of the checkpoint lie otherwise.
        Those under other names are doubted unless a matrix that is not square shows that all lie as they should.
        """
        shapes = {parameter.name: parameter for parameter in self.parameters}
        doubted = self._bound_squares(shapes) if self.turned or self.values is not None else []
        is_upright = not self.turned and any(_shows_layout(*one) for one in self._matrices(shapes))
        for one in self.fed:
            name, tensor = one.parameter, one.tensors[0]
            is_open = is_square(shapes[name].shape) and TURN not in one.transforms and name not in self.doubted
            is_known = is_upright or (name == tensor and not self.turned)
            if is_open and not is_known and self._layout(name, tensor) is None:
                doubted.append((name, tensor))
        if doubted:
            self._say_square([name for name, _ in doubted], [tensor for _, tensor in doubted])

    def _bound_squares(self, shapes: Mapping[str, Parameter]) -> list[tuple[str, str]]:
        """Turn those that are bound and lie the other way round by their values, and return those that may."""
        doubted = []
        for name, tensors in ((name, fed.tensors) for name, fed in self.bound.items()):
            if len(tensors) != 1 or not is_square(shapes[name].shape) or plain(name)[-1:] != plain(tensors[0])[-1:]:
                continue
            told = self._layout(name, tensors[0])
            if told is None and self.turned:
                doubted.append((name, tensors[0]))
            elif told is not None and told[0]:
                self._feed(Wanted(shapes[name]), (tensors, (TURN,), (told[1],)), ())
        return doubted

    def _matrices(self, shapes: Mapping[str, Parameter]) -> list[tuple[str, tuple[int, ...]]]:
        names = [*self.bound, *(one.parameter for one in self.fed if TURN not in one.transforms)]
        return [(name, shapes[name].shape) for name in names]

    def _say(self, parameters: Sequence[str], tensors: Sequence[str], why: str) -> None:
        detail = (
            f"It cannot be told which of {named(tensors)} feeds {named(parameters)}: {why}. Name the tensor of each "
            'in a rule, or upload weights whose names tell it, or an ONNX export of them (POST …/weights with "onnx"): '
            "that needs no rules."
        )
        self.settled.update(parameters)
        self.unclear.append(Unclear(tuple(parameters), tuple(tensors), detail))

    def _say_square(self, parameters: Sequence[str], tensors: Sequence[str]) -> None:
        detail = (
            f"It cannot be told by the shape of {named(tensors)} whether to transpose for {named(parameters)}: square "
            "matrices look alike either way. See how the checkpoint keeps its other matrices, and compare outputs with "
            "the framework's."
        )
        self.doubted.update(parameters)
        self.settled.update(parameters)
        self.unclear.append(Unclear(tuple(parameters), tuple(tensors), detail))


def _proposal(one: RuleFor) -> Proposal:
    parameters = tuple(member.parameter for member in one.members)
    evidence = tuple(dict.fromkeys(told for member in one.members[:1] for told in member.evidence))
    return Proposal(
        one.rule, evidence, parameters, frozenset(name for member in one.members for name in member.tensors)
    )


def _shows_layout(name: str, shape: Sequence[int]) -> bool:
    """Whether a parameter is a matrix that is no table, which all conventions keep alike, and not square."""
    is_table = "emb" in name or plain(name)[-2:-1] in {("wte",), ("wpe",)}
    return len(shape) == 2 and min(shape) > 1 and shape[0] != shape[1] and not is_table


def _alike(parameter: str, tensor: str) -> str:
    if plain(parameter) == plain(tensor):
        return f"{tensor} is {parameter} but for what wrappers or older releases call it"
    return f"{tensor} and {parameter} end alike"


def _convention(parameter: str) -> tuple[str, ...]:
    return (
        ("torch.onnx.export transposes a Linear's weight and renames it so",) if parameter.startswith(EXPORTED) else ()
    )
