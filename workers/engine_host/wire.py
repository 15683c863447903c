"""What parent and child say to each other over their socket: pickles, as both are of one installation.

Parent to child: a `Request`. Child to parent: any number of messages, then one `Reply`.
"""

from dataclasses import dataclass

from workers.backends.base import BackendError, Outcome
from workers.resident import Residency


@dataclass(frozen=True, slots=True)
class Reply:
    """The end of a request, and what the child keeps resident after it."""

    result: Outcome | BackendError
    residency: Residency
