"""Making a lost ledger again from the store and the last file of hashes.

What is lost for good is when each record was fetched, so which of them a dump has shown to be
changed since: all that is stored is asked once more, after everything else, unless the user knows
better. Lost too are the places of consumers. A backup of the ledger, which maintain_store.py makes
every night, loses a day at most.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path

from discogs_crawler import clock
from discogs_crawler.dumps.hashfile import HashFile
from discogs_crawler.errors import UsageError
from discogs_crawler.ledger.database import BATCH, Ledger
from discogs_crawler.ledger.rows import DumpRow
from discogs_crawler.seeding import ingest
from discogs_crawler.seeding.dump_guard import Comparison
from discogs_crawler.seeding.want_rules import want

# Stands in `imported` for a dump that the lost ledger knew.
UNKNOWN_DUMP = 0


def kept_hashes(ledger: Ledger, kind: str) -> Path:
    """The file of hashes that was kept beside the ledger that is lost."""
    kept = sorted(
        ledger.path.parent.glob(f"{ledger.path.name}.{kind}.*.hashes"),
        key=lambda path: path.stat().st_mtime,
    )
    if not kept:
        raise UsageError("--rebuild-ledger: name the hashes of the last dump with -n")
    return kept[-1]


def rebuild(
    ledger: Ledger,
    file: HashFile,
    dump: DumpRow,
    stored: Iterable[tuple[int, bool]],
    *,
    adopt: bool,
) -> dict[str, int]:
    """Fill the ledger with the dump and the ids of what is stored; how many there are of each.

    `stored` says of each id whether a dump brought the record. That is wanted as what is not there,
    and the next import looks whether it is as in the last dump.

    What is not stored is wanted as in a first import; what is stored as `refresh`, or with `adopt`
    not at all.
    """
    if ledger.last_accepted(dump.kind) is not None:
        raise UsageError(
            f"--rebuild-ledger: {ledger.path} is not lost, it knows {dump.kind}; move it away first"
        )
    ingest.mark_started(ledger, dump)
    ingest.import_first(ledger, file, dump, adopt=False)
    number = _mark_stored(ledger, dump, stored, adopt)
    ingest.accept(ledger, file, dump, Comparison(0, file.records, file.records, 0, 0))
    return {"added": file.records, "stored": number}


def _mark_stored(
    ledger: Ledger, dump: DumpRow, stored: Iterable[tuple[int, bool]], adopt: bool
) -> int:
    """Note that these ids are stored; their last fetch is taken to be the dump's."""
    now = int(clock.now())
    ids, number = iter(stored), 0
    while batch := dict(itertools.islice(ids, BATCH)):
        with ledger.transaction():
            known = ledger.rows(dump.kind, batch)
            imported = [
                row._replace(imported=UNKNOWN_DUMP)
                for row in known.values()
                if batch[row.id] and row.alive is None
            ]
            if adopt:
                imported = [row._replace(due=None, reason=None, since=None) for row in imported]
            rows = [
                row._replace(
                    crawled=dump.not_before,
                    alive=dump.not_before,
                    status=200,
                    due=None,
                    reason=None,
                    since=None,
                )
                for row in known.values()
                if row.alive is None and not batch[row.id]
            ]
            if not adopt:
                since = min(dump.not_after + 1, now)
                rows = [want(row, "refresh", now, since) for row in rows]
            ledger.save(dump.kind, rows + imported)
        number += len(batch)
    return number
