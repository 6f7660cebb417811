"""What a conversion of the store (`maintain_store.py --to-submodules`) locks and leaves behind."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from discogs_crawler import locks
from discogs_crawler.errors import ConfigurationError

# In the store's folder: the lock that each export shares and a conversion of the store holds alone;
# the new names of revisions, as long as the conversion has not moved the consumers there; where it
# builds; and the old repository, which is kept.
EXPORTS = "exports.flock"
MOVED = "moved.json"
CONVERTING = "converting"
KEPT = "single.git"


@contextlib.contextmanager
def excluded(store: Path) -> Iterator[None]:
    """Read the store during the block, while nobody converts it; TryLater if somebody does."""
    with locks.shared(store / EXPORTS, "maintain_store.py --to-submodules"):
        if (store / MOVED).exists():
            raise interrupted(store)
        yield


def interrupted(path: Path) -> ConfigurationError:
    """The error of a store that is half converted."""
    return ConfigurationError(
        f"{path}: its conversion was interrupted: run maintain_store.py --to-submodules again"
    )
