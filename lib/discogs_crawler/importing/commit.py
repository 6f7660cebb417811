"""Put imported records, which are blobs already, into the store: decided at the tip it commits on.

A record of the API is never replaced. Whatever the ledger says, a worker may have committed since;
so an import replaces only what begins with `_dump`, or is not there.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from discogs_crawler.api import cleaning
from discogs_crawler.importing.lanes import ENTRY
from discogs_crawler.records import record_path
from discogs_crawler.store import fast_import, git
from discogs_crawler.store.fast_import import Entry
from discogs_crawler.store.git import Repository
from discogs_crawler.store.single import Store

# Records that are looked up at once: if each is in another directory, 20 MB.
LOOK_UP = 10_000

# Records that are read at once: 5 MB.
READ = 1_000


class Counts(NamedTuple):
    """What a commit did."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    kept: int = 0
    """records of the API, and those that a worker has removed: not touched"""

    def plus(self, other: "Counts") -> "Counts":
        """The sums."""
        return Counts(*map(sum, zip(self, other, strict=True)))


class Outcome(NamedTuple):
    """What came of entries: those that are in the store now, as they were given."""

    entries: bytes
    counts: Counts


def put(store: Store, kind: str, entries: bytes, trailers: Mapping[str, str]) -> Outcome:
    """Commit to one repository the records that may be; see import_lanes.ENTRY."""

    def attempt() -> Outcome:
        base = store.refresh()
        outcome, changes = _decide(store, base, kind, entries)
        if changes:
            subject = _subject(kind, outcome.counts)
            pieces = (
                Entry(_path(store, kind, record_id), None, oid.hex())
                for record_id, _, oid in ENTRY.iter_unpack(changes)
            )
            store.publish(base, pieces, fast_import.describe(subject, trailers))
        return outcome

    return store.retried(attempt)


def remove(
    store: Store, kind: str, ids: Iterable[int], trailers: Mapping[str, str]
) -> tuple[list[int], Counts]:
    """Remove those of the records that came from a dump; which are not in the store any more."""
    wanted = list(ids)

    def attempt() -> tuple[list[int], Counts]:
        base = store.refresh()
        stored: dict[int, bytes] = {}
        for part in _slices(wanted, LOOK_UP):
            stored |= _stored(store, base, kind, part)
        ours = _from_dump(store.repository, stored)
        counts = Counts(removed=len(ours), kept=len(stored) - len(ours))
        if ours:
            gone = [Entry(_path(store, kind, i), None) for i in wanted if i in ours]
            message = fast_import.describe(_subject(kind, counts), trailers)
            store.publish(base, gone, message)
        return [i for i in wanted if i in ours or i not in stored], counts

    return store.retried(attempt)


def _path(store: Store, kind: str, record_id: int) -> str:
    return record_path(kind, record_id).removeprefix(store.prefix)


def _decide(store: Store, base: str | None, kind: str, entries: bytes) -> tuple[Outcome, bytes]:
    """What is in the store afterwards, and of that what is not there yet."""
    there, changes, counts = bytearray(), bytearray(), Counts()
    size = ENTRY.size * LOOK_UP
    for start in range(0, len(entries), size):
        rows = list(ENTRY.iter_unpack(entries[start : start + size]))
        stored = _stored(store, base, kind, [row[0] for row in rows])
        others = {i: stored[i] for i, _, oid in rows if i in stored and stored[i] != oid}
        ours = _from_dump(store.repository, others)
        added = changed = kept = 0
        for record_id, marks, oid in rows:
            row = ENTRY.pack(record_id, marks, oid)
            # One that was imported before and is not there was removed by a worker, after 404.
            if record_id in others:
                is_ours = record_id in ours
                changed += is_ours
            else:
                is_ours = record_id in stored or not marks & 1
                added += is_ours and record_id not in stored
            if not is_ours:
                kept += 1
                continue
            there += row
            if stored.get(record_id) != oid:
                changes += row
        counts = counts.plus(Counts(added=added, changed=changed, kept=kept))
    return Outcome(bytes(there), counts), bytes(changes)


def _stored(store: Store, base: str | None, kind: str, ids: Iterable[int]) -> dict[int, bytes]:
    """The blobs of those records that commit `base` has."""
    paths = {_path(store, kind, record_id): record_id for record_id in ids}
    found = fast_import.stored(store.repository, base, paths)
    return {paths[path]: oid for path, oid in found.items()}


def _from_dump(repository: Repository, blobs: Mapping[int, bytes]) -> set[int]:
    """Those whose blob was imported."""
    found: set[int] = set()
    for part in _slices(list(blobs), READ):
        names = [blobs[record_id].hex() for record_id in part]
        contents = git.read_blobs(repository, names)
        found |= {
            record_id
            for record_id, data in zip(part, contents, strict=True)
            if data is not None and data.startswith(cleaning.FROM_DUMP)
        }
    return found


def _slices(ids: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _subject(kind: str, counts: Counts) -> str:
    words = (
        (counts.added, "imported"),
        (counts.changed, "imported again"),
        (counts.removed, "removed"),
    )
    return f"{kind}: " + ", ".join(f"{number} {word}" for number, word in words if number)
