"""How long a child that died waits until it is started again."""

QUICK_S = 10.0
MAX_QUICK_DEATHS = 5
FIRST_DELAY_S = 0.1
LAST_DELAY_S = 5.0


class Restarts:
    """Counts deaths in a row that came soon after a start: each doubles the wait, and too many are a crash loop."""

    def __init__(self) -> None:
        self._quick_deaths = 0

    def after_death(self, lived_s: float) -> float | None:
        """Return the seconds to wait before the next start of a child that lived `lived_s`, or None in a crash loop."""
        self._quick_deaths = self._quick_deaths + 1 if lived_s < QUICK_S else 1
        if self._quick_deaths >= MAX_QUICK_DEATHS:
            return None
        return min(FIRST_DELAY_S * 2.0 ** (self._quick_deaths - 1), LAST_DELAY_S)
