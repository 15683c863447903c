from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from workers.engine_host.backends import catalog


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Packages this installation is made to have: name and version."""
    have: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in have:
            raise PackageNotFoundError(name)
        return have[name]

    monkeypatch.setattr(catalog, "version", version)
    monkeypatch.setattr(catalog, "_has_code", lambda _package: False)
    monkeypatch.setattr(catalog, "_installed_version", catalog._installed_version.__wrapped__)
    return have


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt-cu12", "tensorrt-bindings"])
def test_tensorrt_is_for_gpus_whichever_package_brings_it(packages: dict[str, str], package: str) -> None:
    packages[package] = "10.13.0"
    assert catalog.installed("cuda:1") == {"tensorrt": "10.13.0"}
    assert catalog.installed("cpu") == {}


def test_type_stubs_are_no_tensorrt(packages: dict[str, str]) -> None:
    packages["tensorrt-stubs"] = "10.13.0.35.1"
    assert catalog.installed("cuda:0") == {}


def test_a_folder_of_stubs_is_nothing_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, file in (("only_stubs", "__init__.pyi"), ("with_code", "__init__.py")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert not catalog._has_code("only_stubs")
    assert not catalog._has_code("nowhere_at_all")
    assert catalog._has_code("with_code")


def test_a_runtime_without_metadata_is_found_by_its_code(
    packages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert packages == {}
    monkeypatch.setattr(catalog, "_has_code", lambda package: package == "tensorrt")
    assert catalog.installed("cuda:0") == {"tensorrt": "unknown"}


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_tensorrt_rtx_compiles_with_and_without_a_gpu(packages: dict[str, str], device: str) -> None:
    packages["tensorrt-rtx-cu12"] = "1.7.1.116"
    assert catalog.installed(device) == {"tensorrt_rtx": "1.7.1.116"}


def test_what_could_be_installed_is_told(packages: dict[str, str]) -> None:
    packages["tensorrt"] = "8.6.1"
    assert catalog.remedies("cuda:0") == "pip install 'enginesmith[tensorrt-rtx]'"
    assert "onnxruntime" in catalog.remedies("cpu")
