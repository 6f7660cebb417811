"""Commit imported records, whose blobs lanes have stored already.

A record from the API is never replaced. The ledger may not know of it yet, so what is replaced is
decided at the tip of each commit: only records that are missing or begin with `_dump`.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from discogs_crawler.importing.lanes import ENTRY
from discogs_crawler.store import fast_import, objects
from discogs_crawler.store.fast_import import Entry, Pushed
from discogs_crawler.store.single import FROM_DUMP, SingleStore

# Records that are looked up at once: 20 MB if each is in another directory.
LOOK_UP = 10_000

# Records that are read at once: 5 MB.
READ = 1_000


class ImportCounts(NamedTuple):
    """Numbers of records in one or more commits."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    kept: int = 0
    """records from the API, and records that a worker has removed: left as they are"""

    def plus(self, other: "ImportCounts") -> "ImportCounts":
        """Return the sums."""
        return ImportCounts(*map(sum, zip(self, other, strict=True)))


class ImportedRow(NamedTuple):
    """The fields of an ENTRY."""

    id: int
    marks: int
    oid: bytes


class Outcome(NamedTuple):
    """The result of a commit."""

    entries: bytes
    """the ENTRYs whose records are in the store now"""
    counts: ImportCounts


def put(
    store: SingleStore, kind: str, entries: bytes, days: Sequence[str], trailers: Mapping[str, str]
) -> Outcome:
    """Commit the records of one repository that may be replaced.

    `entries` are many ENTRYs, `days` (YYYYMMDD) the days of dumps by marks.
    """

    def attempt() -> Outcome | Pushed:
        base = store.refresh()
        outcome, changes = _decide(store, base, kind, entries, days)
        if changes:
            pieces = (
                Entry(store.path_of(kind, record_id), None, oid.hex())
                for record_id, _, oid in ENTRY.iter_unpack(changes)
            )
            made = store.publish(base, pieces, _message(kind, outcome.counts, trailers))
            if isinstance(made, Pushed):
                return made
        return outcome

    return store.retried(attempt)


def remove(
    store: SingleStore, kind: str, ids: Iterable[int], trailers: Mapping[str, str]
) -> tuple[list[int], ImportCounts]:
    """Remove those records that came from a dump; return the ids that are not in the store now."""
    wanted = list(ids)

    def attempt() -> tuple[list[int], ImportCounts] | Pushed:
        base = store.refresh()
        stored: dict[int, bytes] = {}
        for start in range(0, len(wanted), LOOK_UP):
            stored |= _stored(store, base, kind, wanted[start : start + LOOK_UP])
        ours = {i for i, data in _contents(store, stored) if data.startswith(FROM_DUMP)}
        counts = ImportCounts(removed=len(ours), kept=len(stored) - len(ours))
        if ours:
            gone = [Entry(store.path_of(kind, i), None) for i in wanted if i in ours]
            made = store.publish(base, gone, _message(kind, counts, trailers))
            if isinstance(made, Pushed):
                return made
        return [i for i in wanted if i in ours or i not in stored], counts

    return store.retried(attempt)


def _decide(
    store: SingleStore, base: str | None, kind: str, entries: bytes, days: Sequence[str]
) -> tuple[Outcome, bytes]:
    """Return the outcome of a commit on `base`, and the ENTRYs to commit."""
    there, changes, counts = bytearray(), bytearray(), ImportCounts()
    size = ENTRY.size * LOOK_UP
    for start in range(0, len(entries), size):
        rows = [ImportedRow._make(row) for row in ENTRY.iter_unpack(entries[start : start + size])]
        stored = _stored(store, base, kind, [row.id for row in rows])
        verdicts = _verdicts(store, rows, stored, days)
        for row in rows:
            packed = ENTRY.pack(*row)
            if verdicts[row.id] != "kept":
                there += packed
            if verdicts[row.id] in ("added", "changed"):
                changes += packed
        numbers = collections.Counter(verdicts.values())
        counts = counts.plus(ImportCounts(numbers["added"], numbers["changed"], 0, numbers["kept"]))
    return Outcome(bytes(there), counts), bytes(changes)


def _verdicts(
    store: SingleStore,
    rows: Iterable[ImportedRow],
    stored: Mapping[int, bytes],
    days: Sequence[str],
) -> dict[int, str]:
    """Return by id what each row is: added, changed, same, or kept (the stored record stays)."""
    verdicts: dict[int, str] = {}
    differing: dict[int, ImportedRow] = {}
    for row in rows:
        if row.id not in stored:
            # A record that was imported before and is missing was removed by a worker, after 404.
            verdicts[row.id] = "kept" if row.marks & 1 else "added"
        elif stored[row.id] == row.oid:
            verdicts[row.id] = "same"
        else:
            differing[row.id] = row
    for record_id, data in _contents(store, {i: stored[i] for i in differing}):
        verdicts[record_id] = _compare(differing[record_id], data, days)
    return verdicts


def _compare(row: ImportedRow, before: bytes, days: Sequence[str]) -> str:
    """Do the same for a record that is stored with other bytes."""
    if not before.startswith(FROM_DUMP):
        return "kept"
    # A record that differs only in the day of its dump is not committed.
    day = f'"{days[row.marks]}"'.encode()
    again = FROM_DUMP + day + before[len(FROM_DUMP) + len(day) :]
    return "same" if objects.blob_id(again) == row.oid else "changed"


def _stored(
    store: SingleStore, base: str | None, kind: str, ids: Iterable[int]
) -> dict[int, bytes]:
    """Return the blob ids of those records that are in commit `base`."""
    paths = {store.path_of(kind, record_id): record_id for record_id in ids}
    found = fast_import.stored(store.repository, base, paths)
    return {paths[path]: oid for path, oid in found.items()}


def _contents(store: SingleStore, blobs: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield each id with the content of its blob."""
    ids = iter(blobs)
    while part := list(itertools.islice(ids, READ)):
        names = [blobs[record_id].hex() for record_id in part]
        contents = objects.contents(store.repository.path, names)
        for record_id, data in zip(part, contents, strict=True):
            yield record_id, data or b""


def _message(kind: str, counts: ImportCounts, trailers: Mapping[str, str]) -> str:
    words = dict(zip(("imported", "imported again", "removed"), counts, strict=False))
    return fast_import.describe(fast_import.subject(kind, words), trailers)
