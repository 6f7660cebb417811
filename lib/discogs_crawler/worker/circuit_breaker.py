"""Is the id or the service failing?

    closed      --FAILURES ids in a row without an answer, or a 403-->  suspicious
    any state   --`trip`-->                                             paused
    paused      --the pause is over-->                                  suspicious
    suspicious  --a witness is asked, and fails as well-->              paused, for longer
    any state   --a sensible answer, also that of a witness-->          closed

While it is not closed no id is asked for: a dozen bad ones that come first would all speak against
the service, for ever. A failure is held until a sensible answer shows that the service works, and
so that the id is at fault. During a pause a failure says nothing about the id.
"""

import time

from discogs_crawler.worker.fetchers import Fetched

# Different ids in a row without a sensible answer: perhaps the service is down.
FAILURES = 10


class CircuitBreaker:
    """Open while suspicious or paused; holds the failures until it is known who is at fault."""

    def __init__(self) -> None:
        self.is_open = False
        self._held: dict[int, Fetched] = {}
        self._paused_until = 0.0

    def hold(self, fetched: Fetched) -> None:
        """Keep a failure until it is known who is at fault; many of them are suspicious."""
        self._held[fetched.lease.id] = fetched
        if len(self._held) >= FAILURES:
            self.suspect()

    def suspect(self) -> None:
        """A witness is to be asked before anything else."""
        self.is_open = True

    def trip(self, pause_s: float) -> None:
        """The service is down: nothing is requested for `pause_s` seconds."""
        self.is_open = True
        self._paused_until = time.monotonic() + pause_s

    def close(self) -> bool:
        """The service works; True if it was paused."""
        was_tripped, self.is_open, self._paused_until = self._paused_until > 0, False, 0.0
        return was_tripped

    def held(self) -> list[Fetched]:
        """Return the failures of which it is not yet known who is at fault."""
        return list(self._held.values())

    def release(self) -> None:
        """Hold no failure any more: each has been settled."""
        self._held.clear()

    def pause_left_s(self) -> float:
        """Seconds until the end of the pause."""
        return max(0, self._paused_until - time.monotonic())
