"""What the fleet shows of a TensorRT: the platforms that it compiles for, and what it can do here."""

from dataclasses import dataclass

from workers.channel.messages import BackendError
from workers.engine_host.backends.base import Offered
from workers.engine_host.backends.tensorrt.capabilities import (
    Capabilities,
    conflicts,
    default_target,
    lacking,
    notes,
    options_schema,
    target_name,
)
from workers.engine_host.backends.tensorrt.library import NAME


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU that engines are compiled for and run on: its name, and its compute capability ("9.0")."""

    name: str
    compute_capability: str

    @property
    def is_ampere_plus(self) -> bool:
        """Whether it runs plans that TensorRT compiles for Ampere and all newer GPUs."""
        return int(self.compute_capability.partition(".")[0]) >= 8

    def supported(self, can: Capabilities) -> "Gpu":
        """Return this GPU; raises BackendError "unsupported_gpu" if this TensorRT has no kernels for it."""
        if can.runs_on(self.compute_capability):
            return self
        raise BackendError(
            "unsupported_gpu",
            f"{NAME} {can.version} has no kernels for the {self.name} (compute capability {self.compute_capability}), "
            f"only for {', '.join(can.targets)}. Use TensorRT here, or start a worker with a GPU of these.",
        )

    def shared(self, level: str) -> str:
        """Name the GPUs, this one included, that run a plan compiled here with a level of hardware compatibility."""
        return f"compute_capability_{self.compute_capability}" if level == "same_compute_capability" else level


def offered(can: Capabilities, gpu: Gpu | None) -> Offered:
    """Return what the fleet shows of this TensorRT on this GPU, or without one."""
    refits = gpu is not None
    names = [gpu.name, *_shared_platforms(can, gpu)] if gpu is not None else _targets(can)
    platforms = tuple(f"{can.version}/{name}" for name in names)
    loads = (*platforms, *(f"{can.version}/{name}" for name in _own_target(can, gpu))) if gpu is not None else ()
    capabilities = {
        "build": True,
        "refit": refits,
        "run": refits,
        "plan_holds_weights": True,
        "profiles": "required for dynamic inputs",
        "preflight": "before jobs",
        "options": options_schema(can, refit=refits),
        "lacks": lacking(can, refit=refits),
        "conflicts": conflicts(can, refit=refits),
        "notes": notes(can),
        "progress": can.progress_monitor,
        "timing_cache": _timing_cache(can),
        "async_refit": refits and can.async_refit,
    }
    return Offered(can.version, platforms, loads, capabilities)


def _shared_platforms(can: Capabilities, gpu: Gpu) -> list[str]:
    return [gpu.shared(level.lower()) for level in can.hardware_levels if level != "AMPERE_PLUS" or gpu.is_ampere_plus]


def _own_target(can: Capabilities, gpu: Gpu) -> list[str]:
    """Return the name of this GPU in the platform of a plan that a machine without it has compiled.

    Only TensorRT-RTX compiles such plans.
    """
    return [target_name(gpu.compute_capability)] if can.targets else []


def _timing_cache(can: Capabilities) -> str:
    if not can.times_kernels:
        return "none"
    return "stored" if can.readable_timing_cache else "kept in memory"


def _targets(can: Capabilities) -> list[str]:
    """Return the GPUs that are compiled for if this machine has none, the default first."""
    first = default_target(can)
    return [first, *(target for target in can.targets if target != first)]
