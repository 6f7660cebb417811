"""What SQLite's refusals mean for the user: a damaged file, or a disk or a lock in the way."""

import sqlite3
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


def meaning(error: BaseException, ledger: Path) -> CrawlerError | None:
    """What it means that SQLite cannot use this ledger; None for a bug of ours."""
    if is_damage(error):
        beside = ledger.parent / "backups"
        copies = beside if beside.is_dir() else "backups/ of STATE_DIR"
        return BadData(
            f"{ledger}: the ledger is damaged ({error}): move it away, and {ledger.name}-wal and "
            f"{ledger.name}-shm if they are there; then put its last copy in {copies} in its "
            "place, or run seed_queue.py --rebuild-ledger"
        )
    if _code(error) in _CIRCUMSTANCES:
        return Unavailable(f"{ledger}: the ledger cannot be used now: {error}")
    return None


def is_damage(error: BaseException) -> bool:
    """The file is not what SQLite wrote."""
    return _code(error) in _DAMAGE


def disk_fails(error: BaseException) -> bool:
    """Not the file but the disk or a lock is the reason."""
    return _code(error) in _DISK_FAILS


def _code(error: BaseException) -> int:
    """SQLite's primary code; 0, which is none, if it was not SQLite that refused."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
