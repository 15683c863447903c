"""What is fed to an engine: a client's inputs, checked, or made-up ones to verify it with."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Literal

import numpy as np

from app.definitions.parameter import InputSpec
from app.definitions.profiles import Profile, opt_shapes
from app.weights.dtypes import DTYPES, numpy_dtype
from workers.channel.messages import BackendError
from workers.engine_host.tensors import Array, dtype_name, raw

# How the values are made up that nothing else settles.
Values = Literal["normal", "positive", "small", "unit", "zeros"]

# What single numbers are, by a word of the input's name. Without one a float lies in [0.5, 1).
SETTINGS: tuple[tuple[frozenset[str], float], ...] = (
    (frozenset({"sr", "samplerate", "samplingrate"}), 16_000),
    (frozenset({"threshold", "confidence", "iou"}), 0.5),
    (frozenset({"temperature", "scale", "ratio", "penalty", "speed", "factor", "alpha", "beta"}), 1.0),
)
MASKS = frozenset({"mask", "masks"})
LENGTHS = frozenset({"len", "lens", "length", "lengths"})
POSITIONS = frozenset({"position", "positions", "pos"})


def check_inputs(
    arrays: Mapping[str, Array],
    specs: Sequence[InputSpec],
    profiles: Sequence[Profile],
    *,
    negative_indices: bool = True,
) -> None:
    """Raise BackendError "bad_inputs", naming every fault at once, unless an engine can take these arrays.

    Names, dtypes, ranks and fixed dimensions must be those of the definition, equal symbols must have equal
    sizes, indices must lie inside what they index, and with profiles the shapes must lie within one of them. A negative
    index counts from the end if the definition allows it (`InputSpec.low`) and the backend computes it so
    (`negative_indices`).
    """
    faults = [*_name_faults(arrays, specs)]
    given = [spec for spec in specs if spec.name in arrays]
    sizes: dict[str, tuple[int, str]] = {}
    for spec in given:
        faults += _faults(arrays[spec.name], spec, sizes)
        faults += _index_faults(arrays[spec.name], spec, negative=negative_indices)
    if not faults and profiles:
        faults += _profile_faults(arrays, profiles)
    if faults:
        raise BackendError("bad_inputs", "; ".join(faults) + ". Send a safetensors file with inputs that fit.")


def fixed_inputs(
    specs: Sequence[InputSpec],
    profiles: Sequence[Profile],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    values: Values = "normal",
    seed: int = 0,
) -> dict[str, Array]:
    """Return the inputs a definition is verified and measured with: the same for the same arguments, everywhere.

    Inputs that `shapes` leaves out have the shapes of `opt_shapes`. Random values come from PCG64 seeded by the
    input's name and `seed`. Floats are standard normal, or by `values` their magnitudes ("positive"), their tenths
    ("small") or uniform in [0, 1) ("unit"); a single one is what its name says (see `SETTINGS`), and masks are ones.
    Integers with `high` are spread evenly over [0, high), so that of a table no large part is left out. A length
    is the longest size there is, positions count up, and any other integer is one, or zero if `values` is "zeros".
    Booleans are true.
    """
    shapes = {**opt_shapes(specs, profiles), **(shapes or {})}
    longest = max((size for spec in specs for size in _free_sizes(spec, shapes[spec.name])), default=1)
    return {spec.name: _fixed(spec, shapes[spec.name], longest, values, seed) for spec in specs}


def digest_of(arrays: Mapping[str, Array]) -> str:
    """Return "sha256:..." over names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(repr((name, dtype_name(array), array.shape)).encode())
        digest.update(raw(array).data)
    return f"sha256:{digest.hexdigest()}"


def _name_faults(arrays: Mapping[str, Array], specs: Sequence[InputSpec]) -> Iterator[str]:
    known = {spec.name: spec for spec in specs}
    for name in sorted(known.keys() - arrays.keys()):
        yield f"input {name} {_type(known[name])} is missing"
    for name in sorted(arrays.keys() - known.keys()):
        yield f"the engine has no input {name}; its inputs are {', '.join(sorted(known))}"


def _faults(array: Array, spec: InputSpec, sizes: dict[str, tuple[int, str]]) -> Iterator[str]:
    if dtype_name(array) != spec.dtype:
        yield f"input {spec.name} is {dtype_name(array)}, not {spec.dtype}"
    if array.ndim != len(spec.shape):
        yield f"input {spec.name} has {array.ndim} dimensions, not {len(spec.shape)} as in {_type(spec)}"
        return
    for axis, (size, dim) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(dim, int) and size != dim:
            yield f"dimension {axis} of input {spec.name} is {size}, not {dim}"
        elif isinstance(dim, str):
            settled, owner = sizes.setdefault(dim, (size, spec.name))
            if settled != size:
                yield f"dimension {axis} ({dim}) of input {spec.name} is {size}, but {settled} in {owner}"


def _index_faults(array: Array, spec: InputSpec, *, negative: bool) -> Iterator[str]:
    if spec.high is None or not array.size or DTYPES[dtype_name(array)].kind not in {"int", "uint"}:
        return
    bound = spec.low if negative else 0
    low, high = int(array.min()), int(array.max())
    if low < bound or high >= spec.high:
        wrong = low if low < bound else high
        yield f"input {spec.name} holds {wrong}; its values must lie in [{bound}, {spec.high})"


def _profile_faults(arrays: Mapping[str, Array], profiles: Sequence[Profile]) -> list[str]:
    reasons = [_outside(arrays, profile) for profile in profiles]
    if any(not reason for reason in reasons):
        return []
    return [f"the shapes fit none of the engine's profiles: {' | '.join('; '.join(one) for one in reasons)}"]


def _outside(arrays: Mapping[str, Array], profile: Profile) -> list[str]:
    return [
        f"{name} {list(arrays[name].shape)} is not between {list(sizes.min)} and {list(sizes.max)}"
        for name, sizes in profile.items()
        if not all(
            low <= size <= high for low, size, high in zip(sizes.min, arrays[name].shape, sizes.max, strict=True)
        )
    ]


def _free_sizes(spec: InputSpec, shape: tuple[int, ...]) -> Iterator[int]:
    """Yield the sizes of an input's dynamic dimensions but the batch; a length's own is one."""
    if LENGTHS & _words(spec.name):
        return
    first = 0 if len(shape) == 1 else 1
    yield from (size for dim, size in list(zip(spec.shape, shape, strict=True))[first:] if isinstance(dim, str))


def _fixed(spec: InputSpec, shape: tuple[int, ...], longest: int, values: Values, seed: int) -> Array:
    kind, dtype = DTYPES[spec.dtype].kind, numpy_dtype(spec.dtype)
    if kind == "float":
        return _fixed_floats(spec, shape, values, seed).astype(dtype)
    if kind != "bool" and spec.high:
        return _spread(_random(spec.name, seed), min(spec.high, int(np.iinfo(dtype).max)), shape).astype(dtype)
    if kind == "bool":
        return np.ones(shape, dtype)
    return _fixed_integers(spec, shape, longest, values).astype(dtype)


def _fixed_floats(spec: InputSpec, shape: tuple[int, ...], values: Values, seed: int) -> Array:
    random = _random(spec.name, seed)
    if all(dim == 1 for dim in spec.shape):
        setting = _setting(spec.name)
        return random.uniform(0.5, 1.0, shape) if setting is None else np.full(shape, setting)
    if MASKS & _words(spec.name):
        return np.ones(shape)
    if values == "unit":
        return random.uniform(0.0, 1.0, shape)
    made = random.standard_normal(shape)
    return np.abs(made) if values == "positive" else made * 0.1 if values == "small" else made


def _spread(random: np.random.Generator, high: int, shape: tuple[int, ...]) -> Array:
    """Return integers in [0, high): one of each of as many equal parts, in an order of chance, with the first and last.

    Of a table that is looked up, any stretch of rows twice as long as such a part is looked into.
    """
    count = prod(shape)
    values = ((np.arange(count) + random.uniform(0.0, 1.0, count)) * (high / max(count, 1))).astype(np.int64)
    if count > 1:
        values[0], values[-1] = 0, high - 1
    result: Array = random.permutation(np.minimum(values, high - 1)).reshape(shape)
    return result


def _fixed_integers(spec: InputSpec, shape: tuple[int, ...], longest: int, values: Values) -> Array:
    words, setting = _words(spec.name), _setting(spec.name)
    if setting is not None and all(dim == 1 for dim in spec.shape):
        return np.full(shape, setting)
    if LENGTHS & words:
        return np.full(shape, longest)
    if POSITIONS & words and shape:
        return np.broadcast_to(np.arange(shape[-1]), shape)
    return np.zeros(shape) if values == "zeros" else np.ones(shape)


def _random(name: str, seed: int) -> np.random.Generator:
    text = f"{name}#{seed}" if seed else name
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16])))


def _setting(name: str) -> float | None:
    words = _words(name)
    return next((value for known, value in SETTINGS if known & words), None)


def _words(name: str) -> set[str]:
    """Return the words of a name such as "attention_mask" or "inputLength", and each two neighbours as one."""
    parts = [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    return {*parts, *(a + b for a, b in pairwise(parts))}


def _type(spec: InputSpec) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
