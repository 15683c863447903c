"""`enginesmith serve` itself: the installed program, with all its processes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.database import Database
from app.jobs import service as jobs
from app.jobs.queue import queue_of
from app.registry.tables import Model

if TYPE_CHECKING:
    from tests.serve.conftest import Launcher, Service

API, WORKER, BROKER = "-m app.cli api", "-m workers --device", "valkey-server"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve") / "data"


@pytest.fixture(scope="module")
def service(launch: "Launcher", data_dir: Path) -> "Service":
    """A running service that the tests below share."""
    return launch.ready(data_dir)


def test_one_line_says_where_the_service_is_and_all_of_it_answers(service: "Service", data_dir: Path) -> None:
    assert service.ready == f"Enginesmith is ready at http://127.0.0.1:{service.port} (data in {data_dir})\n"
    assert service.get("/healthz") == {"status": "ok"}
    readiness = service.get("/readyz")
    assert readiness["ready"]
    assert readiness["workers"] == 1
    assert {path.name for path in (data_dir / "logs").iterdir()} >= {"api.log", "worker-cpu.log", "valkey.log"}


def test_nothing_but_the_api_listens_on_the_network(service: "Service") -> None:
    sockets = service.open_files()
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines() if line.split()[3] == "0A"]
    ports = {int(row[1].partition(":")[2], 16) for row in listening if f"socket:[{row[9]}]" in sockets}
    assert ports == {service.port}


def test_a_second_instance_on_the_same_directory_is_told_who_holds_it(
    service: "Service", launch: "Launcher", data_dir: Path
) -> None:
    second = launch(data_dir)
    output, errors = second.process.communicate()
    assert (second.process.returncode, output) == (1, "")
    assert f"in use by the Enginesmith with process id {service.process.pid}" in errors
    assert "[data_dir_in_use]" in errors


def test_a_port_in_use_is_an_error_that_names_the_remedy(
    service: "Service", launch: "Launcher", tmp_path: Path
) -> None:
    other = launch(tmp_path / "other", port=service.port)
    output, errors = other.process.communicate()
    assert (other.process.returncode, output) == (1, "")
    assert f"Port {service.port} of 127.0.0.1 is in use" in errors
    assert "--port" in errors


@pytest.mark.parametrize("words", [API, BROKER, WORKER])
def test_a_process_that_is_killed_is_started_again_and_the_service_goes_on(service: "Service", words: str) -> None:
    killed = service.child(words)
    os.kill(killed, signal.SIGKILL)
    assert "was killed by SIGKILL; starting it again" in service.notice()
    started = service.notice()
    assert f"started again with process id {service.child(words)}" in started
    assert str(killed) not in started
    assert service.get("/healthz") == {"status": "ok"}  # the port was listened on all the time


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_and_leaves_nothing(
    launch: "Launcher", tmp_path: Path, ends: Callable[[int], bool], number: signal.Signals
) -> None:
    service = launch.ready(tmp_path)
    children = service.children()
    assert len(children) >= 3
    assert service.stop(number) == 0
    assert all(ends(pid) for pid in children)
    assert list(service.runtime_root.iterdir()) == []
    assert service.process.communicate() == ("", "")  # no second line, and nothing went wrong


def test_killing_the_service_leaves_no_process_and_started_again_it_does_the_jobs_that_were_queued(
    launch: "Launcher", tmp_path: Path, ends: Callable[[int], bool]
) -> None:
    service = launch.ready(tmp_path)
    children = service.children()
    assert service.stop(signal.SIGKILL) == -signal.SIGKILL
    assert all(ends(pid) for pid in children)

    job_id = queue_a_job(tmp_path)
    again = launch.ready(tmp_path, ENGINESMITH_RESEND_AFTER_S="0.1", ENGINESMITH_SWEEP_INTERVAL_S="0.1")
    again.get(f"/v1/jobs/{job_id}/events", Accept="text/event-stream")  # ends when the job has
    job = again.get(f"/v1/jobs/{job_id}")
    assert (job["state"], job["attempt"]) == ("failed", 1)  # a worker took it; there is no such engine
    assert again.stop(signal.SIGTERM) == 0


def test_a_worker_whose_device_is_not_there_says_so(launch: "Launcher", tmp_path: Path) -> None:
    service = launch(tmp_path, "--device", "cuda:7", CUDA_VISIBLE_DEVICES="0")
    output, errors = service.process.communicate()
    assert (service.process.returncode, output) == (1, "")
    assert "The worker cannot start: cuda:7 does not exist" in errors
    assert errors.endswith("[worker-cuda-7_died]\n")


def queue_a_job(data_dir: Path) -> str:
    """Leave a job that no worker was told of: a run of an engine that does not exist."""
    database = Database(f"sqlite:///{data_dir / 'enginesmith.db'}")
    with database.transaction() as session:
        model = Model(name="queued-before")
        session.add(model)
        session.flush()
        request = {"engine_id": 404, "inputs": f"sha256:{'0' * 64}", "backend": "onnxruntime"}
        job = jobs.create(
            session, kind="run", model_id=model.id, queue=queue_of("onnxruntime"), request=request, likeness="any"
        )
        job_id = job.id
    database.dispose()
    return str(job_id)
