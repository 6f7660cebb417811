"""Try again, with growing pauses, while Redis, the disk or the remote is away."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.errors import EXIT_UNAVAILABLE, CrawlerError

log = logging.getLogger(__name__)

T = TypeVar("T")

# A reboot, a full disk that is noticed, a remote's maintenance.
PATIENCE_S = 3_600
FIRST_PAUSE_S = 2
LONGEST_PAUSE_S = 300


def retry(do: Callable[[], T], stop: Stop) -> T:
    """Return what `do` returns; for PATIENCE_S it is called again when it raises Unavailable.

    Once we are told to stop there is one more attempt: Ctrl-C reaches Git too, which a terminal
    starts in the same group as us.
    """
    pause, give_up_at, is_last = FIRST_PAUSE_S, time.monotonic() + PATIENCE_S, False
    while True:
        try:
            return do()
        except CrawlerError as error:
            if error.exit_code != EXIT_UNAVAILABLE or is_last:
                raise
            log.warning("%s; trying again %s", error, "once more" if stop else "for an hour")
            is_last = stop.wait(pause) or time.monotonic() > give_up_at
            pause = min(2 * pause, LONGEST_PAUSE_S)
