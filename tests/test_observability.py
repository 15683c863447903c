import subprocess
import sys

import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

PROGRAM = """
import logging, structlog
from app.observability import configure_logging
from app.settings import Settings
configure_logging(Settings())
for _ in range(3):
    structlog.get_logger().info("x" * 10000)
    logging.getLogger("library").warning("y" * 10000)
print("went on", flush=True)
"""


def test_work_goes_on_where_the_logs_disk_is_full() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=full, text=True, check=False
        )
    assert ended.stdout == "went on\n"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_line_of_a_request_has_the_paths_of_all_calls_and_no_more(client: TestClient) -> None:
    name = "x" * 128
    longest, longer = f"/v1/models/{name}/aliases/{name}/history", "/" + "y" * 60_000
    with capture_logs() as logs:
        client.get(longest)
        client.get(longer)
    written = [line["path"] for line in logs if line["event"] == "request"]
    assert written == [longest, f"/{'y' * 299}…"]
