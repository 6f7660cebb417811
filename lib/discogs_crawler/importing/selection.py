"""Select the records of an accepted dump that are to be imported, and note that they were.

These are records that the ledger does not have from the API, and whose last import was not from the
dump that brought their hash: the first time all of them, a month later those that differ.
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

# Rows known only from dumps: the API has answered neither with the record nor with 404.
_OF_DUMP_ALONE = "alive IS NULL AND misses = 0"


class Selection(NamedTuple):
    """The records to import from the dump."""

    marks: bytearray
    """by id: 0 if the record is not wanted; else twice the place in `dumps`, counted from 1, of the
    dump that brought it, plus 1 if the ledger knows of an earlier import of it"""
    dumps: list[int]
    """ids of dumps in the ledger"""
    days: list[str]
    """the day, YYYYMMDD, of each of `dumps`"""
    records: int
    """the number of wanted records"""

    def dump_of(self, marks: int) -> int:
        """Return the dump that brought a record with these marks."""
        return self.dumps[(marks >> 1) - 1]


def select(ledger: Ledger, kind: str) -> Selection:
    """Select the records of a kind that are to be imported."""
    highest = ledger.db.execute(f"SELECT ifnull(max(id), 0) FROM {kind}").fetchone()[0]
    # One byte per id; pages that are never written take no memory.
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
    """Return the ids, ascending, of imported records that the accepted dump lacks.

    BadData if they are more than RETIRED_SHARE of its records, unless `force`.
    """
    rows = ledger.db.conn.execute(
        f"SELECT id FROM {dump.kind} "
        "WHERE dump IS NULL AND imported IS NOT NULL AND alive IS NULL ORDER BY id"
    )
    ids = array.array("I", (row[0] for row in rows))
    if len(ids) > RETIRED_SHARE * dump.records and not force:
        raise BadData(
            f"{dump.file} has {dump.records:,} records and lacks {len(ids):,} that were imported; "
            "nothing was changed; --force removes them anyway"
        )
    return ids


def note_imported(ledger: Ledger, kind: str, records: Iterable[tuple[int, int]]) -> None:
    """Note for each pair of dump and id that the store has the record from that dump.

    Not if the API has answered meanwhile: its record replaces the import, now or later.
    """
    update = f"UPDATE {kind} SET imported = ? WHERE id = ? AND alive IS NULL AND removed IS NULL"
    _in_batches(ledger, update, iter(records))


def note_removed(ledger: Ledger, kind: str, ids: Iterable[int]) -> None:
    """Note that the store no longer has these records from a dump."""
    update = f"UPDATE {kind} SET imported = NULL WHERE id = ?"
    _in_batches(ledger, update, ((record_id,) for record_id in ids))


def note_revision(ledger: Ledger, kind: str, revision: str | None) -> None:
    """Note that the store must have this commit, because it has records from a dump."""
    with ledger.transaction():
        ledger.note_revision(kind + database.IMPORTED, [revision or ""])


def note_done(ledger: Ledger, dump: DumpRow) -> None:
    """Note that the dump has been imported completely."""
    with ledger.transaction() as connection:
        connection.execute(
            "UPDATE dumps SET imported = ? WHERE id = ?", (int(clock.now()), dump.id)
        )


def _in_batches(ledger: Ledger, update: str, values: Iterator[tuple[int, ...]]) -> None:
    while batch := list(itertools.islice(values, BATCH)):
        with ledger.transaction() as connection:
            connection.executemany(update, batch)
