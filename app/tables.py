"""Every table of every slice, imported so that `Base.metadata` is complete."""

from app.aliases.tables import Alias, AliasMove
from app.artifacts.tables import Blob, BlobUse, StoreSweep
from app.bindings.tables import Binding
from app.database import Base
from app.definitions.tables import CompilerCrash, Definition
from app.engines.tables import Engine, TimingCache, VerificationDefault
from app.fleet.tables import ReportedWorker
from app.jobs.tables import IdempotencyKey, Job, JobDependency, JobEvent
from app.registry.tables import Model
from app.sweeps.tables import Sweep, SweepVariant
from app.weights.tables import CheckpointFile, WeightVersion

__all__ = [
    "Alias",
    "AliasMove",
    "Base",
    "Binding",
    "Blob",
    "BlobUse",
    "CheckpointFile",
    "CompilerCrash",
    "Definition",
    "Engine",
    "IdempotencyKey",
    "Job",
    "JobDependency",
    "JobEvent",
    "Model",
    "ReportedWorker",
    "StoreSweep",
    "Sweep",
    "SweepVariant",
    "TimingCache",
    "VerificationDefault",
    "WeightVersion",
]
