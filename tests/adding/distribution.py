"""Packages of third parties, installed for one test."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest


def install(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    name: str,
    group: str,
    entry_points: Mapping[str, str],
    module: Path | None = None,
) -> None:
    """Make a package with one module and these entry points, on the path of this process and of those it starts."""
    write_metadata(folder, name, group, entry_points)
    if module is not None:
        (folder / module.name).write_bytes(module.read_bytes())
    monkeypatch.syspath_prepend(folder)
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


def write_metadata(folder: Path, name: str, group: str, entry_points: Mapping[str, str]) -> None:
    """Write what makes a folder on the path one in which a package with these entry points is installed."""
    metadata = folder / f"{name.replace('-', '_')}-1.0.dist-info"  # a hyphen would end the name
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{key} = {value}" for key, value in entry_points.items()]
    (metadata / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
