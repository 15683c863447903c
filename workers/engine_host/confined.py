"""How an engine host is confined to what a device and its files need."""

import os
import shutil
import socket
import subprocess
from argparse import Namespace
from pathlib import Path

from app.processes.confinement import Measure, confine
from app.processes.landlock import View
from app.processes.python_files import device_nodes, python_files

GPU_SOCKETS = (socket.AF_UNIX, socket.AF_NETLINK)  # CUDA's driver talks to services of this machine and to the kernel
MANAGED_MEMORY = Path("/dev/nvidia-uvm")
OWN_THREADS = Path("/proc/self/task")  # CUDA's driver names its threads there, and does not start if it cannot
USER = Measure(holds=False, detail="the worker's: what a host writes is moved into the store with its owner")


def confine_host(arguments: Namespace) -> dict[str, Measure]:
    """Confine this process as `arguments` say, and return the measures by name.

    Call it before a library is loaded that starts threads.
    """
    gpu = arguments.device != "cpu"
    if gpu:
        _make_nodes()
    caches = [Path(os.environ["CUDA_CACHE_PATH"])] if gpu and os.environ.get("CUDA_CACHE_PATH") else []
    view = View(
        readable=(*python_files(arguments.private), *arguments.readable),
        writable=(*arguments.writable, *caches),
        devices=(*device_nodes(gpu=gpu), *((OWN_THREADS,) if gpu else ())),
        own=(arguments.scratch,),
    )
    return {**confine(view, GPU_SOCKETS if gpu else ()), "user": USER}


def _make_nodes() -> None:
    """Make the device nodes that are missing since the machine was started; CUDA could not, once it is confined."""
    program = shutil.which("nvidia-modprobe")
    if program is not None and not MANAGED_MEMORY.exists():
        subprocess.run([program, "-u", "-c=0"], check=False)  # noqa: S603 - NVIDIA's own, with fixed arguments
