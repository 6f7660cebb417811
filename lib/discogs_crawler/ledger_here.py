"""Whether this is the machine with the ledger, which every package may ask.

A file alone does not say so: splitting a dump or listing consumers makes one on any machine.
"""

import contextlib
import sqlite3
from pathlib import Path


def ledger_is_here(path: Path) -> bool:
    """Whether there is a ledger in which any id ever was; True if it cannot be read.

    Whoever opens it then says what is wrong with it.
    """
    if not path.is_file():
        return path.exists()
    try:
        uri = path.absolute().as_uri() + "?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            return knows_something(connection)
    except sqlite3.Error as error:
        return error.sqlite_errorcode != sqlite3.SQLITE_ERROR  # that is: there is no such table


def knows_something(connection: sqlite3.Connection) -> bool:
    """Whether any id was ever in the ledger."""
    return connection.execute("SELECT 1 FROM counts LIMIT 1").fetchone() is not None
