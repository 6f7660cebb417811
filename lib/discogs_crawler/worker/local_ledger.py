"""The ledger, if it is on this machine: opened for a moment each time.

A worker lives for months and must not keep it open. What it would write into one that was moved
away is asked for again for ever; and closing that deletes the journal of its successor.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from discogs_crawler.config import Settings
from discogs_crawler.errors import ConfigurationError
from discogs_crawler.ledger import database
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.store import layouts
from discogs_crawler.store.layouts import Store


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Ledger | None]:
    """The ledger at `path`; None if it is not here or empty: one may be about to be rebuilt."""
    if not path.exists():
        yield None
        return
    with database.open(path) as ledger:
        yield ledger if ledger.knows_something() else None


def stored(path: Path) -> int:
    """The number of records that the ledger says the store has; 0 without a ledger."""
    with opened(path) as ledger:
        return 0 if ledger is None else ledger.count("state = 'stored'")


def refuse_to_begin_anew(settings: Settings) -> None:
    """Make no store where the ledger says that there is one: its disk may not be mounted.

    ConfigurationError; what cannot be used as the ledger is refused here, too.
    """
    number = stored(settings.database)
    if number and not settings.store_remote and not (settings.store / "discogs.git").exists():
        raise ConfigurationError(
            f"{settings.store}: there is no store, but the ledger says that {number:,} records "
            "are in it: mount its disk, set STORE, or put its copy back; to begin anew, move "
            f"{settings.database} away, too"
        )


def refuse_older_copy(path: Path, store: Store) -> None:
    """ConfigurationError if the store lacks commits that the ledger at `path` knows of."""
    with opened(path) as ledger:
        layouts.refuse_older_copy(store, ledger.revisions() if ledger else [])
