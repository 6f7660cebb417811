"""The time of day: UTC epoch seconds, shiftable so that a test can live through a year.

`CLOCK_OFFSET_S` in the environment is added here and, as an argument, in every Lua script that
asks Redis for the time. It exists for tests; durations use `time.monotonic` and are not shifted.
"""

import os
import time
from datetime import UTC, datetime

DAY_S = 86_400

# Clocks that are set right differ by less; a time further ahead than this is treated as wrong.
SKEW_S = DAY_S

OFFSET_S = float(os.environ.get("CLOCK_OFFSET_S") or 0)


def now() -> float:
    """Seconds since 1970-01-01T00:00:00Z on this machine's clock."""
    return time.time() + OFFSET_S


def iso(epoch_s: float) -> str:
    """The instant as `2026-11-01T19:16:59Z`."""
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
