"""`python -m benchmarks.chaos.object_store PORT`: a server that speaks S3 and keeps its objects in memory."""

import logging
import signal
import sys

from moto.server import ThreadedMotoServer


def main(port: int) -> None:
    """Serve until the process ends."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False).start()
    signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]))
