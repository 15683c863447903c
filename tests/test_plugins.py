from pathlib import Path

import pytest

from app.plugins import PluginConflict, find_plugins
from tests.adding.distribution import install


def test_finds_modules_of_the_folder_and_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path / "b", "shop", "a.group", {"wares": "shop.wares"})
    install(monkeypatch, tmp_path / "a", "other", "another.group", {"nothing": "other.nothing"})
    found = find_plugins("app.definitions.families", "a.group")
    assert list(found) == ["bert", "gpt2", "wares"]
    assert found["bert"].load().__name__ == "app.definitions.families.bert"
    assert found["wares"].value == "shop.wares"  # and nothing was imported: there is no module shop


def test_one_name_for_two_things_is_an_error_that_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, "shop", "a.group", {"bert": "shop.wares"})
    with pytest.raises(PluginConflict, match=r"app\.definitions\.families\.bert and by shop\.wares\. Uninstall"):
        find_plugins("app.definitions.families", "a.group")
