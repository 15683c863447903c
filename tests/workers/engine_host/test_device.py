import os
from pathlib import Path

import pytest

from workers.engine_host.device import describe_device, resident_limit


def test_a_cpu_is_described_by_its_cores_and_memory() -> None:
    device = describe_device("cpu")
    assert device["kind"] == "cpu"
    assert "cores" in device["name"]
    assert 0 < device["memory_free"] <= device["memory_total"]
    assert resident_limit(device) == 4 << 30


def test_the_fingerprint_of_a_processor_says_what_makes_it_fast_and_stays_the_same() -> None:
    first, second = (describe_device("cpu")["fingerprint"] for _ in range(2))
    assert first == second
    facts = first["facts"]
    assert facts["architecture"] == os.uname().machine
    assert facts["cores"] == len(os.sched_getaffinity(0))
    assert facts["memory_bytes"] % (1 << 30) == 0
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Feat")))
    assert facts["instruction_sets"] == sorted(facts["instruction_sets"])
    assert {*facts["instruction_sets"]} <= {*flags.split()}
    assert ("avx2" in facts["instruction_sets"]) == ("avx2" in flags.split())


def test_devices_that_differ_in_a_fact_have_other_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe_device("cpu")["fingerprint"]["digest"]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {*range(97)})
    assert describe_device("cpu")["fingerprint"]["digest"] != before
