from workers.engine_host.device import describe_device, resident_limit


def test_a_cpu_is_described_by_its_cores_and_memory() -> None:
    device = describe_device("cpu")
    assert device["kind"] == "cpu"
    assert "cores" in device["name"]
    assert 0 < device["memory_free"] <= device["memory_total"]
    assert resident_limit(device) == 4 << 30
