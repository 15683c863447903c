"""The entries of the backends `tensorrt` and `tensorrt_rtx`, which are read before a TensorRT is imported."""

from app.backends import BackendEntry

FACTORY = "workers.engine_host.backends.tensorrt.opening:open_backend"
PREFLIGHT = "workers.engine_host.backends.tensorrt.preflight"

TENSORRT = BackendEntry(
    package="tensorrt",
    distributions=(
        *("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11"),
        *("tensorrt-bindings", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings", "tensorrt-cu11-bindings"),
    ),
    devices=("cuda",),
    factory=FACTORY,
    requirement="enginesmith[tensorrt]",
    preflight=f"{PREFLIGHT}:check_tensorrt",
)
TENSORRT_RTX = BackendEntry(
    package="tensorrt_rtx",
    distributions=(
        *("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
        *("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
    ),
    devices=("cpu", "cuda"),
    factory=FACTORY,
    requirement="enginesmith[tensorrt-rtx]",
    preflight=f"{PREFLIGHT}:check_tensorrt_rtx",
)
