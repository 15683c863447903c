"""The part of CUDA that engines need: a thin, checked layer over cuda-bindings.

Only the engine host of a GPU uses it, on the one GPU that it sees.
"""

from workers.engine_host.cuda.device import MemoryInfo, device_facts, memory_info
from workers.engine_host.cuda.memory import DeviceBuffer, copy_to_device, copy_to_host, page_locked
from workers.engine_host.cuda.runtime import CudaError
from workers.engine_host.cuda.staging import Staging
from workers.engine_host.cuda.stream import CudaEvent, Stream

__all__ = [
    "CudaError",
    "CudaEvent",
    "DeviceBuffer",
    "MemoryInfo",
    "Staging",
    "Stream",
    "copy_to_device",
    "copy_to_host",
    "device_facts",
    "memory_info",
    "page_locked",
]
