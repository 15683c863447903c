"""What CUDA says of the one GPU that this process sees."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.channel.messages import BackendError
from workers.engine_host.cuda.runtime import check, cudart, failure

ATTRIBUTES = {
    "multiprocessors": "cudaDevAttrMultiProcessorCount",
    "l2_bytes": "cudaDevAttrL2CacheSize",
    "persisting_l2_bytes": "cudaDevAttrMaxPersistingL2CacheSize",
    "memory_bus_bits": "cudaDevAttrGlobalMemoryBusWidth",
    "shared_bytes_per_block": "cudaDevAttrMaxSharedMemoryPerBlock",
    "shared_bytes_per_multiprocessor": "cudaDevAttrMaxSharedMemoryPerMultiprocessor",
    "texture_alignment": "cudaDevAttrTextureAlignment",
    "integrated": "cudaDevAttrIntegrated",
    "ecc": "cudaDevAttrEccEnabled",
    "clock": "cudaDevAttrClockRate",  # in kHz, as the next
    "memory_clock": "cudaDevAttrMemoryClockRate",
}
NO_DRIVER = "cudaErrorInsufficientDriver"
NO_GPU = "cudaErrorNoDevice"


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Device memory in bytes; `free` is what all processes together leave."""

    free: int
    total: int


def memory_info() -> MemoryInfo:
    """Return the device's memory; raises CudaError."""
    return MemoryInfo(*map(int, check(cudart().cudaMemGetInfo())))


def device_facts(device: str) -> dict[str, Any]:
    """Return what the fleet shows of the GPU, which errors call `device` (see `engine_host.device.describe_device`).

    "facts" are those of its fingerprint.

    Raises BackendError "no_driver", "no_gpu" or "cuda_not_installed", and CudaError.
    """
    _check_present(device)
    properties = check(cudart().cudaGetDeviceProperties(0))
    memory = memory_info()
    told = {
        "kind": "cuda",
        "name": properties.name.decode(errors="replace").rstrip("\0"),
        "memory_total": memory.total,
        "memory_free": memory.free,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": _cuda_version(check(cudart().cudaDriverGetVersion())),
    }
    return told | {"facts": _facts(told)}


def _facts(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides which plans the GPU loads and how fast it runs them; clocks in MHz, the fastest.

    TensorRT writes most of these into a plan and warns at a GPU in which they differ.
    """
    attributes = cudart().cudaDeviceAttr
    found = {
        name: int(check(cudart().cudaDeviceGetAttribute(getattr(attributes, attribute), 0)))
        for name, attribute in ATTRIBUTES.items()
        if hasattr(attributes, attribute)
    }
    clocks = {f"{name}_mhz": found.pop(name, 0) // 1000 for name in ("clock", "memory_clock")}
    return {
        "name": told["name"],
        "compute_capability": told["compute_capability"],
        "memory_bytes": told["memory_total"],
        "driver": told["driver"],
        **found,
        **{name: bool(found[name]) for name in ("ecc", "integrated") if name in found},
        **{name: mhz for name, mhz in clocks.items() if mhz},  # a GPU inside a processor may tell none
    }


def _check_present(device: str) -> None:
    status, count = cudart().cudaGetDeviceCount()
    if int(status) == 0 and count:
        return
    error = failure(status)
    if error.name == NO_DRIVER:
        raise BackendError("no_driver", _no_driver(device))
    if error.name == NO_GPU or not count:
        raise BackendError(
            "no_gpu",
            f"{device}: the NVIDIA driver shows no such GPU ({error.name}). `nvidia-smi -L` lists those there are; "
            "look at CUDA_VISIBLE_DEVICES and at what the container was given, or use --device cpu.",
        )
    raise error


def _no_driver(device: str) -> str:
    driver, runtime = (check(call()) for call in (cudart().cudaDriverGetVersion, cudart().cudaRuntimeGetVersion))
    if driver == 0:
        return (
            f"{device}: no NVIDIA driver. Install it on this machine; a container needs the NVIDIA Container Toolkit "
            "and a GPU (docker run --gpus all). Or use --device cpu."
        )
    return (
        f"{device}: the NVIDIA driver takes CUDA up to {_cuda_version(driver)}, cuda-bindings is of CUDA "
        f"{_cuda_version(runtime)}. Install a newer driver, or pip install 'cuda-bindings<{driver // 1000 + 1}'."
    )


def _cuda_version(number: int) -> str:
    """Turn CUDA's 12080 into "12.8"."""
    return f"{number // 1000}.{number % 1000 // 10}"
