"""Workers as clients see them."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.fleet.fingerprint import FINGERPRINT, FingerprintAnswer

WORKER: dict[str, Any] = {
    "id": "node-7:4121:9f3a",
    "hostname": "node-7",
    "pid": 4121,
    "device": {
        "kind": "cpu",
        "name": "Intel Xeon",
        "memory_total": 25_769_803_776,
        "memory_free": 21_474_836_480,
        "fingerprint": FINGERPRINT,
    },
    "backends": {
        "onnxruntime": {
            "version": "1.32.0",
            "makes": ["cpu"],
            "loads": ["cpu"],
            "capabilities": {
                "build": True,
                "refit": True,
                "run": True,
                "plan_holds_weights": False,
                "profiles": "optional",
                "negative_indices": True,
                "options": {
                    "optimization": {
                        "description": "How far the graph is optimised, extended being furthest.",
                        "enum": ["extended", "basic", "none"],
                        "default": "extended",
                    }
                },
                "lacks": {"refit": "an onnxruntime engine never holds weights, so every one can be refitted"},
            },
        },
        "tensorrt_rtx": {
            "version": "1.7.1.116",
            "unavailable": "tensorrt_rtx 1.7.1.116 is installed but cannot be imported: libtensorrt_rtx.so.1: cannot "
            "open shared object file: No such file or directory. Reinstall it with all its libraries (pip install "
            "--force-reinstall 'enginesmith[tensorrt-rtx]').",
        },
    },
    "queues": ["enginesmith.onnxruntime", "enginesmith.onnxruntime.cpu"],
    "job": None,
    "trouble": None,
    "confinement": {
        "privileges": {"holds": True, "detail": "no new privileges, no capabilities"},
        "network": {"holds": True, "detail": "seccomp: no sockets"},
        "files": {"holds": True, "detail": "Landlock 7"},
        "user": {
            "holds": False,
            "detail": "the worker's: what a host writes is moved into the store with its owner",
        },
        "memory": {"holds": True, "detail": "RLIMIT_DATA by job, 21.0 GiB at most"},
    },
    "started_at": "2026-11-22T10:00:00Z",
    "seen_at": "2026-11-22T10:05:00Z",
}


class DeviceAnswer(BaseModel):
    """The device a worker serves; memory in bytes."""

    kind: str
    name: str
    memory_total: int
    memory_free: int
    fingerprint: FingerprintAnswer | None = Field(None, description="Null of a worker of an earlier release.")
    compute_capability: str | None = Field(None, description="Of a GPU, such as 9.0.")
    driver: str | None = Field(None, description="Of a GPU: the newest CUDA version its driver takes, such as 12.8.")
    device_attributes_remembered: bool | None = Field(
        None,
        description="Of a GPU: whether its driver is asked for each attribute once only, which TensorRT 8 needs to be "
        "fast. Later releases do without.",
    )


class MeasureAnswer(BaseModel):
    """One measure that confines a worker's engine host: whether it holds, and by what, or why not."""

    holds: bool
    detail: str


class WorkerAnswer(BaseModel):
    """A worker that is alive, and what it can compile."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [WORKER]})

    id: str
    hostname: str
    pid: int
    device: DeviceAnswer
    backends: dict[str, Any] = Field(
        description="By name its version, the platforms it compiles for (`makes`, the default first), those whose "
        "engines it can load (`loads`), and its `capabilities`: `options` has the JSON Schema of each build option, "
        "`lacks` the reason for each option or value it has not. One that is installed but cannot be used has "
        "`unavailable`, the reason, instead."
    )
    queues: list[str]
    job: str | None = Field(validation_alias="job_id", description="The job it works on.")
    trouble: str | None = Field(
        description="Why it begins no jobs for now, such as a store that does not answer; it tries again by itself."
    )
    confinement: dict[str, MeasureAnswer] = Field(
        description="How its engine host is confined, by measure: `privileges`, `network`, `files`, `user`, `memory`. "
        "Empty of a worker that has not said it."
    )
    started_at: datetime
    seen_at: datetime
