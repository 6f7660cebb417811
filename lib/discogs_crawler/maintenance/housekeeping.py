"""What a store needs every night: few packs, no leftovers, a backup of the ledger.

`gc`, `prune` and a full repack beside writers lose objects of commits under way; joining packs
does not.
"""

import contextlib
import logging
import os
import sqlite3
from pathlib import Path

from discogs_crawler import clock, files, sqlite_errors
from discogs_crawler.config import Settings
from discogs_crawler.errors import Unavailable
from discogs_crawler.ledger import database
from discogs_crawler.store import packs, stale_locks
from discogs_crawler.store.git import Repository
from discogs_crawler.store.single import PENDING, pending_since

log = logging.getLogger(__name__)

# Backups of the ledger that are kept.
BACKUPS = 2

# No commit waits longer than this for its push; beyond it the process is dead.
PENDING_S = 86_400

# The revision up to which all records were checked.
CHECKED = "refs/crawler/checked"


def tidy(repository: Repository) -> int:
    """Join packs, index the history, remove what dead processes left; the number of packs."""
    stale_locks.remove_locks(repository)
    stale_locks.remove_files(repository)
    _forget_pending(repository)
    packs.join(repository)
    if repository.refs("refs/") and not (repository.path / "shallow").exists():
        # One changed path in a commit-graph: the log of a record takes 0.03 s, not 0.5 s.
        repository.run("commit-graph", "write", "--reachable", "--changed-paths", "--split")
    return len(packs.find(repository))


def _forget_pending(repository: Repository) -> None:
    for ref, commit in repository.refs(PENDING).items():
        if clock.now() - pending_since(ref) > PENDING_S:
            repository.call("update-ref", "-d", ref, commit)


def back_up(settings: Settings) -> Path | None:
    """Copy the ledger, whole and consistent, and keep BACKUPS of such copies; return the new one.

    None if there is no ledger, or an empty one, which must not replace a good copy.
    """
    if not settings.database.exists():
        return None
    with database.open(settings.database) as ledger:
        if not ledger.knows_something():
            return None
    folder = settings.state_dir / "backups"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in folder.glob("*.tmp"):
        old.unlink()
    target = folder / f"{settings.database.stem}-{clock.iso(clock.now())[:10]}.db"
    copy = target.with_name(target.name + ".tmp")
    try:
        with contextlib.closing(sqlite3.connect(settings.database, timeout=120)) as connection:
            connection.execute("VACUUM INTO ?", (str(copy),))
        with copy.open("rb+") as written:
            os.fsync(written.fileno())
        copy.rename(target)
        files.fsync_folder(folder)
    except (sqlite3.Error, OSError) as error:
        copy.unlink(missing_ok=True)
        if sqlite_errors.is_damage(error):
            raise
        raise Unavailable(f"{settings.database}: no backup in {folder}: {error}") from error
    dated = f"{settings.database.stem}-[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9].db"
    # One with a date in the future was made while the clock was wrong: it is older than this one.
    copies = sorted(folder.glob(dated), key=lambda path: (path <= target, path))
    for old in copies[:-BACKUPS]:
        old.unlink()
    return target
