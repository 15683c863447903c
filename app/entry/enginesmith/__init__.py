"""The start of the command `enginesmith`: it runs the command line if Python finds this installation's packages.

This is installed as the top-level package `enginesmith`, a name that no other project has. `app` is a common name. If
the command began in `app.cli` and another project's `app` hid it, the command could not say so.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("app", "workers", "migrations")


def main() -> None:
    """Run the command line; if another project's package is found first, exit with 1 and one line that says so."""
    hidden = [line for name in PACKAGES if (line := hidden_by(name)) is not None]
    if hidden:
        sys.exit(f"enginesmith: {hidden[0]} [package_hidden]")
    from app.cli import main as run  # noqa: PLC0415 - only after the check above

    run()


def hidden_by(package: str) -> str | None:
    """Return which folder hides a package of this installation, and the remedy; None if Python finds the package."""
    own = _home() / package
    spec = find_spec(package)
    places = [Path(place).resolve() for place in (spec.submodule_search_locations if spec else None) or ()]
    if own in places:
        return None
    found = str(places[0]) if places else (spec.origin if spec else None)
    if found is None:
        return f"The package '{package}' is missing from {own.parent}. Install Enginesmith again."
    return (
        f"The package '{package}' in {found} hides Enginesmith's own in {own}. Take {Path(found).parent} out of "
        "PYTHONPATH, or install Enginesmith into a virtual environment of its own."
    )


def _home() -> Path:
    """Return the folder that holds this installation's packages: site-packages, or the root of the repository."""
    here = Path(__file__).resolve()
    return next((place for place in here.parents if (place / "app" / "cli.py").is_file()), here.parents[1])
