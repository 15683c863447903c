"""Whatever README and docs/ tell a reader to run is run here, or held to what runs it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from app.cli import app
from app.engines.schemas import BuildRequest
from app.settings import Settings
from examples.service import running

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ANSWER = "# → "
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
FRACTION = re.compile(r'(?<="seconds":)[\d.]+|\d+\.\d+')


def _commands(page: Path, section: str | None = None) -> str:
    text = page.read_text()
    if section is not None:
        text = text.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return "\n".join(re.findall(r"^```bash\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE))


def _lines() -> Iterator[str]:
    """Yield every command line of every page, without its comment."""
    for page in PAGES:
        yield from (line.split("  #")[0].strip() for line in _commands(page).replace("\\\n", " ").splitlines())


def test_the_session_works_word_for_word_and_answers_as_it_says(tmp_path: Path) -> None:
    """Run where a reader would, with a curl that fails on any answer that is an error; seconds are not compared."""
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    (tmp_path / ".curlrc").write_text("fail-with-body\n")
    script = _commands(README, "A session") + _commands(ROOT / "docs/session.md")
    with running(tmp_path / "data") as (url, _pid):
        done = subprocess.run(
            [shutil.which("bash") or "bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=os.environ | {"URL": url, "CURL_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    promised = [line.removeprefix(ANSWER) for line in script.splitlines() if line.startswith(ANSWER)]
    assert len(promised) > 15
    assert [FRACTION.sub("…", line) for line in done.stdout.splitlines()] == [
        FRACTION.sub("…", line) for line in promised
    ]
    assert not {path.name for path in tmp_path.iterdir()} - {".venv", ".curlrc", "data"}  # it tidies up


def test_the_readme_is_one_page() -> None:
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_the_page_of_settings_tells_of_every_setting(name: str) -> None:
    row = rf"^\| `ENGINESMITH_{name.upper()}` \| .* ?\| {re.escape(Settings.model_fields[name].description or '')} \|$"
    assert re.search(row, (ROOT / "docs/settings.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target, heading in LINK.findall(page.read_text()):
        if "://" not in target:
            linked = page.parent / target
            assert linked.exists(), f"{page.name} links {target}"
            assert not heading or heading[1:] in _anchors(linked), f"{page.name} links {target}{heading}"


def test_every_enginesmith_command_is_one_the_command_line_takes() -> None:
    found = [shlex.split(line)[1:] for line in _lines() if line.startswith("enginesmith ")]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group
    for name, *arguments in found:
        commands[name].make_context(name, arguments)
    assert {name for name, *_ in found} >= {"serve", "api", "worker", "migrate"}


def test_every_make_target_there_is_a_word_of_exists() -> None:
    texts = "".join(page.read_text() for page in PAGES)
    in_blocks = {line.split()[1] for line in _lines() if line.startswith("make ")}
    named = in_blocks | set(re.findall(r"`make ([a-z-]+)", texts))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "serve", "test", "lint"} <= named <= targets


def test_every_file_that_is_installed_from_here_is_an_extra() -> None:
    extras = set(re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE))
    named = {
        extra for page in PAGES for extra in re.findall(r"pip install (?:-e )?'\.\[([a-z-]+)\]'", page.read_text())
    }
    assert named
    assert named <= extras


def test_the_example_of_a_build_for_tensorrt_is_a_build_request() -> None:
    (body,) = re.findall(
        r"curl -s --json '(\{.*?\})' \S+/builds$", _commands(ROOT / "docs/backends.md"), re.DOTALL | re.MULTILINE
    )
    assert BuildRequest.model_validate(json.loads(body)).backend == "tensorrt"


@pytest.mark.parametrize(
    ("results", "path", "text"),
    [
        ("gpu", "refit/build_job_s", "job (90 s,"),
        ("gpu", "build_large/job_s", "build job (75 s)"),
        ("gpu", "refit/median_s/warm", "plan written (1.06 s)"),
        ("gpu", "refit/median_s/warm_lazy", "lazy (0.27 s)"),
        ("gpu", "refit/median_s/cold", "cold refit job (1.14 s)"),
        ("gpu", "refit/warm_over_raw", "| 0.51 |"),
        ("gpu", "refit/cold_over_raw", "| 0.28 |"),
        ("gpu", "packed/run_over_plain", "0.17; 0.99 |"),
        ("gpu", "build/over_raw", "| 0.83 |"),
        ("gpu", "cost/ratio", "| 1.15 |"),
        ("cpu-all", "upload/ratio", "| 1.06 |"),
        ("cpu-all", "minilm/refit_over_bare", "**1.56**"),
        ("cpu-all", "minilm/refit_unverified_over_bare", "| 1.13 |"),
        ("cpu-all", "minilm/refit_over_build", "**0.81**"),
    ],
)
def test_a_figure_is_the_one_that_was_measured(results: str, path: str, text: str) -> None:
    figure = json.loads((ROOT / f"benchmarks/results/{results}.json").read_text())["figures"]
    for part in path.split("/"):
        figure = figure[part]
    assert text in (ROOT / "docs/figures.md").read_text()
    stated = re.findall(r"\d+(?:\.\d+)?", text)
    assert any(abs(float(one) - figure) <= 0.5 * 10 ** -len(one.partition(".")[2]) + 1e-9 for one in stated)


def _anchors(page: Path) -> set[str]:
    """Return the anchors a code host gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
