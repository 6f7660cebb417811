"""One line on the terminal that shows the progress; nothing if there is no terminal."""

import collections
import logging
import os
import sys
import time

from discogs_crawler.broker.limiter import Quota
from discogs_crawler.cli.formatting import duration

# Often enough to look alive; the depth of the queue, which costs more, less often.
REFRESH_S = 1
CLEAR = "\r\x1b[K"


class RequestRate:
    """Events in the last window."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._began = time.monotonic()
        self._times: collections.deque[float] = collections.deque()

    def count(self) -> None:
        self._times.append(time.monotonic())

    def per_minute(self) -> float:
        now = time.monotonic()
        while self._times and self._times[0] <= now - self._window_s:
            self._times.popleft()
        # In the first window the time that has passed; the first requests alone would say too much.
        past = min(self._window_s, max(now - self._began, self._window_s / 10))
        return len(self._times) / past * 60


def line(
    kind: str,
    per_minute: float,
    counts: "collections.Counter[str]",
    quota: Quota,
    waiting: int,
    window_s: float,
    width: int = 80,
) -> str:
    """The text, never wider than the terminal: what matters least stands last and is cut."""
    if quota.pause_s > 0:
        share = f"pause {duration(quota.pause_s)}"
    elif quota.limit:
        share = f"quota {quota.ours}/{quota.limit}"
    else:
        share = "quota ?"
    pace = quota.ours / window_s
    left = f", {duration(waiting / pace)} left" if pace and waiting else ""
    found = "".join(
        f", {counts[name]:,} {name}" for name in ("gone", "merged", "failed") if counts[name]
    )
    text = (
        f"{kind} {per_minute:.0f}/min, {share}; {waiting:,} waiting{left}; "
        f"{counts['stored']:,} stored{found}"
    )
    return text if len(text) < width else text[: width - 2] + "…"


class StatusLine:
    """The last line of a terminal; log lines appear above it."""

    def __init__(self) -> None:
        self.active = sys.stderr.isatty()
        self._shown_at = 0.0
        if self.active:
            for handler in logging.getLogger().handlers:
                handler.addFilter(self._make_room)

    def due(self) -> bool:
        return self.active and time.monotonic() - self._shown_at >= REFRESH_S

    def show(self, text: str) -> None:
        self._write(CLEAR + text)
        self._shown_at = time.monotonic()

    def end(self) -> None:
        if self.active:
            self._write(CLEAR)
            self.active = False

    @staticmethod
    def width() -> int:
        try:
            return os.get_terminal_size(sys.stderr.fileno()).columns
        except OSError:
            return 80

    def _make_room(self, record: logging.LogRecord) -> bool:
        if self.active:
            self._write(CLEAR)
            self._shown_at = 0
        return True

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            # The terminal was closed; what remains to be done needs none.
            self.active = False
