import sys
from importlib.metadata import EntryPoint, PackageNotFoundError
from pathlib import Path

import pytest

from app import backends
from app.backends import GROUP, BackendEntry, backend_entry, backend_names, has_code, installed_backends, remedies
from app.main import create_app
from app.plugins import PluginConflict
from app.settings import Settings

ABACUS = BackendEntry("abacus", ("abacus-runtime",), ("cpu",), "abacus.backend:open_backend", "abacus-runtime")


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Packages this installation is made to have: name and version."""
    have: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in have:
            raise PackageNotFoundError(name)
        return have[name]

    monkeypatch.setattr(backends, "version", version)
    monkeypatch.setattr(backends, "has_code", lambda _package: False)
    return have


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """The entry points that are found, in the order of the path."""
    found: list[EntryPoint] = []
    monkeypatch.setattr("app.plugins.entry_points", lambda group: [one for one in found if one.group == group])
    monkeypatch.setattr(backends, "_points", backends._points.__wrapped__)
    return found


def test_ours_are_found_as_any_others_are() -> None:
    assert backend_names() == ("onnxruntime", "tensorrt", "tensorrt_rtx")


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt-cu12", "tensorrt-bindings"])
def test_tensorrt_is_for_gpus_whichever_package_brings_it(packages: dict[str, str], package: str) -> None:
    packages[package] = "10.13.0"
    assert installed_backends("cuda:1") == installed_backends("cuda") == {"tensorrt": "10.13.0"}
    assert installed_backends("cpu") == {}


def test_type_stubs_are_no_tensorrt(packages: dict[str, str]) -> None:
    packages["tensorrt-stubs"] = "10.13.0.35.1"
    assert installed_backends("cuda:0") == {}


def test_a_folder_of_stubs_is_nothing_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, file in (("only_stubs", "__init__.pyi"), ("with_code", "__init__.py")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert not has_code("only_stubs")
    assert not has_code("nowhere_at_all")
    assert has_code("with_code")


def test_a_runtime_without_metadata_is_found_by_its_code(
    packages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert packages == {}
    monkeypatch.setattr(backends, "has_code", lambda package: package == "tensorrt")
    assert installed_backends("cuda:0") == {"tensorrt": "unknown"}


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_tensorrt_rtx_compiles_with_and_without_a_gpu(packages: dict[str, str], device: str) -> None:
    packages["tensorrt-rtx-cu12"] = "1.7.1.116"
    assert installed_backends(device) == {"tensorrt_rtx": "1.7.1.116"}


def test_what_could_be_installed_is_told(packages: dict[str, str]) -> None:
    packages["tensorrt"] = "8.6.1"
    assert remedies("cuda:0") == "pip install 'enginesmith[tensorrt-rtx]'"
    assert remedies("cpu") == "pip install onnxruntime or pip install 'enginesmith[tensorrt-rtx]'"


def test_one_that_others_add_is_found_by_its_entry_point(packages: dict[str, str], points: list[EntryPoint]) -> None:
    points.append(EntryPoint("abacus", f"{__name__}:ABACUS", GROUP))
    assert installed_backends("cpu") == {}
    assert remedies("cpu") == "pip install abacus-runtime"
    packages["abacus-runtime"] = "3.0"
    assert installed_backends("cpu") == {"abacus": "3.0"}
    assert backend_entry("abacus") is ABACUS


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_two_with_one_name_stop_the_start_with_both_named(points: list[EntryPoint], settings: Settings) -> None:
    points += [EntryPoint("abacus", f"{where}:ABACUS", GROUP) for where in ("here", "elsewhere")]
    with pytest.raises(PluginConflict, match=r"here:ABACUS and by elsewhere:ABACUS\. Uninstall one"):
        create_app(settings)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("import beads_that_are_lost", "No module named 'beads_that_are_lost'"),
        ("1 / 0", "ZeroDivisionError"),
        ("", "cannot be loaded: AttributeError"),
        ("ABACUS = 1", "leads to int, not to a BackendEntry"),
    ],
)
def test_one_whose_entry_is_broken_is_installed_and_says_why_it_is_of_no_use(
    points: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, reason: str
) -> None:
    (tmp_path / "abacus_entry.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "abacus_entry", raising=False)
    points.append(EntryPoint("abacus", "abacus_entry:ABACUS", GROUP))
    with pytest.raises(ImportError, match=reason):
        backend_entry("abacus")
    assert installed_backends("cpu") == {"abacus": "unknown"}
    assert remedies("cpu") == ""
