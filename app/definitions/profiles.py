"""Optimisation profiles: the shapes an engine is compiled for.

A profile gives each dynamic input the smallest, the best and the largest shape it may have; the words are
TensorRT's (kMIN, kOPT, kMAX). As JSON: {"input_ids": {"min": [1, 1], "opt": [4, 16], "max": [8, 128]}}.
An input may be left out when every symbol in its shape is settled by an input that is given. A minimum may be 0: the
first step of a decoder has an empty cache. `opt` is at least 1, as an engine is verified with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from app.definitions.parameter import InputSpec
from app.errors import FieldError, Invalid, json_pointer

DEFAULT_BATCH = 2
DEFAULT_LENGTH = 16
DEFAULT_IMAGE = 64
MAX_PROFILES = 16
MAX_DIM = 2**31 - 1
BOUNDS = ("min", "opt", "max")


@dataclass(frozen=True, slots=True)
class Range:
    """The smallest, the best and the largest shape of one input; all of one rank, min <= opt <= max."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


Profile = Mapping[str, Range]


def parse_profiles(
    profiles: Sequence[Any], inputs: Sequence[InputSpec], pointer: str = "/profiles"
) -> tuple[Profile, ...]:
    """Check profiles against a definition's inputs and complete them: each result has every input.

    Raises:
        Invalid: code "invalid_profiles", with the pointer of every fault below `pointer`.
    """
    faults: list[FieldError] = []
    if len(profiles) > MAX_PROFILES:
        faults.append(FieldError(pointer, f"at most {MAX_PROFILES} profiles, here are {len(profiles)}"))
    parsed = [
        _parse_profile(item, inputs, f"{pointer}/{index}", faults) for index, item in enumerate(profiles[:MAX_PROFILES])
    ]
    if faults:
        raise _invalid(faults)
    return tuple(parsed)


def to_json(profiles: Sequence[Profile]) -> list[Any]:
    """Return what `parse_profiles` reads."""
    return [
        {name: {bound: list(getattr(sizes, bound)) for bound in BOUNDS} for name, sizes in profile.items()}
        for profile in profiles
    ]


def opt_shapes(inputs: Sequence[InputSpec], profiles: Sequence[Profile]) -> dict[str, tuple[int, ...]]:
    """Return the shape to try each input with: the first profile's `opt`, or else these defaults.

    A dynamic first dimension, or one whose symbol has "batch" in it: 2. Any other dynamic dimension of an
    input of rank 4, an image: 64, a multiple of the usual strides. Anything else, such as a sequence: 16.
    A symbol has the same size wherever it stands.
    """
    if profiles:
        return {spec.name: profiles[0][spec.name].opt for spec in inputs}
    sizes: dict[str, int] = {}
    return {
        spec.name: tuple(
            dim if isinstance(dim, int) else sizes.setdefault(dim, _default(spec, axis))
            for axis, dim in enumerate(spec.shape)
        )
        for spec in inputs
    }


def example_profile(inputs: Sequence[InputSpec]) -> dict[str, Any]:
    """Return a profile to start from, as JSON: each dynamic input from half to four times its `opt_shapes`."""
    best = opt_shapes(inputs, ())
    return {
        spec.name: {
            "min": [_bound(dim, size // 2) for dim, size in zip(spec.shape, best[spec.name], strict=True)],
            "opt": list(best[spec.name]),
            "max": [_bound(dim, size * 4) for dim, size in zip(spec.shape, best[spec.name], strict=True)],
        }
        for spec in inputs
        if spec.dynamic
    }


def settle_shapes(
    given: Mapping[str, object], inputs: Sequence[InputSpec], profiles: Sequence[Profile], pointer: str = "/shapes"
) -> dict[str, tuple[int, ...]]:
    """Check shapes to try the inputs with, and complete them: the result has every input.

    A symbol has the size that is given for it anywhere. Other dimensions are those of `opt_shapes`. If there are
    profiles, they are taken from the first one that admits the shapes given.

    Raises:
        Invalid: code "invalid_shapes", with the pointer of every fault below `pointer`.
    """
    known = {spec.name: spec for spec in inputs}
    faults: list[FieldError] = []
    for name, shape in given.items():
        here = pointer + json_pointer(name)
        if name not in known:
            faults.append(FieldError(here, f"the definition has no input '{name}'; it has {sorted(known)}"))
        else:
            _check_shape(shape, known[name], here, faults, least=0)
    if faults:
        raise _invalid_shapes(faults)
    sizes = _settle_sizes(given, known, pointer)
    outside: list[FieldError] = []
    for index, profile in enumerate(profiles):
        beyond = _beyond(given, profile, f"profile {index}", pointer)
        if not beyond:
            return _filled(sizes, inputs, opt_shapes(inputs, [profile]))
        outside += beyond
    if outside:
        raise _invalid_shapes(outside)
    return _filled(sizes, inputs, opt_shapes(inputs, ()))


def _bound(dim: int | str, size: int) -> int:
    return dim if isinstance(dim, int) else size


def _default(spec: InputSpec, axis: int) -> int:
    if axis == 0 or "batch" in str(spec.shape[axis]).lower():
        return DEFAULT_BATCH
    return DEFAULT_IMAGE if len(spec.shape) == 4 else DEFAULT_LENGTH


def _parse_profile(item: object, inputs: Sequence[InputSpec], pointer: str, faults: list[FieldError]) -> Profile:
    if not isinstance(item, dict):
        faults.append(FieldError(pointer, 'a profile is an object such as {"x": {"min": [1], "opt": [4], "max": [8]}}'))
        return {}
    known = {spec.name: spec for spec in inputs}
    given: dict[str, Range] = {}
    before = len(faults)
    for name, sizes in item.items():
        here = pointer + json_pointer(name)
        if name not in known:
            faults.append(FieldError(here, f"the definition has no input '{name}'; it has {sorted(known)}"))
        elif (sizes_of := _parse_range(sizes, known[name], here, faults)) is not None:
            given[name] = sizes_of
    settled = _settle_symbols(given, known, pointer, faults)
    if len(faults) > before:
        return {}
    return _complete(given, inputs, settled, pointer, faults)


def _parse_range(sizes: object, spec: InputSpec, pointer: str, faults: list[FieldError]) -> Range | None:
    if not isinstance(sizes, dict) or set(sizes) != set(BOUNDS):
        faults.append(FieldError(pointer, 'give exactly "min", "opt" and "max", each a list of integers'))
        return None
    before = len(faults)
    for bound in BOUNDS:
        _check_shape(sizes[bound], spec, f"{pointer}/{bound}", faults, least=0 if bound == "min" else 1)
    if len(faults) > before:
        return None
    low, best, high = (tuple(sizes[bound]) for bound in BOUNDS)
    for axis, (a, b, c) in enumerate(zip(low, best, high, strict=True)):
        if not a <= b <= c:
            faults.append(FieldError(pointer, f"axis {axis}: min {a} <= opt {b} <= max {c} does not hold"))
    return Range(low, best, high)


def _check_shape(shape: object, spec: InputSpec, pointer: str, faults: list[FieldError], *, least: int) -> None:
    if not isinstance(shape, list | tuple) or not all(type(size) is int for size in shape):
        faults.append(FieldError(pointer, "a shape is a list of integers"))
    elif len(shape) != len(spec.shape):
        wanted = list(spec.shape)
        faults.append(FieldError(pointer, f"'{spec.name}' has rank {len(wanted)} {wanted}, this shape {len(shape)}"))
    else:
        for axis, (size, dim) in enumerate(zip(shape, spec.shape, strict=True)):
            if isinstance(dim, int) and size != dim:
                faults.append(FieldError(f"{pointer}/{axis}", f"this dimension is fixed at {dim}"))
            elif size == 0 < least and isinstance(dim, str):
                detail = "0 may stand in min alone: opt is what an engine is tuned for, so give 1 or more here"
                faults.append(FieldError(f"{pointer}/{axis}", detail))
            elif not (isinstance(dim, int) or least <= size <= MAX_DIM):
                faults.append(FieldError(f"{pointer}/{axis}", f"{size} is not between {least} and {MAX_DIM}"))


Sizes = tuple[int, int, int]


def _settle_symbols(
    given: Mapping[str, Range], known: Mapping[str, InputSpec], pointer: str, faults: list[FieldError]
) -> dict[str, Sizes]:
    """Return min, opt and max of each symbol; two inputs may not give one symbol different sizes."""
    settled: dict[str, tuple[Sizes, str]] = {}
    for name, sizes in given.items():
        for axis, dim in enumerate(known[name].shape):
            if isinstance(dim, int):
                continue
            here = (sizes.min[axis], sizes.opt[axis], sizes.max[axis])
            there, owner = settled.setdefault(dim, (here, name))
            if here != there:
                detail = f"axis {axis}, '{dim}', is {here} (min, opt, max) here but {there} in '{owner}'"
                faults.append(FieldError(pointer + json_pointer(name), detail))
    return {dim: sizes for dim, (sizes, _) in settled.items()}


def _complete(
    given: Mapping[str, Range],
    inputs: Sequence[InputSpec],
    settled: Mapping[str, Sizes],
    pointer: str,
    faults: list[FieldError],
) -> Profile:
    profile = dict(given)
    for spec in inputs:
        if spec.name in profile:
            continue
        missing = [dim for dim in spec.shape if isinstance(dim, str) and dim not in settled]
        if missing:
            detail = f"input '{spec.name}' {list(spec.shape)} is missing, and nothing else says how large {missing} is"
            faults.append(FieldError(pointer, detail))
            continue
        columns = [(dim,) * 3 if isinstance(dim, int) else settled[dim] for dim in spec.shape]
        low, best, high = (tuple(column[bound] for column in columns) for bound in range(3))
        profile[spec.name] = Range(low, best, high)
    return MappingProxyType({spec.name: profile[spec.name] for spec in inputs if spec.name in profile})


def _settle_sizes(given: Mapping[str, Any], known: Mapping[str, InputSpec], pointer: str) -> dict[str, int]:
    """Return the size of each symbol; raises Invalid if two inputs give one symbol different sizes."""
    settled: dict[str, tuple[int, str]] = {}
    faults: list[FieldError] = []
    for name, shape in given.items():
        for axis, (size, dim) in enumerate(zip(shape, known[name].shape, strict=True)):
            if isinstance(dim, int):
                continue
            there, owner = settled.setdefault(dim, (size, name))
            if size != there:
                detail = f"'{dim}' is {size} here but {there} in '{owner}'"
                faults.append(FieldError(pointer + json_pointer(name, axis), detail))
    if faults:
        raise _invalid_shapes(faults)
    return {dim: size for dim, (size, _) in settled.items()}


def _beyond(given: Mapping[str, Any], profile: Profile, of: str, pointer: str) -> list[FieldError]:
    return [
        FieldError(
            pointer + json_pointer(name),
            f"{list(shape)} is not between {list(profile[name].min)} and {list(profile[name].max)} of {of}",
        )
        for name, shape in given.items()
        if not all(a <= b <= c for a, b, c in zip(profile[name].min, shape, profile[name].max, strict=True))
    ]


def _filled(
    sizes: Mapping[str, int], inputs: Sequence[InputSpec], otherwise: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    return {
        spec.name: tuple(
            dim if isinstance(dim, int) else sizes.get(dim, best)
            for dim, best in zip(spec.shape, otherwise[spec.name], strict=True)
        )
        for spec in inputs
    }


def _invalid(faults: Sequence[FieldError]) -> Invalid:
    listed = "; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults[:5])
    return Invalid(
        f"The profiles do not fit the definition's inputs: {listed}. "
        "GET the definition for the names and shapes of its inputs.",
        code="invalid_profiles",
        errors=faults,
    )


def _invalid_shapes(faults: Sequence[FieldError]) -> Invalid:
    listed = "; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults[:5])
    return Invalid(
        f"The shapes do not fit the engine: {listed}. GET the definition for the names and shapes of its inputs and "
        "the engine for its profiles.",
        code="invalid_shapes",
        errors=faults,
    )
