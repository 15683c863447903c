"""The library that engine hosts with a GPU preload, in a process of its own with a driver that is none."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workers.device import device_attributes_library

# Counts the calls: a value that is asked of the driver anew is a new one. Attribute 7 is there from the second time on.
DRIVER = r"""
#include <string.h>
static int asked;
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
print(json.dumps([answers, version.value, way != "dlsym" and function(b"cuNoSuchThing")]))
"""
LIBRARY = device_attributes_library()
COMPILER = shutil.which("cc")

pytestmark = pytest.mark.skipif(LIBRARY is None or COMPILER is None, reason="no C compiler")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    path = folder / "libcuda.so.1"
    subprocess.run([str(COMPILER), "-w", "-shared", "-fPIC", "-o", path, folder / "driver.c"], check=True)
    return path


def answers(driver: Path, way: str, wanted: list[tuple[int, int]], *, preload: str | None = LIBRARY) -> list[int | str]:
    """Ask for (attribute, device) one after the other and return the values, or what failed."""
    environment = os.environ | {"LD_PRELOAD": preload or ""}
    command = [sys.executable, "-c", CLIENT, str(driver), way, json.dumps(wanted)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    values: list[int | str]
    values, version, missing = json.loads(done.stdout)
    assert version == 12080  # of another function, which is passed on
    assert not missing
    return values


@pytest.mark.parametrize("way", ["dlsym", "11", "12", "12 through 11"])
def test_an_attribute_is_asked_of_the_driver_once_however_it_is_found(driver: Path, way: str) -> None:
    wanted = [(16, 0), (13, 0), (16, 0), (13, 0)]
    assert answers(driver, way, wanted) == [-1, -2, -1, -2]
    assert answers(driver, way, wanted, preload=None) == [-1, -2, -3, -4]


def test_of_other_devices_and_unheard_of_attributes_nothing_is_remembered(driver: Path) -> None:
    wanted = [(16, 1), (16, 1), (-1, 0), (-1, 0), (1 << 20, 0), (1 << 20, 0)]
    assert answers(driver, "12", wanted) == [-1001, -1002, -3, -4, -5, -6]


def test_a_failure_is_not_remembered(driver: Path) -> None:
    assert answers(driver, "12", [(7, 0), (7, 0), (7, 0)]) == ["failed 999", -2, -2]
