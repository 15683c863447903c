"""Inputs to try a definition on that nobody gave inputs for: a guess, and others if the definition cannot run on it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, permutations
from math import prod
from typing import Any, Self

from app.definitions.parameter import InputSpec
from app.definitions.profiles import DEFAULT_BATCH, Profile, opt_shapes
from app.weights.dtypes import DTYPES
from workers.engine_host.run_inputs import Values, fixed_inputs
from workers.engine_host.tensors import Array

LENGTHS = (512, 1, 2, 4, 8, 32, 64, 128, 256, 640, 1024, 4096, 16_000, 44_100, 48_000)
LONGEST_OF_TOKENS = 512  # attention over tokens or pixels takes memory by the square of their number
MAX_ELEMENTS = 2**25  # of all inputs together
CHANNELS = (3, 1)  # of an image
SIDES = (224, 640, 384, 112, 160, 299, 336, 448, 518, 512)  # of an image, as common networks have them
WIDTHS = (1, 3, 4, 8, 32, 64, 80, 128, 256, 512)  # of one dimension alone
MAX_TRIALS = 192
MAX_SUMS = 24

Sizes = dict[str, int]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Trial:
    """How inputs are made up: the shape of each, and see `fixed_inputs` for `values` and `seed`."""

    shapes: Shapes
    values: Values = "normal"
    seed: int = 0

    def inputs(self, specs: Sequence[InputSpec]) -> dict[str, Array]:
        """Return the inputs, the same everywhere."""
        return fixed_inputs(specs, (), self.shapes, values=self.values, seed=self.seed)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {"shapes": shapes, "values": self.values, "seed": self.seed}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls({name: tuple(shape) for name, shape in row["shapes"].items()}, row["values"], row["seed"])

    @property
    def text(self) -> str:
        """Return the shapes as words."""
        return ", ".join(f"{name} {list(shape)}" for name, shape in self.shapes.items())


def trials(specs: Sequence[InputSpec], profiles: Sequence[Profile]) -> Iterator[Trial]:
    """Yield what to try, the likeliest first: shapes with usual values, then the first shapes with other values.

    With profiles, the shapes are their `opt`, `min` and `max`. Otherwise a dimension whose symbol is written as a sum
    of others has that size. Dimensions have the sizes of `opt_shapes`, then a batch is one, one dimension is the
    sum of two others, all that are no batch have a size of `LENGTHS`, images have sides of `SIDES`, and at last one
    alone has one of `WIDTHS`.
    """
    likeliest = []
    for shapes in islice(_fitting(_of_profiles(specs, profiles) if profiles else _guesses(specs)), MAX_TRIALS):
        likeliest.append(shapes)
        yield Trial(shapes)
    yield from (Trial(shapes, "zeros") for shapes in likeliest[:2])


def _fitting(guesses: Iterator[Shapes]) -> Iterator[Shapes]:
    """Yield each of the shapes once, without those that take too much memory unless all of them do."""
    known: dict[tuple[tuple[str, tuple[int, ...]], ...], bool] = {}
    first = None
    for shapes in guesses:
        key = tuple(shapes.items())
        if key in known:
            continue
        first = first or shapes
        known[key] = sum(map(prod, shapes.values())) <= MAX_ELEMENTS
        if known[key]:
            yield shapes
    if first is not None and not any(known.values()):
        yield first


def longer(specs: Sequence[InputSpec], shapes: Shapes) -> Shapes:
    """Return the shapes with every dimension that is free, and no batch, three times as large."""
    return {
        spec.name: tuple(
            size if isinstance(dim, int) or _is_batch(dim, specs) else 3 * size
            for dim, size in zip(spec.shape, shapes[spec.name], strict=True)
        )
        for spec in specs
    }


def _of_profiles(specs: Sequence[InputSpec], profiles: Sequence[Profile]) -> Iterator[Shapes]:
    for profile in profiles:
        yield {spec.name: profile[spec.name].opt for spec in specs}
    for profile in profiles:
        yield {spec.name: profile[spec.name].min for spec in specs}
        yield {spec.name: profile[spec.name].max for spec in specs}


def _guesses(specs: Sequence[InputSpec]) -> Iterator[Shapes]:
    for sizes in _sizes(specs):
        summed = _with_written_sums(sizes)
        yield {spec.name: tuple(dim if isinstance(dim, int) else summed[dim] for dim in spec.shape) for spec in specs}


def _sizes(specs: Sequence[InputSpec]) -> Iterator[Sizes]:
    """Yield sizes for the symbols. What may be as long as `LENGTHS` says is settled by where a symbol stands."""
    usual = _usual_sizes(specs)
    single = {name: 1 if size == DEFAULT_BATCH else size for name, size in usual.items()}
    yield usual
    yield single
    lengths = [name for name in usual if not _is_batch(name, specs)]
    channels = {spec.shape[1] for spec in specs if len(spec.shape) == 4 and isinstance(spec.shape[1], str)}
    for base in (usual, single):
        yield from (base | dict.fromkeys(map(str, channels), number) for number in CHANNELS if channels)
        yield from islice(_summed(base, lengths), MAX_SUMS)
    for length in LENGTHS:
        long = {name: length for name in lengths if length <= LONGEST_OF_TOKENS or _is_signal(name, specs)}
        yield from (base | long for base in (usual, single))
    for side in SIDES:
        sided = {name: side for name in usual if _is_side(name, specs)}
        yield from (single | sided | dict.fromkeys(map(str, channels), number) for number in CHANNELS)
    for length in LENGTHS:
        yield {name: length for name in usual if length <= LONGEST_OF_TOKENS} or usual
    for name in usual:
        yield from (usual | {name: width} for width in WIDTHS)


def _summed(sizes: Sizes, lengths: Sequence[str]) -> Iterator[Sizes]:
    """Yield the sizes with one of them the sum of two others, or one more than another."""
    for whole, part in permutations(lengths, 2):
        others = [one for one in lengths if one > part and one != whole]
        yield from (sizes | {whole: sizes[part] + sizes[one]} for one in others)
    for whole, part in permutations(lengths, 2):
        yield sizes | {whole: sizes[part] + 1}


def _usual_sizes(specs: Sequence[InputSpec]) -> Sizes:
    shapes = opt_shapes(specs, ())
    pairs = [pair for spec in specs for pair in zip(spec.shape, shapes[spec.name], strict=True)]
    return {dim: size for dim, size in pairs if isinstance(dim, str)}


def _with_written_sums(sizes: Sizes) -> Sizes:
    """Give symbols such as "past + 1" or "past_length+length" the size they say."""
    settled = dict(sizes)
    for name in sizes:
        terms = [term.strip() for term in re.split(r"\+", name)]
        if len(terms) > 1 and all(term.isdigit() or term in sizes for term in terms):
            settled[name] = sum(int(term) if term.isdigit() else sizes[term] for term in terms)
    return settled


def _is_batch(symbol: str, specs: Sequence[InputSpec]) -> bool:
    """Whether a symbol is the size of a batch: by its name, or as it only comes first, and not alone."""
    if "batch" in symbol.lower():
        return True
    return all(spec.shape.index(symbol) == 0 and len(spec.shape) > 1 for spec in specs if symbol in spec.shape)


def _is_side(symbol: str, specs: Sequence[InputSpec]) -> bool:
    """Whether a symbol is the height or the width of an image."""
    return any(len(spec.shape) == 4 and symbol in spec.shape[2:] for spec in specs)


def _is_signal(symbol: str, specs: Sequence[InputSpec]) -> bool:
    """Whether a symbol is the length of a signal, such as audio: of floats only, and of no image."""
    inputs = [spec for spec in specs if symbol in spec.shape]
    return all(DTYPES[spec.dtype].kind == "float" and len(spec.shape) <= 3 for spec in inputs)
