"""Opening the adapter on a device."""

from pathlib import Path

from workers.channel.messages import BackendError
from workers.engine_host.backends.base import Room
from workers.engine_host.backends.tensorrt.backend import TensorrtBackend
from workers.engine_host.backends.tensorrt.library import NAME
from workers.engine_host.backends.tensorrt.offer import Gpu
from workers.engine_host.device import describe_device
from workers.engine_host.tensors import ParameterFiles


def open_backend(name: str, device: str, scratch: Path, files: ParameterFiles, room: Room) -> TensorrtBackend:
    """Return the backend; raises BackendError "other_library" if this process uses the other TensorRT."""
    if name != NAME:
        raise BackendError(
            "other_library",
            f"{NAME} is installed as well and is the one used. Run {name} from an environment without {NAME}.",
        )
    return TensorrtBackend(_gpu(device) if device.startswith("cuda") else None, scratch, files, room)


def _gpu(device: str) -> Gpu:
    described = describe_device(device)
    return Gpu(described["name"], described["compute_capability"])
