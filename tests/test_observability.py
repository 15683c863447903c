import subprocess
import sys

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
