"""The Dockerfile is held to the code; no Docker engine runs it here."""

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main
import yaml

from app.cli import app
from app.settings import Settings

ROOT = Path(__file__).parents[2]
FINAL = ("cpu", "gpu")


@dataclass(frozen=True)
class Stage:
    """One FROM and its instructions, each as (keyword, text)."""

    name: str
    base: str
    instructions: tuple[tuple[str, str], ...]

    def texts(self, keyword: str) -> list[str]:
        return [text for word, text in self.instructions if word == keyword]


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    found: dict[str, Stage] = {}
    for block in "\n".join(lines).split("FROM ")[1:]:
        head, *rest = block.splitlines()
        base, _, name = head.partition(" AS ")
        instructions = tuple((word, text) for word, _, text in (line.partition(" ") for line in rest))
        found[name] = Stage(name, base, instructions)
    return found


@pytest.mark.parametrize("name", FINAL)
def test_a_final_image_runs_as_an_ordinary_user(stages: dict[str, Stage], name: str) -> None:
    (user,) = stages[name].texts("USER")
    (created,) = re.findall(r"--uid (\d+)", " ".join(stages[name].texts("RUN")))
    assert user.split(":")[0] == created != "0"


@pytest.mark.parametrize("name", FINAL)
def test_a_final_image_holds_no_build_tools_and_takes_its_programs_from_its_build_stage(
    stages: dict[str, Stage], name: str
) -> None:
    (copied,) = stages[name].texts("COPY")
    assert copied == f"--from={name}-build /opt/enginesmith /opt/enginesmith"
    assert not re.search(r"\bpip\b|gcc|build-essential|-dev\b|venv", " ".join(stages[name].texts("RUN")))
    assert stages[name].base == stages[f"{name}-build"].base  # the environment's interpreter is the base's


def test_what_workers_with_a_gpu_preload_is_compiled(stages: dict[str, Stage]) -> None:
    first, *_ = stages["gpu-build"].texts("RUN")
    assert {"gcc", "libc6-dev"} <= set(first.split())
    assert "**/*.so" in (ROOT / ".dockerignore").read_text().splitlines()  # one of another machine would be preloaded


@pytest.mark.parametrize("name", FINAL)
def test_the_default_command_and_the_health_check_are_ones_the_command_line_takes(
    stages: dict[str, Stage], name: str
) -> None:
    stage = stages[name]
    (entry,), (command,), (check,) = (stage.texts(word) for word in ("ENTRYPOINT", "CMD", "HEALTHCHECK"))
    health = json.loads(check.partition("CMD ")[2])
    assert json.loads(entry) == ["enginesmith"] == health[:1]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group
    for word, *arguments in (json.loads(command), health[1:]):
        commands[word].make_context(word, arguments)


def test_the_port_is_the_same_everywhere(stages: dict[str, Stage]) -> None:
    (port,), (command,), (check,) = (stages["cpu"].texts(word) for word in ("EXPOSE", "CMD", "HEALTHCHECK"))
    assert f'"--port", "{port}"' in command
    assert f"http://127.0.0.1:{port}" in check


def test_no_image_answers_strangers_unless_whoever_starts_it_says_so() -> None:
    assert "ALLOW_ANONYMOUS" not in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("name", FINAL)
def test_every_variable_is_one_the_code_reads(stages: dict[str, Stage], name: str) -> None:
    named = set(re.findall(r"(ENGINESMITH_\w+)=", " ".join(stages[name].texts("ENV"))))
    assert named <= {f"ENGINESMITH_{field.upper()}" for field in Settings.model_fields}


@pytest.mark.parametrize("name", ["cpu-build", "gpu-build"])
def test_a_build_stage_gets_every_package_and_extra_there_is_and_the_context_holds_them(
    stages: dict[str, Stage], name: str
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = [word for text in stages[name].texts("COPY") for word in text.split()[:-1]]
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{source}" for source in copied} <= set(ignore)
    assert all((ROOT / source).exists() for source in copied)
    find = project["tool"]["setuptools"]["packages"]["find"]
    folders = {pattern: [Path(place, pattern.rstrip("*")) for place in find["where"]] for pattern in find["include"]}
    packages = {pattern: [one for one in places if (ROOT / one).is_dir()] for pattern, places in folders.items()}
    assert all(packages.values())
    assert {place.parts[0] for places in packages.values() for place in places} <= set(copied)
    (extras,) = re.findall(r"'\.\[(.*)\]'", " ".join(stages[name].texts("RUN")))
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])


def test_compose_builds_the_stages_there_are(stages: dict[str, Stage]) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    targets = {service["image"]: service["build"]["target"] for service in services.values() if "build" in service}
    assert targets == {f"enginesmith:{name}": name for name in FINAL}
    assert set(targets.values()) <= set(stages)
