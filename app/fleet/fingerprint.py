"""The fingerprint of a device, as the fleet and engines show it."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

FINGERPRINT: dict[str, Any] = {
    "digest": "sha256:" + "1f" * 32,
    "facts": {
        "name": "Intel Xeon",
        "architecture": "x86_64",
        "instruction_sets": ["avx2", "avx512f", "f16c", "fma", "sse4_1", "sse4_2"],
        "cores": 8,
        "l2_bytes": 2_097_152,
        "l3_bytes": 110_100_480,
        "memory_bytes": 25_769_803_776,
    },
}


class FingerprintAnswer(BaseModel):
    """What decides which plans a device loads and how fast it runs them. Devices of equal digests are alike."""

    model_config = ConfigDict(json_schema_extra={"examples": [FINGERPRINT]})

    digest: str
    facts: dict[str, Any] = Field(
        description="By name; bytes, bits and MHz as the name says. Of a GPU: its name, compute capability, "
        "multiprocessors, caches, memory, ECC, clocks and driver. Of a CPU: its name, architecture, instruction sets, "
        "cores, caches, memory and clock. What the system does not tell is left out."
    )
