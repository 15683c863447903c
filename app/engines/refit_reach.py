"""Finding the parameters that new weights change but a refit cannot."""

from collections.abc import Collection, Hashable, Mapping

from app.bindings.report import BindingReport
from app.fleet.refit_patterns import RefitPatterns
from app.weights.manifest import TensorEntry


def beyond(
    before: Mapping[str, Hashable],
    after: Mapping[str, Hashable],
    patterns: RefitPatterns | None,
    fixed: Collection[str] = (),
) -> list[str]:
    """Return, sorted, the parameters whose contents differ `before` and `after` and that no refit can change.

    A refit cannot change a parameter that the compiled engine has not kept (`fixed`). If there are `patterns`, it
    cannot change a parameter that none of them matches either.
    """
    differing = (name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name))
    return [name for name in differing if name in fixed or (patterns is not None and not patterns.match(name))]


def parameter_contents(report: BindingReport, tensors: Mapping[str, TensorEntry]) -> dict[str, Hashable]:
    """Return by parameter all that decides its value: dtype, shape, transforms and stored tensors."""
    return {
        binding.parameter: (
            binding.dtype,
            binding.shape,
            binding.transforms,
            tuple((entry.dtype, entry.shape, entry.blake3) for entry in (tensors[name] for name in binding.tensors)),
        )
        for binding in report.bindings
    }
