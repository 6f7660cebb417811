"""What SQLite's errors mean for the user, and how to wait for one that passes."""

import random
import sqlite3
import time
from pathlib import Path

from discogs_crawler.errors import BadData, CrawlerError, Unavailable

_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

# What passes by itself or when room is made.
_DISK_FAILS = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY}

_CIRCUMSTANCES = {
    *_DISK_FAILS,
    *(sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM),
}

# Part of every message that names `--rebuild-ledger`: 226 days of requests must not be a surprise.
REBUILD_COST = (
    "this requests every record once more; with --adopt only what is not stored, and changes in "
    "the last dump that no worker has fetched are missed until the record changes again"
)


def use_wal(connection: sqlite3.Connection, busy_s: float) -> None:
    """Let readers and one writer work at once; wait up to `busy_s` for others who open the file.

    SQLite's own timeout does not hold for the change of a file's journal.
    """
    deadline = time.monotonic() + busy_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.001, 0.02))


def meaning(error: BaseException, ledger: Path) -> CrawlerError | None:
    """The meaning of an error of SQLite with this ledger; None for a bug of ours."""
    if is_damage(error):
        beside = ledger.parent / "backups"
        copies = beside if beside.is_dir() else "backups/ of STATE_DIR"
        return BadData(
            f"{ledger}: the ledger is damaged ({error}): {how_to_restore(ledger, copies)}, "
            f"or run seed_queue.py --rebuild-ledger: {REBUILD_COST}"
        )
    if _code(error) in _CIRCUMSTANCES:
        return Unavailable(f"{ledger}: the ledger cannot be used now: {error}")
    return None


def how_to_restore(ledger: Path, copies: Path | str) -> str:
    """How to put a backup in the ledger's place; its journal would be replayed over the copy."""
    return (
        f"with nothing running, move {ledger.name}, {ledger.name}-wal and {ledger.name}-shm away, "
        f"as far as they are there, and directly afterwards put the last copy from {copies} in "
        "their place"
    )


def is_damage(error: BaseException) -> bool:
    """Whether the file is not what SQLite wrote."""
    return _code(error) in _DAMAGE


def disk_fails(error: BaseException) -> bool:
    """Whether the disk or a lock is the reason, not the file."""
    return _code(error) in _DISK_FAILS


def _code(error: BaseException) -> int:
    """SQLite's primary error code; 0, which is none, if it is no error of SQLite."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
