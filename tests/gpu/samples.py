"""Weights and profiles of the networks that are built on the GPU."""

from pathlib import Path

import numpy as np

from app.definitions.parameter import InputSpec
from app.definitions.profiles import Profile, Range
from tests.workers.networks import Network, checkpoint
from workers.channel.messages import TensorFile


def between(network: Network, low: dict[str, int], best: dict[str, int], high: dict[str, int]) -> Profile:
    """A profile with sizes by symbol."""

    def shape(spec: InputSpec, sizes: dict[str, int]) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape)

    return {one.name: Range(shape(one, low), shape(one, best), shape(one, high)) for one in network.inputs}


def text(network: Network) -> Profile:
    return between(network, {"batch": 1, "sequence": 1}, {"batch": 2, "sequence": 16}, {"batch": 4, "sequence": 64})


def rows(network: Network) -> Profile:
    return between(network, {"batch": 1}, {"batch": 4}, {"batch": 16})


def weights_of(network: Network, folder: Path, seed: int) -> dict[str, TensorFile]:
    """Random weights: gains of normalisations are near 1, as in any trained network."""
    values = {name: value * np.asarray(0.3, value.dtype) for name, value in network.weights(seed).items()}
    values |= {
        name: values[name] + np.asarray(1, values[name].dtype) for name in values if "ln_" in name or "var" in name
    }
    return checkpoint(folder / f"weights-{seed}.safetensors", values)
