"""Which records of an accepted dump are to be imported, and the note that they are.

Imported is what the ledger does not have from the API, and whose dump (that brought its hash) is
not yet the one that it was imported from: the first time everything, a month later what differs.
"""

import array
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from discogs_crawler import clock
from discogs_crawler.errors import BadData
from discogs_crawler.ledger import database
from discogs_crawler.ledger.database import BATCH, Ledger
from discogs_crawler.ledger.rows import DumpRow
from discogs_crawler.seeding.dump_guard import RETIRED_SHARE

# Rows that only a dump has shown: never answered, neither with the record nor with 404.
_OF_DUMP_ALONE = "alive IS NULL AND misses = 0"


class Selection(NamedTuple):
    """What to take from the dump.

    `marks[id]` is 0 for what is not wanted; else twice the place in `dumps`, counted from 1, of the
    dump that brought the record, plus 1 if the store is known to have an older import of it.
    """

    marks: bytearray
    dumps: list[int]
    days: list[str]
    """of each of `dumps` its day, YYYYMMDD"""
    records: int

    def dump_of(self, marks: int) -> int:
        """The dump that brought a record with these marks."""
        return self.dumps[(marks >> 1) - 1]


def select(ledger: Ledger, kind: str) -> Selection:
    """Look through all ids of a kind."""
    highest = ledger.db.execute(f"SELECT ifnull(max(id), 0) FROM {kind}").fetchone()[0]
    # One byte an id, and none that costs memory before it is written.
    marks, places, number = bytearray(highest + 1), dict[int, int](), 0
    rows = ledger.db.conn.execute(
        f"SELECT id, dump, imported IS NOT NULL FROM {kind} "
        f"WHERE dump IS NOT NULL AND {_OF_DUMP_ALONE} AND imported IS NOT dump"
    )
    for record_id, dump, known in rows:
        marks[record_id] = 2 * places.setdefault(dump, len(places) + 1) + known
        number += 1
    days = dict(ledger.db.execute("SELECT id, not_before FROM dumps").fetchall())
    return Selection(marks, list(places), [_day(days.get(dump, 0)) for dump in places], number)


def _day(epoch: int) -> str:
    return time.strftime("%Y%m%d", time.gmtime(epoch))


def vanished(ledger: Ledger, dump: DumpRow, *, force: bool) -> Sequence[int]:
    """Imported records that the accepted dump lacks, ascending.

    BadData if they are so many that it cannot be true, unless `force`.
    """
    rows = ledger.db.conn.execute(
        f"SELECT id FROM {dump.kind} "
        "WHERE dump IS NULL AND imported IS NOT NULL AND alive IS NULL ORDER BY id"
    )
    ids = array.array("I", (row[0] for row in rows))
    if len(ids) > RETIRED_SHARE * dump.records and not force:
        raise BadData(
            f"{dump.file} has {dump.records:,} records and lacks {len(ids):,} that were imported; "
            "nothing was changed; --force removes them all the same"
        )
    return ids


def note_imported(ledger: Ledger, kind: str, records: Iterable[tuple[int, int]]) -> None:
    """Note for each dump and id that the store has the record as that dump brought it.

    Unless the API's answer has arrived meanwhile: it is committed over the import, or will be.
    """
    update = f"UPDATE {kind} SET imported = ? WHERE id = ? AND alive IS NULL AND removed IS NULL"
    _in_batches(ledger, update, iter(records))


def note_removed(ledger: Ledger, kind: str, ids: Iterable[int]) -> None:
    """Note that the store has no import of these any more."""
    update = f"UPDATE {kind} SET imported = NULL WHERE id = ?"
    _in_batches(ledger, update, ((record_id,) for record_id in ids))


def note_revision(ledger: Ledger, kind: str, revision: str | None) -> None:
    """Note that the store must have this commit, with what it has got of a dump."""
    with ledger.transaction():
        ledger.note_revision(kind + database.IMPORTED, [revision or ""])


def note_done(ledger: Ledger, dump: DumpRow) -> None:
    """Note that all there is to import of the dump has been imported."""
    with ledger.transaction() as connection:
        connection.execute(
            "UPDATE dumps SET imported = ? WHERE id = ?", (int(clock.now()), dump.id)
        )


def _in_batches(ledger: Ledger, update: str, values: Iterator[tuple[int, ...]]) -> None:
    while batch := list(itertools.islice(values, BATCH)):
        with ledger.transaction() as connection:
            connection.executemany(update, batch)
