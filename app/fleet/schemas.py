"""Workers as clients see them."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

WORKER: dict[str, Any] = {
    "id": "gpu-7:4121:9f3a",
    "hostname": "gpu-7",
    "pid": 4121,
    "device": {
        "kind": "cpu",
        "name": "Intel Xeon",
        "memory_total": 25_769_803_776,
        "memory_free": 21_474_836_480,
    },
    "backends": {"onnxruntime": {"version": "1.32.0", "capabilities": {}}},
    "queues": ["enginesmith.onnxruntime"],
    "job": None,
    "started_at": "2026-11-22T10:00:00Z",
    "seen_at": "2026-11-22T10:05:00Z",
}


class DeviceAnswer(BaseModel):
    """The device a worker serves; memory in bytes."""

    kind: str
    name: str
    memory_total: int
    memory_free: int


class WorkerAnswer(BaseModel):
    """A worker that is alive, and what it can compile."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [WORKER]})

    id: str
    hostname: str
    pid: int
    device: DeviceAnswer
    backends: dict[str, Any]
    queues: list[str]
    job: str | None = Field(validation_alias="job_id", description="The job it works on.")
    started_at: datetime
    seen_at: datetime
