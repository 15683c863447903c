import sysconfig
from pathlib import Path

import pytest

from workers.channel import device_environment as module
from workers.channel.device_environment import device_environment
from workers.channel.messages import BackendError

ACCELERATE = Path("engine_host", "accelerate")
ALL_MINE = {"CUDA_VISIBLE_DEVICES": "4,GPU-8f6b, 6"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the package is installed, with TensorRT 8, on a system that preloads nothing."""
    monkeypatch.setattr(module, "installed_version", {"tensorrt": "8.6.1"}.get)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "workers" / "channel" / "device_environment.py"))
    monkeypatch.setattr(module, "SYSTEM_PRELOAD", tmp_path / "ld.so.preload")
    (tmp_path / "workers" / ACCELERATE).mkdir(parents=True)
    return tmp_path / "workers"


def compiled(package: Path) -> Path:
    """Put a library where the installation puts it, and return its path."""
    path = package / ACCELERATE / f"device_attributes{sysconfig.get_config_var('EXT_SUFFIX')}"
    path.touch()
    return path


def test_without_cuda_visible_devices_the_number_counts_all_gpus_in_the_order_of_their_addresses() -> None:
    environment = device_environment("cuda:2", {})
    assert (environment["CUDA_DEVICE_ORDER"], environment["CUDA_VISIBLE_DEVICES"]) == ("PCI_BUS_ID", "2")


@pytest.mark.parametrize(("device", "shown"), [("cuda:0", "4"), ("cuda:1", "GPU-8f6b"), ("cuda:2", "6")])
def test_the_number_counts_within_cuda_visible_devices(device: str, shown: str) -> None:
    assert device_environment(device, ALL_MINE)["CUDA_VISIBLE_DEVICES"] == shown


@pytest.mark.parametrize(
    ("name", "otherwise", "other"),
    [
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID", "FASTEST_FIRST"),
        ("CUDA_MODULE_LOADING", "LAZY", "EAGER"),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=0:glibc.malloc.arena_max=2"),
    ],
)
def test_what_is_set_is_kept(name: str, otherwise: str, other: str) -> None:
    assert device_environment("cuda:0", {})[name] == otherwise
    assert device_environment("cuda:0", {name: other})[name] == other


def test_large_pages_come_with_whatever_else_is_tuned() -> None:
    environment = device_environment("cuda:0", {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"})
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("version", ["8.6.1", "unknown"])
def test_what_remembers_attributes_is_preloaded_where_it_was_compiled(
    package: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(module, "installed_version", {"tensorrt": version}.get)
    assert device_environment("cuda:0", {})["LD_PRELOAD"] == ""
    library = compiled(package)
    assert device_environment("cuda:0", {})["LD_PRELOAD"] == str(library)


@pytest.mark.parametrize("installed", [{"tensorrt": "9.3.0"}, {"tensorrt": "10.13.0"}, {"tensorrt_rtx": "1.7"}, {}])
def test_nothing_is_preloaded_for_a_runtime_that_does_without(
    package: Path, monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]
) -> None:
    compiled(package)
    monkeypatch.setattr(module, "installed_version", installed.get)
    assert device_environment("cuda:0", {"LD_PRELOAD": "/lib/other.so"})["LD_PRELOAD"] == "/lib/other.so"


def test_what_was_compiled_for_another_interpreter_or_machine_is_not_preloaded(package: Path) -> None:
    (package / ACCELERATE / "device_attributes.cpython-39-sparc.so").touch()
    assert device_environment("cuda:0", {})["LD_PRELOAD"] == ""


def test_what_the_user_preloads_comes_first(package: Path) -> None:
    library = compiled(package)
    assert device_environment("cuda:0", {"LD_PRELOAD": "/lib/other.so"})["LD_PRELOAD"] == f"/lib/other.so:{library}"


def test_nothing_is_preloaded_beside_what_the_whole_system_preloads(package: Path, tmp_path: Path) -> None:
    compiled(package)
    (tmp_path / "ld.so.preload").write_text("/usr/local/vgpu/libvgpu.so\n")
    assert device_environment("cuda:0", {})["LD_PRELOAD"] == ""


@pytest.mark.parametrize("folder", ["two words", "a:b"])
def test_nothing_is_preloaded_from_a_path_that_the_loader_would_take_apart(
    package: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (package / folder / ACCELERATE).mkdir(parents=True)
    compiled(package / folder)
    monkeypatch.setattr(module, "__file__", str(package / folder / "channel" / "device_environment.py"))
    assert device_environment("cuda:0", {})["LD_PRELOAD"] == ""


@pytest.mark.parametrize(
    ("visible", "shows"),
    [("4,5,6", r"3 GPUs \(4, 5, 6\)"), ("", r"0 GPUs \(none\)"), ("-1", "0 GPUs"), ("0,-1,1,2", r"1 GPUs \(0\)")],
)
def test_a_number_beyond_them_is_refused_with_those_there_are(visible: str, shows: str) -> None:
    with pytest.raises(BackendError, match=f"cuda:3 does not exist: CUDA_VISIBLE_DEVICES shows {shows}"):
        device_environment("cuda:3", {"CUDA_VISIBLE_DEVICES": visible})


def test_a_cpu_comes_without_any_gpu() -> None:
    assert device_environment("cpu", ALL_MINE) == {"CUDA_VISIBLE_DEVICES": ""}
