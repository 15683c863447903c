"""What an installed Enginesmith says of itself."""

from importlib.metadata import metadata
from pathlib import Path

from packaging.licenses import canonicalize_license_expression

ROOT = Path(__file__).parents[2]


def test_the_package_says_under_which_licence_it_is_and_carries_its_text() -> None:
    said = metadata("enginesmith")
    assert canonicalize_license_expression(said["License-Expression"]) == "Apache-2.0"
    assert said.get_all("License-File") == ["LICENSE"]
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_package_says_what_it_is_and_what_it_runs_on() -> None:
    said = metadata("enginesmith")
    classifiers = said.get_all("Classifier") or []
    assert said["Summary"].startswith("An HTTP service")
    assert said["Requires-Python"] == ">=3.11"
    assert {"Operating System :: POSIX :: Linux", "Framework :: FastAPI"} <= set(classifiers)
    assert not [one for one in classifiers if one.startswith("License ::")]  # the expression above says it
