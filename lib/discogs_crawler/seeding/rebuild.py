"""Rebuild a lost ledger from the store and the last hash file.

Lost for good is when each record was fetched, and so which of them have changed since according to
a dump: all that is stored is requested once more, after everything else, unless the user knows
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
from discogs_crawler.ledger.rows import UNKNOWN_DUMP, DumpRow, Row
from discogs_crawler.seeding import ingest
from discogs_crawler.seeding.dump_guard import Comparison
from discogs_crawler.seeding.want_rules import want


def kept_hashes(ledger: Ledger, kind: str) -> Path:
    """The hash file that was kept beside the lost ledger."""
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
    """Fill the ledger with the dump and the ids of what is stored; return the numbers of both.

    `stored` says of each id whether a dump brought the record. Such records, and those that are not
    stored, are wanted as `backfill`, and the next import compares them with its dump. What
    is stored from the API is wanted as `refresh`. With `adopt` nothing that is stored is wanted.
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
            rows = [
                _as_stored(row, dump, now, is_imported=batch[row.id], adopt=adopt)
                for row in known.values()
                if row.alive is None
            ]
            ledger.save(dump.kind, rows)
        number += len(batch)
    return number


def _as_stored(row: Row, dump: DumpRow, now: int, *, is_imported: bool, adopt: bool) -> Row:
    unwanted = row._replace(due=None, reason=None, since=None)
    if is_imported:
        return (unwanted if adopt else row)._replace(imported=UNKNOWN_DUMP)
    fetched = unwanted._replace(crawled=dump.not_before, alive=dump.not_before, status=200)
    return fetched if adopt else want(fetched, "refresh", now, min(dump.not_after + 1, now))
