"""Looks at the bindings of releases, each in a child process: two of them cannot be imported into one.

`python -m benchmarks.tensorrt_bindings.look FOLDER...` prints a JSON list of what each unpacked wheel has. Its
environment must lead to the stand-ins for TensorRT's libraries (`LD_LIBRARY_PATH`).
"""

import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from benchmarks.tensorrt_bindings.callbacks import CALLBACKS
from benchmarks.tensorrt_bindings.wheels import Release, stand_in

ENUM_ATTRIBUTES = ("name", "value")  # that pybind11 gives to each member of an enum
ROOT = Path(__file__).parents[2]
ADAPTER = "workers.engine_host.backends.tensorrt"
CONSTANT = 16  # bytes
IMPORTED = ("capabilities", "compiler", "engine", "execution", "refitting", "log", "timing_cache", "backend")


def looked_at(folders: Mapping[Release, Path]) -> dict[Release, dict[str, Any]]:
    """Return what the bindings of each release have: see `_look`.

    Raises CalledProcessError if bindings cannot be imported, or the adapter not with them.
    """
    with TemporaryDirectory(prefix="stand-ins-") as libraries:
        stand_in(Path(libraries))
        command = [sys.executable, "-m", __name__, *map(str, folders.values())]
        environment = os.environ | {"LD_LIBRARY_PATH": libraries}
        found = subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    return dict(zip(folders, json.loads(found.stdout), strict=True))


def _look(folder: str) -> dict[str, Any]:
    """Return {"enums", "classes", "values", "callbacks", "capabilities"} of the bindings in a folder, as JSON.

    "enums" has the members of each enum and their attributes, "classes" the signatures of each member of a class, as
    pybind11 writes them (a property has none), "values" the names of anything else, "callbacks" the methods that the
    bindings look up by name in a class of ours, "capabilities" what the adapter finds.
    """
    sys.path.insert(0, folder)
    package = next(path.stem for path in Path(folder).glob("*_bindings"))
    name = package.removesuffix("_bindings")
    sys.modules[f"{name}_libs"] = None  # type: ignore[assignment]  # so that libraries that are installed stay out
    library = sys.modules[name] = import_module(package)
    for module in IMPORTED:
        import_module(f"{ADAPTER}.{module}")
    used = import_module(f"{ADAPTER}.library")
    if used.trt is not library:
        raise ImportError(f"the adapter uses {used.NAME}, not {package} of {folder}")
    can = asdict(import_module(f"{ADAPTER}.capabilities").capabilities())
    can["opset"] = can.pop("parser")["opset"]  # the rest of it is no capability of the library
    code = next(Path(folder, package).glob("*.so")).read_bytes()
    callbacks = [name for names in CALLBACKS.values() for name in names if _looks_up(name.encode(), code)]
    return {**_surface(library), "callbacks": callbacks, "capabilities": can}


def _looks_up(name: bytes, code: bytes) -> bool:
    """Whether code has a name: in one piece, or cut after as many bytes as a compiler loads at once."""
    if name + b"\0" in code:
        return True
    head, rest = name[:CONSTANT], name[CONSTANT:]
    return bool(rest) and re.search(re.escape(head) + b"(?!" + re.escape(rest[:1]) + b")", code) is not None


def _surface(library: ModuleType) -> dict[str, Any]:
    enums: dict[str, list[str]] = {}
    classes: dict[str, dict[str, list[str]]] = {}
    values = []
    for name in filter(_public, dir(library)):
        one = getattr(library, name)
        if not isinstance(one, type):
            values.append(name)
        elif hasattr(one, "__members__"):
            enums[name] = [*one.__members__, *ENUM_ATTRIBUTES]
        else:
            classes[name] = {member: _signatures(one, member) for member in dir(one) if _counts(member)}
            for inner in filter(_public, dir(one)):
                if hasattr(getattr(one, inner), "__members__"):
                    enums[f"{name}.{inner}"] = [*getattr(one, inner).__members__, *ENUM_ATTRIBUTES]
    return {"enums": enums, "classes": classes, "values": values}


def _signatures(owner: type, member: str) -> list[str]:
    """Return each overload of a method as pybind11's docstring has it, without the name."""
    lines = (getattr(getattr(owner, member), "__doc__", None) or "").splitlines()
    found = [re.match(rf"(?:\d+\. )?{member}(\((?!\*args).*)$", line.strip()) for line in lines]
    return [re.sub(r"tensorrt(_rtx)?_bindings\.tensorrt(_rtx)?\.", "", one[1]) for one in found if one]


def _public(name: str) -> bool:
    return not name.startswith("_")


def _counts(name: str) -> bool:
    return name == "__init__" or _public(name)


def _main(folders: list[str]) -> None:
    for module in ("onnx", "app.bindings.arithmetic", "workers.engine_host.tensors", "workers.engine_host.onnx_graph"):
        import_module(module)  # once, for all children
    with multiprocessing.get_context("fork").Pool(maxtasksperchild=1) as pool:
        print(json.dumps(pool.map(_look, folders, chunksize=1)))


if __name__ == "__main__":
    _main(sys.argv[1:])
