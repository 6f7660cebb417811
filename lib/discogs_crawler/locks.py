"""One at a time: advisory locks that die with their process."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from discogs_crawler.errors import TryLater


@contextlib.contextmanager
def exclusive(path: Path, what: str, *, wait: bool = False) -> Iterator[int]:
    """Hold the lock file `path` during the block; the kernel lets go of it if we are killed.

    Without `wait`, raises TryLater (exit 75) saying that `what` is already running, and as which
    process, when somebody else holds it. Yields the open file: a child process that inherits it
    holds the lock as well, until it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.read(handle, 20).decode("ascii", "replace").strip() or "unknown"
            raise TryLater(f"{what} is already running as process {holder}") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield handle
    finally:
        os.close(handle)
