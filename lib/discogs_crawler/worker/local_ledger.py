"""The ledger, if it is on this machine: opened for a moment each time.

A worker lives for months and must not keep it open. Ids whose results it wrote into a ledger that
was moved away would be requested for ever; and closing that deletes its successor's journal.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from discogs_crawler.ledger import database
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.store import layouts
from discogs_crawler.store.layouts import Store


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Ledger | None]:
    """The ledger at `path`; None if it is missing, or empty: it may be about to be rebuilt."""
    if not path.exists():
        yield None
        return
    with database.open(path) as ledger:
        yield ledger if ledger.knows_something() else None


def stored(path: Path) -> int:
    """The number of records that the ledger says the store has; 0 without a ledger."""
    with opened(path) as ledger:
        return 0 if ledger is None else ledger.stored()


def neglect(path: Path) -> str:
    """What is wrong if nobody looks after store and ledger; "" if nothing, or without a ledger."""
    with opened(path) as ledger:
        return "" if ledger is None else ledger.neglect()


def refuse_older_copy(path: Path, store: Store) -> None:
    """ConfigurationError if the store lacks commits that the ledger at `path` knows of."""
    with opened(path) as ledger:
        layouts.refuse_older_copy(store, ledger.revisions() if ledger else [])
