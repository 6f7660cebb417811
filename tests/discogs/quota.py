"""The API's count of requests: an exact rolling window for each client address."""

import threading
import time
from collections import deque
from typing import NamedTuple


class Counted(NamedTuple):
    """How a request fared, and what the three headers say of it."""

    allowed: bool
    limit: int
    used: int

    @property
    def headers(self) -> dict[str, str]:
        return {
            "X-Discogs-Ratelimit": str(self.limit),
            "X-Discogs-Ratelimit-Used": str(self.used),
            "X-Discogs-Ratelimit-Remaining": str(max(0, self.limit - self.used)),
        }


class Quota:
    """`limit` requests with a token, `limit_without` otherwise, in every rolling `window_s`.

    All may be changed while it counts. A refused request does not count.
    """

    def __init__(self, limit: int = 60, limit_without: int = 25, window_s: float = 60.0) -> None:
        self.limit = limit
        self.limit_without = limit_without
        self.window_s = window_s
        self._arrivals: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def count(self, client: str, *, token: bool) -> Counted:
        """Count a request that arrives now."""
        with self._lock:
            now = time.monotonic()
            arrivals = self._arrivals.setdefault(client, deque())
            while arrivals and arrivals[0] <= now - self.window_s:
                arrivals.popleft()
            limit = self.limit if token else self.limit_without
            allowed = len(arrivals) < limit
            if allowed:
                arrivals.append(now)
            return Counted(allowed, limit, len(arrivals))
