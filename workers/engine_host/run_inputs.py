"""What is fed to an engine: a client's inputs, checked, or fixed ones to verify it with."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from app.definitions.parameter import InputSpec
from app.definitions.profiles import Profile, opt_shapes
from app.weights.dtypes import DTYPES, numpy_dtype
from workers.channel.messages import BackendError
from workers.engine_host.tensors import Array, dtype_name, raw


def check_inputs(
    arrays: Mapping[str, Array],
    specs: Sequence[InputSpec],
    profiles: Sequence[Profile],
    *,
    negative_indices: bool = True,
) -> None:
    """Raise BackendError "bad_inputs", naming every fault at once, unless an engine can take these arrays.

    Names, dtypes, ranks and fixed dimensions must be those of the definition, equal symbols must have equal
    sizes, indices must lie inside what they index, and with profiles the shapes must lie within one of them.
    `negative_indices` says whether the backend counts negative indices from the end.
    """
    faults = [*_name_faults(arrays, specs)]
    given = [spec for spec in specs if spec.name in arrays]
    sizes: dict[str, tuple[int, str]] = {}
    for spec in given:
        faults += _faults(arrays[spec.name], spec if negative_indices else replace(spec, low=0), sizes)
    if not faults and profiles:
        faults += _profile_faults(arrays, profiles)
    if faults:
        raise BackendError("bad_inputs", "; ".join(faults) + ". Send a safetensors file with inputs that fit.")


def fixed_inputs(
    specs: Sequence[InputSpec], profiles: Sequence[Profile], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Array]:
    """Return the inputs a definition is verified and measured with: the same for the same arguments, everywhere.

    Inputs that `shapes` leaves out have the shapes of `opt_shapes`. Values come from PCG64 seeded by the
    input's name: floats are standard normal, integers uniform in [0, high). Integers without `high` and booleans are
    ones, as masks need.
    """
    shapes = {**opt_shapes(specs, profiles), **(shapes or {})}
    return {spec.name: _fixed(spec, shapes[spec.name]) for spec in specs}


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
    if spec.high is not None and array.size and DTYPES[dtype_name(array)].kind in {"int", "uint"}:
        low, high = int(array.min()), int(array.max())
        if low < spec.low or high >= spec.high:
            wrong = low if low < spec.low else high
            yield f"input {spec.name} holds {wrong}; its values must lie in [{spec.low}, {spec.high})"


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


def _fixed(spec: InputSpec, shape: tuple[int, ...]) -> Array:
    kind, dtype = DTYPES[spec.dtype].kind, numpy_dtype(spec.dtype)
    random = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(spec.name.encode()).digest()[:16])))
    values: np.ndarray[Any, np.dtype[Any]]
    if kind == "float":
        values = random.standard_normal(shape)
    elif kind != "bool" and spec.high:
        values = random.integers(0, min(spec.high, np.iinfo(dtype).max), shape)
    else:
        values = np.ones(shape)
    return values.astype(dtype)


def _type(spec: InputSpec) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
