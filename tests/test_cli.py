import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from app.cli import app, main
from app.serve.errors import CannotStart

COMMANDS = ("serve", "api", "worker", "migrate", "health", "version")


def enginesmith(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed program with nothing else configured."""
    program = Path(sys.executable).with_name("enginesmith")
    return subprocess.run(
        [program, *arguments],
        env={"PATH": os.defpath, **environment},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_every_command() -> None:
    done = enginesmith("--help")
    assert done.returncode == 0
    assert [command for command in COMMANDS if f"\n  {command} " in done.stdout] == list(COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_no_line_of_help_is_cut_off_on_80_columns(command: str) -> None:
    shown = enginesmith(*filter(None, [command]), "--help", COLUMNS="80").stdout
    assert "..." not in shown.replace("[ARGS]...", "")
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("asked", ["version", "--version"])
def test_version_is_the_installed_one(asked: str) -> None:
    assert CliRunner().invoke(app, [asked]).output == f"{version('enginesmith')}\n"


@pytest.mark.parametrize(
    ("arguments", "prefix"),
    [(["health"], "enginesmith"), (["worker"], "The worker cannot start"), (["api", "--port", "0"], "enginesmith")],
)
def test_a_command_that_finds_no_database_says_so_in_one_line_and_makes_nothing(
    arguments: list[str], prefix: str, tmp_path: Path
) -> None:
    done = enginesmith(*arguments, ENGINESMITH_DATA_DIR=str(tmp_path / "data"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"{prefix}: There is no database {tmp_path / 'data' / 'enginesmith.db'}. Name the directory of a running "
        "service in ENGINESMITH_DATA_DIR, or make a new database with `enginesmith migrate`. [no_database]\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["health", "worker"])
def test_a_database_without_tables_is_pointed_out(command: str, tmp_path: Path) -> None:
    (tmp_path / "enginesmith.db").touch()
    done = enginesmith(command, ENGINESMITH_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.endswith("The database has no tables yet. Run `enginesmith migrate` first. [no_database]\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["health", "worker"])
def test_a_command_says_in_one_line_when_the_database_does_not_answer(command: str) -> None:
    done = enginesmith(command, ENGINESMITH_DATABASE_URL="postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("Check ENGINESMITH_DATABASE_URL. [database_unreachable]\n")


@pytest.mark.parametrize("arguments", [["migrate"], ["serve"]])
def test_a_data_directory_that_is_a_file_is_said_in_one_line(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    done = enginesmith(*arguments, ENGINESMITH_DATA_DIR=str(tmp_path / "data"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.endswith("[data_dir_unwritable]\n")


def test_an_api_whose_store_cannot_be_used_says_so_in_one_line(tmp_path: Path) -> None:
    enginesmith("migrate", ENGINESMITH_DATA_DIR=str(tmp_path))
    (tmp_path / "artifacts").touch()
    done = enginesmith("api", "--port", "0", ENGINESMITH_DATA_DIR=str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.endswith("[store_unavailable]\n")


def test_a_misspelt_setting_is_a_warning_that_names_the_nearest_one(tmp_path: Path) -> None:
    misspelt = {"ENGINESMITH_DATABSE_URL": "x", "ENGINESMITH_COLOUR": "red", "ENGINESMITH_TEST_POSTGRES_URL": "x"}
    done = enginesmith("migrate", ENGINESMITH_DATA_DIR=str(tmp_path), enginesmith_log_level="INFO", **misspelt)
    assert done.returncode == 0
    colour, database = done.stderr.splitlines()
    warned = "is no setting and has no effect."
    assert colour == f"enginesmith: warning: ENGINESMITH_COLOUR {warned} The README lists those there are."
    assert database.endswith(f": ENGINESMITH_DATABSE_URL {warned} Did you mean ENGINESMITH_DATABASE_URL?")


@pytest.mark.parametrize("package", ["app", "workers", "migrations"])
@pytest.mark.parametrize("inside", ["__init__.py", "settings.txt"])  # a folder without the first hides ours as well
def test_a_package_of_another_project_in_front_is_named_with_what_it_hides(
    package: str, inside: str, tmp_path: Path
) -> None:
    other = tmp_path / package
    other.mkdir()
    (other / inside).touch()
    done = enginesmith("--version", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"enginesmith: The package '{package}' in {other} hides Enginesmith's own in ")
    assert f"Take {tmp_path} out of PYTHONPATH" in done.stderr
    assert done.stderr.endswith("[package_hidden]\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["serve", "api"])
def test_strangers_are_let_in_only_where_that_is_said_in_so_many_words(command: str, tmp_path: Path) -> None:
    done = enginesmith(command, "--host", "0.0.0.0", ENGINESMITH_DATA_DIR=str(tmp_path))  # noqa: S104 - what must be refused
    assert done.returncode == 1
    assert "--allow-anonymous (or ENGINESMITH_ALLOW_ANONYMOUS=1)" in done.stderr
    assert done.stderr.endswith("[anonymous_not_allowed]\n")


def test_serve_says_when_the_data_directory_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    done = enginesmith("serve", "--data-dir", str(tmp_path / "data"))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"Cannot write to the data directory {tmp_path / 'data'}: it is a file" in done.stderr


def test_a_setting_that_is_wrong_is_named_by_its_variable() -> None:
    done = enginesmith("migrate", ENGINESMITH_LEASE_S="soon")
    assert done.returncode == 1
    assert "ENGINESMITH_LEASE_S: Input should be a valid number" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_log_level_that_does_not_exist_is_named_with_those_that_do() -> None:
    done = enginesmith("migrate", ENGINESMITH_LOG_LEVEL="LOUD")
    assert done.returncode == 1
    assert "ENGINESMITH_LOG_LEVEL: Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'" in done.stderr


def test_migrate_makes_the_database_however_many_start_it_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as starts:
        runs = [starts.submit(enginesmith, "migrate", ENGINESMITH_DATA_DIR=str(tmp_path / "data")) for _ in range(3)]
    assert [(run.result().returncode, run.result().stderr) for run in runs] == [(0, "")] * 3
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'data' / 'enginesmith.db'}")
    assert "jobs" in sa.inspect(engine).get_table_names()


def test_migrate_waits_for_another_one_on_postgresql(postgres_server: str, tmp_path: Path) -> None:
    name = f"enginesmith_{tmp_path.name.lower()}_{os.getpid()}"
    administrator = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
    url = sa.make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    with ThreadPoolExecutor(3) as starts:
        runs = [starts.submit(enginesmith, "migrate", ENGINESMITH_DATABASE_URL=url) for _ in range(3)]
    assert [(run.result().returncode, run.result().stderr) for run in runs] == [(0, "")] * 3
    with administrator.connect() as connection:
        connection.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))


def test_migrate_says_when_the_database_does_not_answer() -> None:
    done = enginesmith("migrate", ENGINESMITH_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    assert done.returncode == 1
    assert "Check ENGINESMITH_DATABASE_URL." in done.stderr
    assert done.stderr.endswith("[database_unreachable]\n")


@pytest.mark.parametrize("command", ["worker", "serve"])
@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:x", "cpu:0"])
def test_what_names_no_device_is_refused(command: str, device: str) -> None:
    result = CliRunner().invoke(app, [command, "--device", device])
    assert result.exit_code == 2
    assert "Use cpu, or cuda:0" in result.output


def test_worker_becomes_the_workers_program_in_an_environment_that_is_safe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: called.append(arguments))
    CliRunner().invoke(app, ["worker", "--device", "cuda:1"])
    ((program, arguments, environment),) = called
    assert program == arguments[0] == sys.executable
    assert arguments[1:] == ["-m", "workers", "--device", "cuda:1"]
    assert environment["PYTHONSAFEPATH"] == "1"
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize(
    ("arguments", "devices"),
    [
        ([], ["cpu", "cuda:0"]),
        (["--device", "cuda:1"], ["cuda:1"]),
        (["--device", "cpu", "--device", "cuda:0", "--device", "cpu"], ["cpu", "cuda:0"]),
    ],
)
def test_serve_has_a_worker_on_each_device_named_or_else_on_all_there_are(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], devices: list[str]
) -> None:
    served: list[list[str]] = []

    def serve(_settings: object, _host: str, _port: int, devices: list[str], **_others: object) -> int:
        served.append(devices)
        return 0

    monkeypatch.setattr("app.serve.service.serve", serve)
    monkeypatch.setattr("app.processes.gpus.all_devices", lambda: ["cpu", "cuda:0"])
    assert CliRunner().invoke(app, ["serve", *arguments]).exit_code == 0
    assert served == [devices]


def test_health_fails_where_no_api_answers() -> None:
    done = enginesmith("health", "--url", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.endswith("[unhealthy]\n")


def test_health_without_a_url_looks_for_a_worker_of_this_host(tmp_path: Path) -> None:
    enginesmith("migrate", ENGINESMITH_DATA_DIR=str(tmp_path))
    done = enginesmith("health", ENGINESMITH_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "No worker of this host" in done.stderr


def test_what_cannot_start_is_one_message_and_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cannot() -> None:
        raise CannotStart("some_code", "What is wrong. What to do.")

    monkeypatch.setattr("app.cli.app", cannot)
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err == "enginesmith: What is wrong. What to do. [some_code]\n"


def test_migrating_makes_a_data_directory_for_its_user_alone(tmp_path: Path) -> None:
    done = enginesmith("migrate", ENGINESMITH_DATA_DIR=str(tmp_path / "data"))
    assert (done.returncode, stat.S_IMODE((tmp_path / "data").stat().st_mode)) == (0, 0o700)
