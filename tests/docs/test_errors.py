import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from docs.pages.errors import PAGE, page, problems
from docs.pages.raised import raised

ROOT = Path(__file__).parents[2]
WRITTEN_PLAINLY = re.compile(r'\bcode="(\w+)"')


def test_the_page_is_what_the_code_raises() -> None:
    assert PAGE.read_text() == page(), "run `make docs`"


def test_every_code_comes_with_words_that_say_when_and_what_to_do() -> None:
    assert not [problem.code for problem in problems() if not problem.texts]


def test_no_code_that_stands_plainly_in_the_source_is_overlooked() -> None:
    paths = (path for package in ("app", "workers") for path in (ROOT / package).rglob("*.py"))
    plain = {code for path in paths for code in WRITTEN_PLAINLY.findall(path.read_text())}
    assert len(plain) > 40
    assert plain <= {problem.code for problem in problems()}


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        (
            "app/toy.py",
            'raise Gone(f"{name!r} went. Bring it.", code="toy_gone")',
            ("toy_gone", "410", "«name» went. Bring it."),
        ),
        ("app/toy.py", 'raise Gone("All went.")', ("gone", "410", "All went.")),
        (
            "app/toy.py",
            'from app.limits import MOST\nraise Gone(f"At most {MOST} fit.")',
            ("gone", "410", "At most 7 fit."),
        ),
        ("workers/toy.py", 'raise Gone("All went.", code="toy_gone")', ("toy_gone", "job", "All went.")),
        ("workers/toy.py", 'raise Broken("toy_broken", "It " + "broke.")', ("toy_broken", "job", "It broke.")),
        (
            "app/toy.py",
            'CODE = "toy"\nraise Gone(_why(), code=CODE)\ndef _why():\n    return "So."',
            ("toy", "410", "So."),
        ),
    ],
)
def test_a_code_is_found_however_it_is_raised(
    tmp_path: Path, path: str, source: str, expected: tuple[str, str, str]
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "workers").mkdir()
    (tmp_path / "app/errors.py").write_text(
        "class ServiceError(Exception):\n    status, code = 500, 'internal'\n"
        "    def __init__(self, detail: str, *, code: str | None = None) -> None: ...\n"
        "class Gone(ServiceError):\n    status, code = 410, 'gone'\n"
        "class Broken(Exception):\n    def __init__(self, code: str, detail: str) -> None: ...\n"
    )
    (tmp_path / "app/limits.py").write_text("MOST = 7\n")
    (tmp_path / path).write_text(source)
    assert list(raised(tmp_path)) == [expected]


def test_what_the_framework_answers_is_on_the_page(client: TestClient) -> None:
    answers = (
        client.get("/v1/nothing"),
        client.delete("/v1/models"),
        client.post("/v1/models", json={"name": "a", "description": "x" * 9_000_000}),
        client.get("/v1/models", params={"limit": "x"}),
    )
    listed = {(problem.place, problem.code) for problem in problems()}
    assert {(str(answer.status_code), answer.json()["code"]) for answer in answers} <= listed
