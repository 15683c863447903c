"""The library that engine hosts with a GPU preload, in a process of its own with a driver that is none."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

# Counts the calls: a value that is asked of the driver anew is a new one. Attribute 7 is there from the second time on.
DRIVER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
static int asked;
void *cuMarker(void) { return dlsym(RTLD_DEFAULT, "cuMarker"); }
void *marker(void) { return dlsym(RTLD_DEFAULT, "marker"); }
int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    asked++;
    if (attribute == 7 && asked == 1)
        return 999;
    *value = -1000 * device - asked;
    return 0;
}
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuGetProcAddress_v2(const char *symbol, void **function, int version, unsigned long flags, int *status);
int cuGetProcAddress(const char *symbol, void **function, int version, unsigned long flags)
{
    if (!strcmp(symbol, "cuDeviceGetAttribute")) *function = cuDeviceGetAttribute;
    else if (!strcmp(symbol, "cuDriverGetVersion")) *function = cuDriverGetVersion;
    else if (strcmp(symbol, "cuGetProcAddress")) { *function = 0; return 500; }
    else if (version >= 12000) *function = cuGetProcAddress_v2;
    else *function = cuGetProcAddress;
    return 0;
}
int cuGetProcAddress_v2(const char *symbol, void **function, int version, unsigned long flags, int *status)
{
    *status = 0;
    return cuGetProcAddress(symbol, function, version, flags);
}
"""
# A library in front of the driver, which has the driver's names and asks the driver.
FRONT = r"""
#include <dlfcn.h>
static int (*driver)(int *, int, int);
__attribute__((constructor)) static void find(void)
{
    driver = (int (*)(int *, int, int))dlsym(dlopen(DRIVER, RTLD_NOW), "cuDeviceGetAttribute");
}
int cuDeviceGetAttribute(int *value, int attribute, int device) { return driver(value, attribute, device); }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
"""
CLIENT = """
import ctypes, json, sys
path, way, wanted = sys.argv[1:]
driver = ctypes.CDLL(path)

def found(get, symbol, *more):
    pointer = ctypes.c_void_p()
    version = 11000 if way == "11" else 12000
    status = get(symbol, ctypes.byref(pointer), version, ctypes.c_ulong(0), *more)
    return None if status else pointer.value

def function(symbol):
    if way == "dlsym":
        return getattr(driver, symbol.decode())
    outcome = ctypes.c_int()
    if way == "11":
        address = found(driver.cuGetProcAddress, symbol)
    elif way == "12":
        address = found(driver.cuGetProcAddress_v2, symbol, ctypes.byref(outcome))
    else:
        inner = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_ulong,
                                 ctypes.c_void_p)(found(driver.cuGetProcAddress, b"cuGetProcAddress"))
        address = found(inner, symbol, ctypes.byref(outcome))
    return address and ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)(address)

attribute, answers = function(b"cuDeviceGetAttribute"), []
for number, device in json.loads(wanted):
    value = ctypes.c_int()
    status = attribute(ctypes.byref(value), number, device)
    answers.append(value.value if status == 0 else f"failed {status}")
version = ctypes.c_int()
if way == "dlsym":
    driver.cuDriverGetVersion(ctypes.byref(version))
else:
    ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(found(driver.cuGetProcAddress, b"cuDriverGetVersion"))(
        ctypes.byref(version))
for name in ("marker", "cuMarker") if way != "dlsym" else ():
    marker = getattr(driver, name)
    marker.restype = ctypes.c_void_p
    assert marker() == ctypes.cast(marker, ctypes.c_void_p).value, name
print(json.dumps([answers, version.value, way != "dlsym" and function(b"cuNoSuchThing")]))
"""
SOURCE = Path(__file__).parents[4] / "workers" / "engine_host" / "accelerate" / "device_attributes.c"
COMPILER = shutil.which("cc")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def compile_(source: Path, library: Path, *flags: str) -> Path:
    command = [str(COMPILER), "-O2", "-shared", "-fPIC", *flags, "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "accelerate" / "device_attributes.so"
    path.parent.mkdir()
    return compile_(SOURCE, path, "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    return compile_(folder / "driver.c", folder / "libcuda.so.1", "-w", "-O0")  # so that its markers are who asks


@pytest.fixture(scope="module")
def front(driver: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("front")
    (folder / "front.c").write_text(FRONT)
    return compile_(folder / "front.c", folder / "libcuda.so.1", "-w", f'-DDRIVER="{driver}"')


def answers(driver: Path, way: str, wanted: list[tuple[int, int]], preload: Path | None) -> list[int | str]:
    """Ask for (attribute, device) one after the other and return the values, or what failed."""
    environment = os.environ | {"LD_PRELOAD": str(preload or "")}
    command = [sys.executable, "-c", CLIENT, str(driver), way, json.dumps(wanted)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    values: list[int | str]
    values, version, missing = json.loads(done.stdout)
    assert version == 12080  # of another function, which is passed on
    assert not missing
    return values


@pytest.mark.parametrize("way", ["dlsym", "11", "12", "12 through 11"])
def test_an_attribute_is_asked_of_the_driver_once_however_it_is_found(library: Path, driver: Path, way: str) -> None:
    wanted = [(36, 0), (13, 0), (36, 0), (13, 0)]
    assert answers(driver, way, wanted, library) == [-1, -2, -1, -2]
    assert answers(driver, way, wanted, None) == [-1, -2, -3, -4]


@pytest.mark.parametrize("is_preloaded", [True, False])
def test_a_process_can_tell_whether_it_is_there(
    library: Path,
    is_preloaded: bool,  # noqa: FBT001 - a case
) -> None:
    command = [sys.executable, "-c", "from workers.engine_host import device; print(device._remembers_attributes())"]
    environment = os.environ | {"LD_PRELOAD": str(library) if is_preloaded else ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(is_preloaded)


def test_of_other_devices_and_unheard_of_attributes_nothing_is_remembered(library: Path, driver: Path) -> None:
    wanted = [(36, 1), (36, 1), (-1, 0), (-1, 0), (1 << 20, 0), (1 << 20, 0)]
    assert answers(driver, "12", wanted, library) == [-1001, -1002, -3, -4, -5, -6]


def test_what_may_change_is_not_remembered(library: Path, driver: Path) -> None:
    wanted = [(attribute, 0) for attribute in (16, 17, 20)] * 2
    assert answers(driver, "12", wanted, library) == [-1, -2, -3, -4, -5, -6]


def test_a_failure_is_not_remembered(library: Path, driver: Path) -> None:
    assert answers(driver, "12", [(7, 0), (7, 0), (7, 0)], library) == ["failed 999", -2, -2]


def test_a_library_in_front_of_the_driver_goes_on_asking_it(library: Path, front: Path) -> None:
    answer = answers(front, "dlsym", [(36, 0), (36, 0), (13, 0)], library)
    assert answer == [-1, -1, -2]


def test_what_is_compiled_at_installation_is_this_source() -> None:
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())
    (module,) = project["tool"]["setuptools"]["ext-modules"]
    assert (
        module["name"].replace(".", "/") + ".c"
        == module["sources"][0]
        == "workers/engine_host/accelerate/device_attributes.c"
    )
