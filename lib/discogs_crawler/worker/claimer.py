"""Claim as many ids as the worker can fetch until the next look at the queue."""

import time

from discogs_crawler.worker.fetchers import Fetchers
from discogs_crawler.worker.lease_keeper import Leases
from discogs_crawler.worker.statusline import RequestRate

# Seconds of requests for which ids are claimed ahead: longer than a commit and a push. What is
# already claimed is fetched first, so a manual want may have to wait that long.
AHEAD_S = 20

# An empty queue is asked again after a pause that grows from the first to the longest.
FIRST_IDLE_S = 0.1
LONGEST_IDLE_S = 5


class Claimer:
    """Claims ids from the queue and hands them to the fetchers."""

    def __init__(
        self,
        leases: Leases,
        fetchers: Fetchers,
        rate: RequestRate,
        threads: int,
        limit: int | None,
    ) -> None:
        """`limit`: as many ids at most; None: no limit."""
        self._leases, self._fetchers, self._rate = leases, fetchers, rate
        self._threads, self._limit = threads, limit
        self._idle_s, self._again_at = 0.0, 0.0

    def is_exhausted(self) -> bool:
        """Whether as many ids are claimed or settled as there were to be."""
        return self._limit is not None and self._leases.used >= self._limit

    def found_none(self) -> bool:
        """Whether the queue had nothing for us when it was last asked."""
        return self._idle_s > 0

    def claim(self) -> None:
        """Claim what there is room for; what others fetch by now is dropped."""
        if self._leases.take_lapsed():
            self._fetchers.ask(self._leases.ours_of(self._fetchers.take_back()))
        room = self._room()
        if not room or time.monotonic() < self._again_at:
            return
        found = self._leases.claim(room)
        self._fetchers.ask(found)
        self._idle_s = 0 if found else min(LONGEST_IDLE_S, 2 * self._idle_s or FIRST_IDLE_S)
        self._again_at = time.monotonic() + self._idle_s

    def _room(self) -> int:
        """Return the number of ids to claim now; a few at a time: neighbours make small commits."""
        ahead = round(self._rate.per_minute() / 60 * AHEAD_S)
        target = max(2 * self._threads, ahead)
        missing = target - len(self._fetchers)
        if self._limit is not None:
            return max(0, min(missing, self._limit - self._leases.used))
        return missing if missing >= target / 2 else 0
