"""What a killed process leaves in a repository: temporary files, and locks that stop the next one.

Whoever writes holds the repository's `crawler.lock` shared, and so does the `git` that he starts,
which may outlive him. Who gets it alone knows that no writer of ours is alive, and that an old
lock file of Git belongs to nobody.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from discogs_crawler.clock import SKEW_S
from discogs_crawler.errors import ConfigurationError
from discogs_crawler.store.git import Repository

log = logging.getLogger(__name__)

# Git holds a lock for milliseconds; one of somebody else's, e.g. of a push, gets this long.
STALE_LOCK_S = 10

# Import and repack write to temporary files for hours at most.
STALE_FILE_S = 86_400

# The first fetch of a whole store takes an hour. It does not hold our lock, but all the time
# `shallow.lock`, without which it cannot end.
FETCH_S = 6 * 3_600

# Without these nobody can fetch.
_FETCH_LOCKS = ("HEAD.lock", "refs/**/*.lock", "shallow.lock")
_LOCKS = (
    "*.lock",
    *_FETCH_LOCKS,
    "objects/info/*.lock",
    "objects/info/commit-graphs/*.lock",
    "objects/pack/*.lock",
)
_FILES = (
    "fast_import_crash_*",
    "objects/pack/tmp_*",
    "objects/pack/.tmp-*",
    "objects/info/commit-graphs/tmp_*",
    "objects/??/tmp_obj_*",
    "objects/tmp_objdir-*",  # a folder: what a push to us has brought so far
)
_OURS = "crawler.lock"


@contextlib.contextmanager
def writing(repository: Repository, *, alone: bool = False) -> Iterator[int]:
    """Hold the writers' lock during the block, shared or `alone`; the open file, to hand on.

    ConfigurationError if the repository cannot be written, or was replaced since we opened it.
    """
    path = repository.path / _OURS
    handle = _open(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if repository.replaced():
            raise ConfigurationError(
                f"{repository.path}: it was converted meanwhile; set STORE_LAYOUT and start again"
            )
        yield handle
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}") from error


def remove_locks(repository: Repository, *, of_fetches: bool = False) -> list[Path]:
    """Remove lock files of dead processes; which they were. None while one of us is writing."""
    handle = _open(repository.path / _OURS)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _remove(repository.path, _FETCH_LOCKS if of_fetches else _LOCKS, STALE_LOCK_S)
    except BlockingIOError:
        return []
    finally:
        os.close(handle)


def remove_files(repository: Repository) -> list[Path]:
    """Remove temporary files and crash reports that nobody writes any more; which they were."""
    return _remove(repository.path, _FILES, STALE_FILE_S)


def _remove(folder: Path, patterns: tuple[str, ...], age_s: float) -> list[Path]:
    removed = []
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            # One from the future was made by a wrong clock, and would stay until then.
            age = time.time() - path.stat().st_mtime
            stale_s = FETCH_S if path.name == "shallow.lock" else age_s
            if path.name != _OURS and not -SKEW_S <= age <= stale_s:
                if path.match("tmp_objdir-*"):
                    shutil.rmtree(path)
                else:
                    path.unlink()
                log.info("%s: removed, a dead process left it", path)
                removed.append(path)
    return removed
