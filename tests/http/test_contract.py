"""The HTTP contract grows and does not change: what a client of the first release relies on is there as it was."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

GONE = object()
CONTRACT = Path(__file__).parents[1] / "data" / "openapi.json"  # of the first release, without its prose
LIMITS = {"maxItems", "maxLength", "maximum"}


def broken(now: Any, then: Any, where: str = "") -> list[str]:  # noqa: ANN401 - JSON
    """Return the places of `then` that `now` has not kept; names and listed values may be added, and limits raised.

    A request may come to require less, as no client that sends more is the worse for it.
    """
    if where.endswith("Request/required"):
        return []
    if isinstance(then, dict) and isinstance(now, dict):
        places = {key: f"{where}/{key}" for key in then}
        return [fault for key, place in places.items() for fault in broken(now.get(key, GONE), then[key], place)]
    if isinstance(then, list) and isinstance(now, list):
        return [] if all(any(not broken(new, old) for new in now) for old in then) else [where]
    is_raised = where.rpartition("/")[2] in LIMITS and isinstance(now, int) and now > then
    return [] if now == then or is_raised else [where]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_whatever_the_first_release_promised_is_kept(app: FastAPI) -> None:
    assert broken(app.openapi(), json.loads(CONTRACT.read_text())) == []


@pytest.mark.parametrize(
    ("now", "places"),
    [
        ({"a": 1, "b": [1, 2, 3], "c": 4}, []),
        ({"a": 2, "b": [1, 2]}, ["/a"]),
        ({"a": 1, "b": [1]}, ["/b"]),
        ({"a": 1}, ["/b"]),
        ({"a": 1, "b": [1, 2], "XRequest": {}}, []),
        ({"a": 1, "b": [1, 2], "maxItems": 3}, ["/maxItems"]),
        ({"a": 1, "b": [1, 2], "maxItems": 5}, []),
    ],
)
def test_what_is_taken_away_or_changed_is_seen(now: Any, places: list[str]) -> None:  # noqa: ANN401 - JSON
    then = {"a": 1, "b": [1, 2]} | ({"XRequest": {"required": ["c"]}} if "XRequest" in now else {})
    then |= {"maxItems": 4} if "maxItems" in now else {}
    assert broken(now, then) == places
