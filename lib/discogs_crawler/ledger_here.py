"""Whether this is the machine with the ledger, which every package may ask, and what if it is lost.

A file alone does not say so: splitting a dump or listing consumers makes one on any machine.
"""

import contextlib
import sqlite3
from pathlib import Path

from discogs_crawler.config import Settings
from discogs_crawler.errors import ConfigurationError
from discogs_crawler.sqlite_errors import REBUILD_COST, how_to_restore


def ledger_is_here(path: Path) -> bool:
    """Whether there is a ledger in which any id ever was; True if it cannot be read.

    Whoever opens it then says what is wrong with it.
    """
    return _has_rows(path, "counts")


def places_are_here(path: Path) -> bool:
    """Whether there is a ledger, or a machine without one has the places of consumers there."""
    return ledger_is_here(path) or _has_rows(path, "consumers")


def _has_rows(path: Path, table: str) -> bool:
    if not path.is_file():
        return path.exists()
    try:
        # Who opens it with `mode=ro` leaves a -wal behind.
        uri = path.absolute().as_uri() + "?mode=rw"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            return _has_a_row(connection, table)
    except sqlite3.Error as error:
        return error.sqlite_errorcode != sqlite3.SQLITE_ERROR  # that is: there is no such table


def knows_something(connection: sqlite3.Connection) -> bool:
    """Whether any id was ever in the ledger."""
    return _has_a_row(connection, "counts")


def _has_a_row(connection: sqlite3.Connection, table: str) -> bool:
    return connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None


def lost(settings: Settings) -> ConfigurationError:
    """What to say of a ledger that knows no id although the store, 226 days of work, has records.

    To start over would want everything again, and give every consumer everything again or nothing.
    """
    backups = settings.state_dir / "backups"
    return ConfigurationError(
        f"{settings.database}: the ledger knows nothing, but there are records in "
        f"{settings.store}: mount its disk or set DATABASE; if it is lost, "
        f"{how_to_restore(settings.database, backups)}, "
        "or run seed_queue.py --rebuild-ledger, for each kind (with -n HASHES if those kept "
        f"as {settings.database.name}.KIND.*.hashes are gone): {REBUILD_COST}"
    )
