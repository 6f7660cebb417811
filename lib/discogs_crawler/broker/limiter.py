"""All of the quota and never a 429: permits, shared by all who use one identity.

The API counts requests in a rolling window. Each of its L permits is lent when a request is sent
and comes back one window after the answer was received; the request reached the API in between,
so no window of the API's ever holds more than L, whatever the latency and its jitter. All state is
in Redis and by its clock; see limiter.lua.
"""

import secrets
import threading
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import redis

from discogs_crawler import clock
from discogs_crawler.broker.redis_errors import explained

_LUA = Path(__file__).with_suffix(".lua").read_text(encoding="utf-8")

# Share of the window (5 of 60 s) after which a permit is too old to be used: a process that was
# frozen between asking and sending must not send what others have lent meanwhile.
USABLE_SHARE = 1 / 12

# A sleep that ends a little early costs another question to Redis.
SLACK_S = 0.0005

Sense = Literal["good", "poor", "bad"]
Reason = Literal["quota", "outage"]


class Permit(NamedTuple):
    """Permission to send one request, now."""

    name: str
    lent_at: float
    """epoch seconds by Redis's clock"""
    asked: float
    """`time.monotonic()` when we asked for it"""
    probe: str
    """`start`, `quota` or `outage` if everybody waits for the answer to this request; else empty"""


class Quota(NamedTuple):
    """The state of an identity's quota."""

    limit: int
    """requests in a window; 0 as long as it is not known"""
    ours: int
    """permits that are lent or not yet back"""
    foreign: int
    """requests in the window which the API has counted and we have not sent"""
    pause_s: float
    """seconds until the next request may be sent, 0 when there is no pause"""


class Limiter:
    """The permits of one identity; for any number of threads, processes and machines."""

    def __init__(
        self,
        client: redis.Redis,
        identity: str,
        *,
        prefix: str,
        window_s: float,
        limit: int | None = None,
    ) -> None:
        """`limit`: requests in a window that we allow ourselves; the API's own limit rules too."""
        self._client = client
        self._key = f"{{{prefix}}}:rate:{identity}"
        self.window_s = window_s
        self._cap = limit or 0
        self._script = client.register_script(_LUA)
        self._turn = threading.Lock()

    def lend(self, timeout_s: float) -> Permit | None:
        """Wait for a permit, up to `timeout_s` seconds; None if there is none by then.

        Of the threads of a process one asks at a time.
        """
        deadline = time.monotonic() + timeout_s
        if not self._turn.acquire(timeout=timeout_s):
            return None
        try:
            while True:
                granted = self._ask()
                if isinstance(granted, Permit):
                    return granted
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                time.sleep(min(granted + SLACK_S, left))
        finally:
            self._turn.release()

    def usable(self, permit: Permit) -> bool:
        """Whether the permit is young enough to send a request with it."""
        return time.monotonic() - permit.asked < self.window_s * USABLE_SHARE

    def answered(
        self, permit: Permit, limit: int | None, remaining: int | None, sense: Sense
    ) -> None:
        """An answer has come; `limit` and `remaining` are what its headers say, if they do.

        `sense`: "good" if it means something for the id, "poor" if it was an error, "bad" if it
        asked us to wait.
        """
        told = (0, 0) if limit is None or remaining is None else (limit, remaining)
        self._call("answered", permit.name, permit.lent_at, *told, sense)

    def lost(self, permit: Permit) -> None:
        """No answer has come: the request may still be counted for two windows."""
        self._call("lost", permit.name)

    def unused(self, permit: Permit) -> None:
        """No request was sent."""
        self._call("unused", permit.name)

    def pause(self, why: Reason, seconds: float = 0) -> float:
        """Let nobody of this identity send for some seconds, then one alone; return the seconds.

        Each pause is twice as long as the one before, until a probe passes: from 1/6 window to 1
        after a 429 ("quota"), from 1 window to 15 in an "outage". `seconds` is the least.
        """
        return float(self._call("pause", why, seconds))

    def status(self) -> Quota:
        """The state of the quota; requests nothing and changes nothing that matters."""
        limit, ours, foreign, pause = self._call("status", self._cap)
        return Quota(int(limit), int(ours), int(foreign), float(pause))

    def _ask(self) -> Permit | float:
        """A permit, or the number of seconds until there may be one."""
        name, asked = secrets.token_hex(8), time.monotonic()
        lent, *rest = self._call("lend", name, self._cap)
        if not lent:
            return float(rest[0])
        return Permit(name, float(rest[0]), asked, rest[1].decode())

    def _call(self, command: str, *args: str | float) -> Any:
        """One step of limiter.lua."""
        with explained(self._client):
            return self._script(
                keys=[self._key], args=[command, clock.OFFSET_S, self.window_s, *args]
            )
