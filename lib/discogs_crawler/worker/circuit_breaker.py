"""Is the id or the service failing?

    closed     --FAILURES ids in a row without a sensible answer, or `trip`-->    open
    open       --the limiter's pause is over, and lends one permit alone-->       half-open
    half-open  --that request fails as well-->                                    open, for longer
    any state  --a sensible answer-->                                             closed

While it is closed a failure is held until a sensible answer shows that the service works, and so
that the id is at fault. While it is open a failure says nothing about the id.
"""

import time

from discogs_crawler.worker.fetchers import Fetched

# Different ids in a row without a sensible answer: the service is down.
FAILURES = 10


class CircuitBreaker:
    """Open while the service is down; holds the failures of which it is not yet known."""

    def __init__(self) -> None:
        self.is_open = False
        self._held: dict[int, Fetched] = {}
        self._paused_until = 0.0

    def is_half_open(self, fetched: Fetched) -> bool:
        """Whether this is the answer to the one request that was sent to try the service."""
        return self.is_open and fetched.probe == "outage"

    def hold(self, fetched: Fetched) -> bool:
        """Keep a failure until it is known who is at fault; True if they amount to an outage."""
        self._held[fetched.lease.id] = fetched
        return len(self._held) >= FAILURES

    def trip(self, pause_s: float) -> None:
        """The service is down: nothing is requested for `pause_s` seconds."""
        self.is_open = True
        self._paused_until = time.monotonic() + pause_s

    def close(self) -> bool:
        """The service works; True if it did not before."""
        was_open, self.is_open = self.is_open, False
        return was_open

    def held(self) -> list[Fetched]:
        """Return the failures of which it is not yet known who is at fault."""
        return list(self._held.values())

    def release(self) -> None:
        """Hold no failure any more: each has been settled."""
        self._held.clear()

    def pause_left_s(self) -> float:
        """Seconds until the end of the pause."""
        return max(0, self._paused_until - time.monotonic())
