"""Files and locks of `maintain_store.py --to-submodules`, which converts the store's layout."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from discogs_crawler import locks
from discogs_crawler.errors import ConfigurationError

# In the store's folder: the lock that exports share and a conversion holds alone.
EXPORTS = "exports.flock"
# The new names of revisions, until the conversion has given them to the consumers.
MOVED = "moved.json"
# The folder in which the new store is built.
CONVERTING = "converting"
# The old repository, which is kept.
KEPT = "single.git"


@contextlib.contextmanager
def excluded(store: Path) -> Iterator[None]:
    """Let no conversion of the store start during the block.

    TryLater while one is running, ConfigurationError if one was interrupted.
    """
    with locks.shared(store / EXPORTS, "maintain_store.py --to-submodules"):
        if (store / MOVED).exists():
            raise interrupted(store)
        yield


def interrupted(path: Path) -> ConfigurationError:
    """Return the error of a store whose conversion was interrupted."""
    return ConfigurationError(
        f"{path}: its conversion was interrupted: run maintain_store.py --to-submodules again"
    )
