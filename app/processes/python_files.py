"""The files that a Python process reads wherever it runs: the interpreter, installed packages, libraries, devices."""

import os
import site
import sys
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/proc", "/sys", "/nix/store"),
    *("/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group"),
    *("/etc/OpenCL", "/etc/alternatives", "/run/nvidia-persistenced", "/run/nvidia-fabricmanager"),
)
LIBRARY_FOLDERS = Path("/etc/ld.so.conf.d")
NODES = ("null", "zero", "full", "random", "urandom")
GPU_NODES = ("nvidia*", "dri", "dxg", "shm")


def python_files(private: Collection[Path] = ()) -> tuple[Path, ...]:
    """Return what a Python process with this one's packages reads, without the folders `private` if they lie in it.

    Of a folder on the module path that packages are not installed in, such as a checkout, it is packages and modules
    only. What lies beside them may be anyone's.
    """
    hidden = [path.resolve() for path in private]
    trees = [*map(Path, SYSTEM), *_libraries(), *_installation()]
    return tuple(dict.fromkeys(path for tree in (*trees, *_modules(trees)) for path in _around(tree.resolve(), hidden)))


def device_nodes(*, gpu: bool) -> tuple[Path, ...]:
    """Return the nodes of devices that every process uses, and those of the GPUs."""
    found = [Path("/dev", name) for name in NODES]
    if gpu:
        mps = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")  # noqa: S108 - where NVIDIA's server has it
        found += [node for pattern in GPU_NODES for node in Path("/dev").glob(pattern)] + [Path(mps)]
    return tuple(found)


def _installation() -> set[Path]:
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    packages = [*site.getsitepackages(), site.getusersitepackages()]
    return {Path(one) for one in (*prefixes, *packages)}


def _libraries() -> Iterator[Path]:
    """Yield the folders that the loader of libraries looks in besides those of the system."""
    yield from (Path(one) for one in os.environ.get("LD_LIBRARY_PATH", "").split(":") if one)
    yield from (Path(one) for one in os.environ.get("LD_PRELOAD", "").replace(" ", ":").split(":") if one)
    for file in LIBRARY_FOLDERS.glob("*.conf"):
        lines = (line.strip() for line in file.read_text(errors="replace").splitlines())
        yield from (Path(line) for line in lines if line.startswith("/"))


def _modules(known: Collection[Path]) -> Iterator[Path]:
    """Yield what else can be imported: packages and modules of other folders, and what is imported already."""
    loaded = (getattr(sys.modules.get(name), "__path__", None) for name in ("app", "workers"))
    yield from (Path(one) for folders in loaded for one in folders or ())
    others = (Path(entry) for entry in sys.path if entry)
    for folder in others:
        if not any(folder.is_relative_to(tree) for tree in known):
            yield from _importable(folder)


@cache
def _importable(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return (folder,)  # an archive of modules
    if any(folder.glob("*.dist-info")):
        return (folder,)  # packages were installed there, with their libraries beside them
    return tuple(one for one in folder.iterdir() if one.suffix in {".py", ".so", ".egg-info"} or _is_package(one))


def _is_package(path: Path) -> bool:
    """Whether this is a package, or a namespace of packages."""
    return any(path.glob("*.py")) or any(path.glob("*/__init__.py"))


def _around(tree: Path, private: Collection[Path]) -> Iterator[Path]:
    """Yield the tree, or what is in it beside the private folders."""
    if not any(folder.is_relative_to(tree) for folder in private):
        yield tree
    elif tree not in private and tree.is_dir():
        for one in tree.iterdir():
            yield from _around(one, private)
