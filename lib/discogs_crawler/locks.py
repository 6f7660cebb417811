"""One at a time: advisory locks that die with their process."""

import contextlib
import fcntl
import logging
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from discogs_crawler.errors import ConfigurationError, TryLater

log = logging.getLogger(__name__)

# How often to look whether a lock is free.
POLL_S = 0.2

# Seconds that scripts wait for each other whose lines for all four kinds may start at the same
# minute. A seed takes up to 3 minutes; behind a whole dump somebody may still be sent away.
PATIENCE_S = 1_800


@contextlib.contextmanager
def exclusive(path: Path, what: str, *, wait: bool = False, patience_s: float = 0) -> Iterator[int]:
    """Hold the lock file `path` during the block; the kernel lets go of it if we are killed.

    Without `wait`, raises TryLater (exit 75) if another process still holds it after `patience_s`;
    the message names that process and `what` it is running. Yields the open file: a child process
    that inherits it holds the lock as well, until it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if wait:
            fcntl.flock(handle, fcntl.LOCK_EX)
        else:
            _take(handle, what, patience_s)
        _check_that_it_is_ours(handle, path)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def shared(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file during the block, as others may; TryLater while `what` holds it alone."""
    handle = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise TryLater(f"{what} is under way") from None
    finally:
        os.close(handle)


def _check_that_it_is_ours(handle: int, path: Path) -> None:
    """Refuse to overwrite another file, to which a link may lead from here."""
    regular = stat.S_ISREG(os.fstat(handle).st_mode)
    if not regular or os.pread(handle, 20, 0).strip(b"\0 \n0123456789"):
        raise ConfigurationError(
            f"{path}: it is not a lock file, or a link to another file: move it away"
        )


def _take(handle: int, what: str, patience_s: float) -> None:
    """Lock the file; TryLater after `patience_s`."""
    deadline, told = time.monotonic() + patience_s, False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
            problem = f"{what} is already running as process {holder}"
            if time.monotonic() >= deadline:
                raise TryLater(problem) from None
        if not told:
            log.log(
                logging.WARNING if sys.stderr.isatty() else logging.INFO, "%s: waiting", problem
            )
            told = True
        time.sleep(POLL_S)
