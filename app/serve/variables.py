"""Warnings about environment variables that look like settings but are none."""

import os
from difflib import get_close_matches

from app.settings import Settings

PREFIX = "ENGINESMITH_"
OTHERS = ("ENGINESMITH_ALLOW_ANONYMOUS",)  # the command line reads it for the option --allow-anonymous
NOT_OF_THE_SERVICE = ("ENGINESMITH_TEST_", "ENGINESMITH_BENCH_")  # the tests and benchmarks read these


def known_variables() -> list[str]:
    """Return the name of each variable that a command reads."""
    return [*(f"{PREFIX}{name.upper()}" for name in Settings.model_fields), *OTHERS]


def unknown_variables() -> list[str]:
    """Return a warning for each variable that begins with `PREFIX` but is no setting; it names the nearest setting.

    The case of a variable's name does not matter.
    """
    known = known_variables()
    given = sorted(name for name in os.environ if name.upper().startswith(PREFIX))
    return [
        _warning(name, known)
        for name in given
        if name.upper() not in known and not name.upper().startswith(NOT_OF_THE_SERVICE)
    ]


def _warning(name: str, known: list[str]) -> str:
    words = [one.removeprefix(PREFIX) for one in known]  # with the prefix any two names would look alike
    nearest = get_close_matches(name.upper().removeprefix(PREFIX), words, n=1)
    remedy = f"Did you mean {PREFIX}{nearest[0]}?" if nearest else "The README lists those there are."
    return f"{name} is no setting and has no effect. {remedy}"
