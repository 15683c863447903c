import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.processes import confinement, seccomp
from app.processes.confinement import Measure, confine
from app.processes.landlock import View, landlock_version
from app.processes.python_files import python_files

CONFINED = """
import json, os, signal, socket, sys
from dataclasses import asdict
from pathlib import Path
from app.processes.confinement import confine
from app.processes.landlock import View
from app.processes.python_files import device_nodes, python_files

private, readable, writable, own = map(Path, sys.argv[1:5])
view = View((*python_files([private]), readable), (writable,), device_nodes(gpu=False), (own,))
measures = confine(view, [int(family) for family in sys.argv[5:]])

tries = {
    "internet": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
    "internet 6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
    "local socket": lambda: socket.socket(socket.AF_UNIX).close(),
    "pair of sockets": lambda: [one.close() for one in socket.socketpair()],
    "read the secret": lambda: (private / "key").read_text(),
    "read what is readable": lambda: (readable / "weights").read_text(),
    "write what is readable": lambda: (readable / "weights").write_text("other"),
    "truncate what is readable": lambda: os.truncate(readable / "weights", 0),
    "add to what is readable": lambda: (readable / "more").write_text("other"),
    "open to all": lambda: (readable / "weights").chmod(0o666),
    "write": lambda: (writable / "plan.part").write_text("plan"),
    "rename": lambda: (writable / "plan.part").rename(writable / "plan"),
    "link to the secret": lambda: (writable / "link").symlink_to(private / "key"),
    "name the secret": lambda: (writable / "name").hardlink_to(private / "key"),
    "write its own": lambda: (own / "graph").write_text("graph"),
    "link in its own": lambda: (own / "link").symlink_to(readable / "weights"),
    "read through a link of its own": lambda: (own / "link").read_text(),
    "read the secret through a link": lambda: [(own / "key").symlink_to(private / "key"), (own / "key").read_text()],
    "move a link out": lambda: (own / "link").rename(writable / "link"),
    "move a folder with a link out": lambda: [
        (own / "folder").mkdir(),
        (own / "folder" / "link").symlink_to(private / "key"),
        (own / "folder").rename(writable / "folder"),
    ],
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "parent's environment": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "parent's memory": lambda: open(f"/proc/{os.getppid()}/mem", "rb").close(),
    "import": lambda: __import__("numpy"),
    "device": lambda: Path("/dev/urandom").open("rb").read(1),
}
done = {}
for name, one in tries.items():
    try:
        one()
    except OSError as error:
        assert error.errno in {1, 13, 18}, error
        done[name] = False
    else:
        done[name] = True
print(json.dumps({
    "measures": {name: asdict(one) for name, one in measures.items()},
    "done": done,
    "status": dict(line.split() for line in open("/proc/self/status") if line.startswith(("NoNew", "CapEff"))),
}))
"""
with_landlock = pytest.mark.skipif(not landlock_version(), reason="this kernel has no Landlock")
with_filter = pytest.mark.skipif(not seccomp.has_filter(), reason="no filter is known for this processor")


def confined(folder: Path, *families: int) -> dict[str, Any]:
    """What a confined process could do and says of itself."""
    paths = [folder / name for name in ("private", "readable", "writable", "own")]
    for path in paths:
        path.mkdir()
    (paths[0] / "key").write_text("secret")
    (paths[1] / "weights").write_text("weights")
    arguments = [*map(str, paths), *map(str, families)]
    said = subprocess.run(
        [sys.executable, "-c", CONFINED, *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 0, said.stderr
    assert (paths[1] / "weights").read_text() == "weights"
    return json.loads(said.stdout)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return confined(tmp_path_factory.mktemp("confined"))


def test_it_gains_no_privilege_and_has_none_of_roots(process: dict[str, Any]) -> None:
    assert process["status"]["NoNewPrivs:"] == "1"
    assert int(process["status"]["CapEff:"], 16) & ~confinement.CAP_DAC_OVERRIDE == 0
    assert process["measures"]["privileges"]["holds"]


@with_filter
@pytest.mark.parametrize("what", ["internet", "internet 6", "local socket", "open to all"])
def test_the_filter_refuses(process: dict[str, Any], what: str) -> None:
    assert not process["done"][what]
    assert process["measures"]["network"] == {"holds": True, "detail": "seccomp: no sockets"}


@with_landlock
@pytest.mark.parametrize(
    "what",
    [
        "read the secret",
        "write what is readable",
        "truncate what is readable",
        "add to what is readable",
        "link to the secret",
        "name the secret",
        "read the secret through a link",
        "move a link out",
        "move a folder with a link out",
        "parent's environment",
        "parent's memory",
    ],
)
def test_files_and_processes_that_it_does_not_need_are_out_of_reach(process: dict[str, Any], what: str) -> None:
    assert not process["done"][what]
    assert process["measures"]["files"] == {"holds": True, "detail": f"Landlock {landlock_version()}"}


@pytest.mark.skipif(landlock_version() < 6, reason="this kernel's Landlock does not guard signals")
def test_it_cannot_send_signals_to_others(process: dict[str, Any]) -> None:
    assert not process["done"]["signal the parent"]


@pytest.mark.parametrize(
    "what",
    [
        "pair of sockets",
        "read what is readable",
        "write",
        "rename",
        "write its own",
        "link in its own",
        "read through a link of its own",
        "import",
        "device",
    ],
)
def test_its_work_it_can_do(process: dict[str, Any], what: str) -> None:
    assert process["done"][what]


@with_filter
def test_sockets_of_a_family_that_is_needed_stay(tmp_path: Path) -> None:
    process = confined(tmp_path, 1)
    assert (process["done"]["local socket"], process["done"]["internet"]) == (True, False)
    assert "of this machine only" in process["measures"]["network"]["detail"]


def test_what_a_machine_cannot_do_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(confinement, "prctl", refused)
    monkeypatch.setattr(confinement, "landlock_version", lambda: 0)
    monkeypatch.setattr(confinement, "has_filter", lambda: False)
    measures = confine(View())
    assert [one.holds for one in measures.values()] == [False] * 3
    assert "EPERM" in measures["privileges"].detail
    assert os.uname().machine in measures["network"].detail
    assert "Linux 5.13" in measures["files"].detail
    assert isinstance(measures["files"], Measure)


def test_a_private_folder_within_what_is_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = tmp_path / "lib" / "service" / "data"
    for path in (private, tmp_path / "lib" / "service" / "code", tmp_path / "lib" / "other"):
        path.mkdir(parents=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "lib"))
    below = {path for path in python_files([private]) if path.is_relative_to(tmp_path)}
    assert below == {tmp_path / "lib" / "other", tmp_path / "lib" / "service" / "code"}


def test_of_a_checkout_only_modules_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    for name in ("package/__init__.py", "module.py", ".env"):
        (tmp_path / name).touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "namespace" / "part").mkdir(parents=True)
    (tmp_path / "namespace" / "part" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    below = {path for path in python_files() if path.is_relative_to(tmp_path)}
    assert below == {tmp_path / "package", tmp_path / "module.py", tmp_path / "namespace"}


def test_where_packages_are_installed_all_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("runtime-1.0.dist-info", "runtime.libs"):
        (tmp_path / name).mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert tmp_path in python_files()
