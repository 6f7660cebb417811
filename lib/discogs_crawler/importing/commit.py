"""Put imported records, which are blobs already, into the store: decided at the tip it commits on.

A record of the API is never replaced. Whatever the ledger says, a worker may have committed since;
so an import replaces only what begins with `_dump`, or is not there.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from discogs_crawler.importing.lanes import ENTRY
from discogs_crawler.records import record_path
from discogs_crawler.store import fast_import, objects
from discogs_crawler.store.fast_import import Entry, Pushed
from discogs_crawler.store.git import Repository
from discogs_crawler.store.single import FROM_DUMP, SingleStore

# Records that are looked up at once: if each is in another directory, 20 MB.
LOOK_UP = 10_000

# Records that are read at once: 5 MB.
READ = 1_000


class ImportCounts(NamedTuple):
    """What a commit did."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    kept: int = 0
    """records of the API, and those that a worker has removed: not touched"""

    def plus(self, other: "ImportCounts") -> "ImportCounts":
        """The sums."""
        return ImportCounts(*map(sum, zip(self, other, strict=True)))


class ImportedRow(NamedTuple):
    """An ENTRY."""

    id: int
    marks: int
    oid: bytes


class Outcome(NamedTuple):
    """What came of entries: those that are in the store now, as they were given."""

    entries: bytes
    counts: ImportCounts


def put(
    store: SingleStore, kind: str, entries: bytes, days: Sequence[str], trailers: Mapping[str, str]
) -> Outcome:
    """Commit to one repository the records that may be; see lanes.ENTRY, `days` by marks."""

    def attempt() -> Outcome | Pushed:
        base = store.refresh()
        outcome, changes = _decide(store, base, kind, entries, days)
        if changes:
            pieces = (
                Entry(_path(store, kind, record_id), None, oid.hex())
                for record_id, _, oid in ENTRY.iter_unpack(changes)
            )
            message = fast_import.describe(_subject(kind, outcome.counts), trailers)
            made = store.publish(base, pieces, message)
            if isinstance(made, Pushed):
                return made
        return outcome

    return store.retried(attempt)


def remove(
    store: SingleStore, kind: str, ids: Iterable[int], trailers: Mapping[str, str]
) -> tuple[list[int], ImportCounts]:
    """Remove those of the records that came from a dump; which are not in the store any more."""
    wanted = list(ids)

    def attempt() -> tuple[list[int], ImportCounts] | Pushed:
        base = store.refresh()
        stored: dict[int, bytes] = {}
        for part in _slices(wanted, LOOK_UP):
            stored |= _stored(store, base, kind, part)
        ours = _from_dump(store.repository, stored)
        counts = ImportCounts(removed=len(ours), kept=len(stored) - len(ours))
        if ours:
            gone = [Entry(_path(store, kind, i), None) for i in wanted if i in ours]
            message = fast_import.describe(_subject(kind, counts), trailers)
            made = store.publish(base, gone, message)
            if isinstance(made, Pushed):
                return made
        return [i for i in wanted if i in ours or i not in stored], counts

    return store.retried(attempt)


def _path(store: SingleStore, kind: str, record_id: int) -> str:
    return record_path(kind, record_id).removeprefix(store.prefix)


def _decide(
    store: SingleStore, base: str | None, kind: str, entries: bytes, days: Sequence[str]
) -> tuple[Outcome, bytes]:
    """What is in the store afterwards, and of that what is not there yet."""
    there, changes, counts = bytearray(), bytearray(), ImportCounts()
    size = ENTRY.size * LOOK_UP
    for start in range(0, len(entries), size):
        rows = [ImportedRow._make(row) for row in ENTRY.iter_unpack(entries[start : start + size])]
        stored = _stored(store, base, kind, [row.id for row in rows])
        verdicts = _look(store.repository, rows, stored, days)
        numbers = collections.Counter(verdicts)
        for row, verdict in zip(rows, verdicts, strict=True):
            packed = ENTRY.pack(*row)
            if verdict != "kept":
                there += packed
            if verdict in ("added", "changed"):
                changes += packed
        counts = counts.plus(ImportCounts(numbers["added"], numbers["changed"], 0, numbers["kept"]))
    return Outcome(bytes(there), counts), bytes(changes)


def _look(
    repository: Repository,
    rows: Sequence[ImportedRow],
    stored: Mapping[int, bytes],
    days: Sequence[str],
) -> list[str]:
    """For each row what it is to the store: added, changed, same, or kept as the store has it."""
    verdicts = []
    differing = []
    for number, row in enumerate(rows):
        before = stored.get(row.id)
        if before is None:
            # One that was imported before and is not there was removed by a worker, after 404.
            verdicts.append("kept" if row.marks & 1 else "added")
        else:
            verdicts.append("same")
            if before != row.oid:
                differing.append(number)
    for part in _slices(differing, READ):
        names = [stored[rows[number].id].hex() for number in part]
        contents = objects.contents(repository.path, names)
        for number, data in zip(part, contents, strict=True):
            verdicts[number] = _compare(rows[number], data or b"", days)
    return verdicts


def _compare(row: ImportedRow, before: bytes, days: Sequence[str]) -> str:
    """The same for a record that is stored in other bytes."""
    if not before.startswith(FROM_DUMP):
        return "kept"
    # Another dump that says the same of the record is no reason for a commit.
    day = f'"{days[row.marks]}"'.encode()
    again = FROM_DUMP + day + before[len(FROM_DUMP) + len(day) :]
    return "same" if fast_import.blob_id(again) == row.oid else "changed"


def _stored(
    store: SingleStore, base: str | None, kind: str, ids: Iterable[int]
) -> dict[int, bytes]:
    """The blobs of those records that commit `base` has."""
    paths = {_path(store, kind, record_id): record_id for record_id in ids}
    found = fast_import.stored(store.repository, base, paths)
    return {paths[path]: oid for path, oid in found.items()}


def _from_dump(repository: Repository, blobs: Mapping[int, bytes]) -> set[int]:
    """Those whose blob was imported."""
    found: set[int] = set()
    for part in _slices(list(blobs), READ):
        contents = objects.contents(repository.path, [blobs[record_id].hex() for record_id in part])
        for record_id, data in zip(part, contents, strict=True):
            if data is not None and data.startswith(FROM_DUMP):
                found.add(record_id)
    return found


def _slices(ids: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _subject(kind: str, counts: ImportCounts) -> str:
    words = (
        (counts.added, "imported"),
        (counts.changed, "imported again"),
        (counts.removed, "removed"),
    )
    return f"{kind}: " + ", ".join(f"{number} {word}" for number, word in words if number)
