"""How fast long work goes on beside what matters more: in batches, with a pause after each."""

import time
from collections.abc import Callable
from threading import Event

LONGEST_PAUSE_S = 5.0
GoOn = Callable[[], bool]  # asked between two batches: whether there is to be another one


def unhindered() -> bool:
    """Go on at once."""
    return True


class Pace:
    """Pauses after each batch for as long as the batch took, so that others get half of the database and the store."""

    def __init__(self, over: Event) -> None:
        self._over = over
        self._began = time.monotonic()

    def __call__(self) -> bool:
        """Pause, and return whether to go on: False once `over` is set."""
        ended = self._over.wait(min(time.monotonic() - self._began, LONGEST_PAUSE_S))
        self._began = time.monotonic()
        return not ended
