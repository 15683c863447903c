"""The TensorRT that this process uses: `tensorrt` itself, or else `tensorrt_rtx`, whose Python API is the same.

One process uses only one of them. If both are installed, that is `tensorrt`; `tensorrt_rtx` needs an environment of its
own.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from app.backends import installed_version

__all__ = ["NAME", "extents", "trt"]

NAME = "tensorrt" if installed_version("tensorrt") else "tensorrt_rtx"

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = import_module(NAME)


def extents(dims: trt.Dims) -> tuple[int, ...]:
    """Return the size of each axis, or -1 if it is not known yet."""
    return tuple(dims[axis] for axis in range(len(dims)))
