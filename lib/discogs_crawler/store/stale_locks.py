"""Remove what a killed process leaves in a repository: temporary files and lock files.

Every writer holds a shared lock on the repository's `crawler.lock`, and so does the `git` that it
starts, which may outlive it. Whoever gets an exclusive lock knows that none of our writers is
alive, so that an old lock file of Git belongs to a dead process.
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

# Seconds that other programs (e.g. a push) get for their locks; Git needs milliseconds.
STALE_LOCK_S = 10

# Seconds; imports and repacks write to their temporary files for a few hours at most.
STALE_FILE_S = 86_400

# Seconds; the first fetch of a whole store takes an hour. It does not hold our lock, but all the
# time `shallow.lock`, without which it cannot end.
FETCH_S = 6 * 3_600

# Without these no other process can fetch.
_FETCH_LOCKS = ("*.lock", "refs/**/*.lock")
_LOCKS = (
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
    """Hold the writers' lock during the block, shared or `alone`.

    Yields the open lock file, for a child process to inherit. ConfigurationError if the repository
    cannot be written, or was replaced since it was opened.
    """
    with _locked(repository, fcntl.LOCK_EX if alone else fcntl.LOCK_SH) as handle:
        if repository.replaced():
            raise ConfigurationError(
                f"{repository.path}: it was converted meanwhile; set STORE_LAYOUT and restart"
            )
        yield handle


@contextlib.contextmanager
def _locked(repository: Repository, how: int) -> Iterator[int]:
    path = repository.path / _OURS
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(handle, how)
        yield handle
    finally:
        os.close(handle)


def remove_locks(repository: Repository, *, of_fetches: bool = False) -> None:
    """Remove the lock files of dead processes, unless one of our writers is alive."""
    patterns = _FETCH_LOCKS if of_fetches else _LOCKS
    with contextlib.suppress(BlockingIOError), _locked(repository, fcntl.LOCK_EX | fcntl.LOCK_NB):
        _remove(repository.path, patterns, STALE_LOCK_S)


def remove_files(repository: Repository) -> None:
    """Remove temporary files and crash reports that no process writes any more."""
    _remove(repository.path, _FILES, STALE_FILE_S)


def _remove(folder: Path, patterns: tuple[str, ...], age_s: float) -> None:
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            # A time in the future is from a wrong clock; the file would stay until then.
            age = time.time() - path.stat().st_mtime
            stale_s = FETCH_S if path.name == "shallow.lock" else age_s
            if path.name != _OURS and not -SKEW_S <= age <= stale_s:
                if path.match("tmp_objdir-*"):
                    shutil.rmtree(path)
                else:
                    path.unlink()
                log.info("%s: removed, left by a dead process", path)
