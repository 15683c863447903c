"""Calls of the CUDA runtime, checked."""

from importlib import import_module
from typing import Any

from workers.channel.messages import DEVICE_FAILED, DEVICE_OUT_OF_MEMORY, BackendError

OUT_OF_MEMORY = "cudaErrorMemoryAllocation"


class CudaError(BackendError):
    """A CUDA call failed; `name` is CUDA's name for the error, such as "cudaErrorIllegalAddress".

    `code` is "device_out_of_memory" or "device_failed". After the first, the device works as before. After the second,
    nothing in this process should rely on the device: most such errors come back from every later call.
    """

    name = ""


def cudart() -> Any:  # noqa: ANN401 - cuda-bindings is typed by its functions' docstrings only
    """Return the CUDA runtime of cuda-bindings; raises BackendError "cuda_not_installed" if it is missing."""
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise BackendError(
            "cuda_not_installed",
            f"CUDA cannot be called from Python: {error}. Install cuda-bindings in the major version of the "
            "machine's CUDA driver (pip install 'enginesmith[tensorrt]'), or use --device cpu.",
        ) from error


def check(result: tuple[Any, ...]) -> Any:  # noqa: ANN401 - as the call has it
    """Return the result of a call without its status: None, one value or a tuple. Raises CudaError if it failed."""
    status, *values = result
    if int(status) != 0:
        cudart().cudaGetLastError()  # clears the error that CUDA remembers; TensorRT would take it for its own
        raise failure(status)
    return values[0] if len(values) == 1 else tuple(values) or None


def failure(status: Any) -> CudaError:  # noqa: ANN401 - a cudaError_t
    """Return the error for a status."""
    name, text = (_words(answer) for answer in (cudart().cudaGetErrorName(status), cudart().cudaGetErrorString(status)))
    error = CudaError(*_explained(name, text))
    error.name = name
    return error


def _words(answer: tuple[Any, bytes]) -> str:
    return answer[1].decode(errors="replace")


def _explained(name: str, text: str) -> tuple[str, str]:
    if name == OUT_OF_MEMORY:
        return DEVICE_OUT_OF_MEMORY, (
            f"The GPU's memory does not suffice ({name}: {text}). Lower ENGINESMITH_RESIDENT_BYTES, so that fewer "
            "engines stay loaded, or the max shapes of the engine's profiles."
        )
    return DEVICE_FAILED, (
        f"CUDA failed ({name}: {text}). The engine host starts anew with the next job; if it fails again, "
        "look for hardware faults (`nvidia-smi`, `dmesg`)."
    )
