"""Run jobs: one engine, one set of inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.artifacts import service as artifacts
from app.artifacts.signing import PlanSigner
from app.engines.work import RunWork
from app.jobs.lease import Claim
from workers.channel.messages import Ran, Run
from workers.jobs.steps import Steps
from workers.jobs.stored import Sources, StoredEngine, engine_file, load_engine
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker


@dataclass(frozen=True, slots=True)
class RunInput:
    """The engine to run and the digest of the safetensors file it runs on."""

    engine: StoredEngine
    inputs: str


@dataclass(frozen=True, slots=True)
class Outputs:
    """The safetensors file of outputs in the store, `size` in bytes; `seconds` is the engine's own time."""

    digest: str
    size: int
    seconds: float

    @property
    def blobs(self) -> Mapping[str, int]:
        """The outputs."""
        return {self.digest: self.size}


def load(session: Session, _held: Claim, work: RunWork, _worker: Worker) -> RunInput:
    """Read the engine."""
    return RunInput(load_engine(session, work.engine_id), work.inputs)


def compute(job: RunInput, worker: Worker, watch: Watch) -> Outputs:
    """Run, and put the outputs into the store."""
    request = watch.during(_request, job, worker.sources, worker.signer, str(watch.folder / "outputs.safetensors"))
    ran = watch.ask(request, Ran)
    digest, size = watch.during(worker.put, Path(ran.outputs))
    return Outputs(digest, size, ran.seconds)


def publish(session: Session, held: Claim, _job: RunInput, made: Outputs) -> dict[str, Any]:
    """Keep the outputs for as long as the job is kept."""
    artifacts.keep(session, made.digest, f"job:{held.job_id}")
    return {"outputs": made.digest, "seconds": made.seconds}


def _request(job: RunInput, sources: Sources, signer: PlanSigner, outputs: str) -> Run:
    engine = engine_file(job.engine, sources, signer)
    return Run(engine, str(sources.store.local_path(job.inputs)), outputs)


STEPS = Steps(RunWork, load, compute, publish)
