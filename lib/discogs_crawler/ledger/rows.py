"""What the ledger keeps of an id, of a dump and of a run."""

import dataclasses
from typing import NamedTuple

from discogs_crawler.errors import EXIT_DONE

# Stands in `imported` for a dump that the ledger does not know: it was lost and made again.
UNKNOWN_DUMP = 0


class Row(NamedTuple):
    """What the ledger knows of an id; the columns of its table, explained in `schema`."""

    id: int
    hash: bytes | None = None
    dump: int | None = None
    due: int | None = None
    reason: str | None = None
    since: int | None = None
    crawled: int | None = None
    status: int | None = None
    alive: int | None = None
    removed: int | None = None
    changed: int | None = None
    misses: int = 0
    failure: str | None = None
    successor: int | None = None
    imported: int | None = None

    @property
    def stored(self) -> bool:
        """The store has its record, from the API or from a dump."""
        return (self.alive is not None and self.removed is None) or self.imported is not None


@dataclasses.dataclass
class Run:
    """What a run reports: what it did, and its exit code if it ends without an error."""

    counts: dict[str, int]
    exit_code: int = EXIT_DONE


class DumpRow(NamedTuple):
    """A dump as the ledger's table `dumps` has it."""

    id: int
    kind: str
    file: str
    not_before: int
    not_after: int
    sha256: bytes | None
    records: int
    verdict: str
    result_sha256: bytes | None
    canonical_version: int
    started: int | None
    accepted: int | None
    imported: int | None
