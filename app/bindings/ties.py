"""Parameters that were equal, as they are or transposed, in the weights that a definition came with."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from app.bindings.embedded import EmbeddedWeights, Samples, is_constant
from app.bindings.fits import then_turned
from app.bindings.proposed import Twin
from app.bindings.report import ParameterBinding
from app.bindings.rule_sets import literal, template
from app.weights.manifest import TensorEntry

_AT_FIRST = "in the definition's own weights, as tied ones are"


def twins_of(embedded: EmbeddedWeights, parameters: Iterable[str], samples: Samples) -> dict[str, tuple[Twin, ...]]:
    """Return, for each of these parameters that has any, the others that it was tied to."""
    known = ((name, tuple(_twins(embedded, name, samples))) for name in parameters if name in embedded.entries)
    return {name: found for name, found in known if found}


def _twins(embedded: EmbeddedWeights, name: str, samples: Samples) -> Iterator[Twin]:
    for names in embedded.ties:
        for other in names if name in names else ():
            if other != name:
                yield Twin(
                    other,
                    turned=False,
                    evidence=f"{name} was {other} in the definition's own weights, as tied ones are",
                )
    for pair in embedded.mirrored:
        if name in pair and _are_mirrors(embedded, pair, samples):
            other = pair[1] if pair[0] == name else pair[0]
            yield Twin(
                other,
                turned=True,
                evidence=f"{name} was {other} transposed in the definition's own weights, as tied ones are",
            )


def broken_ties(
    embedded: EmbeddedWeights, bindings: Sequence[ParameterBinding], tensors: Mapping[str, TensorEntry]
) -> Iterator[str]:
    """Yield a warning for each group of parameters that had equal values at first and have not any more."""
    fed = {one.parameter: one for one in bindings}
    for names in embedded.ties:
        groups: dict[object, list[str]] = defaultdict(list)
        for name in names:
            if name in fed:
                groups[_content(fed[name], tensors)].append(name)
        if len(groups) > 1:
            members = [group[0] for group in groups.values()]
            fresh = next((name for name in members if _has_changed(embedded, fed[name], tensors)), members[0])
            stale = next(name for name in members if name != fresh)
            yield _tie(fed[fresh], stale, "had equal values")


def broken_mirrors(
    embedded: EmbeddedWeights,
    bindings: Sequence[ParameterBinding],
    tensors: Mapping[str, TensorEntry],
    samples: Samples,
) -> Iterator[str]:
    """Yield a warning for each matrix that was another one transposed at first and is not any more.

    Only some values of them are compared.
    """
    fed = {one.parameter: one for one in bindings}
    for pair in embedded.mirrored:
        if not all(name in fed for name in pair):
            continue
        fresh = [name for name in pair if _has_changed(embedded, fed[name], tensors)]
        if not fresh or not _are_mirrors(embedded, pair, samples):
            continue
        one, other = (fed[name] for name in pair)
        if not _mirror(one, other, tensors, samples):
            stale = next(name for name in pair[::-1] if name != fresh[0])
            yield _tie(fed[fresh[0]], stale, "were each other transposed", turned=True)


def _mirror(
    one: ParameterBinding, other: ParameterBinding, tensors: Mapping[str, TensorEntry], samples: Samples
) -> bool:
    """Say whether two matrices are each other transposed by their rules or by their values; if unknown, they are."""
    if one.tensors == other.tensors:
        return then_turned(one.transforms) == other.transforms
    if one.transforms or other.transforms or len(one.tensors) != 1 or len(other.tensors) != 1:
        return True
    return _is_mirrored(tensors[one.tensors[0]], tensors[other.tensors[0]], samples) is not False


def _tie(fresh: ParameterBinding, stale: str, were: str, *, turned: bool = False) -> str:
    transforms = then_turned(fresh.transforms) if turned else fresh.transforms
    rule = {
        "parameter": literal(stale),
        "tensors": [template(name) for name in fresh.tensors],
        "transforms": [one.to_json() for one in transforms],
    }
    return (
        f"{fresh.parameter} and {stale} {were} in the weights that the definition came with, and differ in these. If "
        f"they are tied, {stale} is out of date: add the rule {json.dumps(rule)}."
    )


def _content(one: ParameterBinding, tensors: Mapping[str, TensorEntry]) -> object:
    return one.transforms, tuple(
        (tensors[name].dtype, tensors[name].shape, tensors[name].blake3) for name in one.tensors
    )


def _has_changed(embedded: EmbeddedWeights, one: ParameterBinding, tensors: Mapping[str, TensorEntry]) -> bool:
    """Whether a parameter is fed by anything else than its first values as they are."""
    is_same = len(one.tensors) == 1 and _same(embedded.entries[one.parameter], tensors[one.tensors[0]])
    return bool(one.transforms) or not is_same


def _same(one: TensorEntry, other: TensorEntry) -> bool:
    return (one.dtype, one.shape, one.blake3) == (other.dtype, other.shape, other.blake3)


def _are_mirrors(embedded: EmbeddedWeights, pair: tuple[str, str], samples: Samples) -> bool:
    """Say whether two matrices were each other transposed at first; what was found out is kept."""
    if pair not in embedded.mirrors:
        one, other = (embedded.entries[name] for name in pair)
        found = _is_mirrored(one, other, samples)
        if found is None:
            return False
        embedded.mirrors[pair] = found and not is_constant(one)
    return embedded.mirrors[pair]


def _is_mirrored(one: TensorEntry, other: TensorEntry, samples: Samples) -> bool | None:
    """Compare some values of two matrices; None if there is no time to read them."""
    first, second = samples.of(one), samples.of(other)
    if first is None or second is None:
        return None
    return first.shape == second.T.shape and bool((first == second.T).all())
