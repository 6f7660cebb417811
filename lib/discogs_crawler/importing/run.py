"""One run of import_dump.py: from a dump that the ledger has accepted to commits in the store.

It reads the dump once. Lanes convert the records into blobs; every so many blobs are committed and
then noted in the ledger, while the lanes convert the next ones. So a run that is killed leaves at
most one commit that is not noted yet; the next run finds its records in the store.
"""

import collections
import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from discogs_crawler import locks
from discogs_crawler.api import cleaning
from discogs_crawler.cli import progress
from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.config import Settings
from discogs_crawler.dumps.block_reader import DumpFile, Window
from discogs_crawler.dumps.canonical import CANONICAL_VERSION
from discogs_crawler.dumps.hash_cache import open_hash_cache
from discogs_crawler.dumps.known_elements import ElementWatch
from discogs_crawler.dumps.prolog import read_prolog
from discogs_crawler.errors import BadData, TryLater, UsageError
from discogs_crawler.importing import commit
from discogs_crawler.importing import selection as import_selection
from discogs_crawler.importing.commit import ImportCounts
from discogs_crawler.importing.cut import Record, cut, cut_known
from discogs_crawler.importing.lanes import BATCH_BYTES, ENTRY, Lanes, Setup
from discogs_crawler.importing.selection import Selection
from discogs_crawler.ledger import database, drift
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.ledger.rows import DumpRow
from discogs_crawler.records import segment_of
from discogs_crawler.store.layouts import (
    SingleStore,
    Store,
    open_store,
    refuse_empty,
    refuse_older_copy,
    refuse_to_begin_anew,
)

log = logging.getLogger(__name__)

# The most records in a commit: half a gigabyte of packs. Making it takes 300 bytes of memory per
# record, 200 of them in Git; it leaves a pack for each lane and one for its trees.
COMMIT_RECORDS = 500_000

# The same with a remote: the push, 1.2 kB per record, must end within its time limit.
PUSH_RECORDS = 100_000

# Fewer records are also divided into so many commits, of at least SMALL_COMMIT records: all but the
# last are made while the dump is being read.
COMMITS = 8
SMALL_COMMIT = 2_000


class ImportReport(NamedTuple):
    """The result of a run."""

    file: str
    kind: str
    counts: ImportCounts
    damaged: int
    seconds: float

    def line(self) -> str:
        """Return a summary in one line."""
        added, changed, removed, kept = self.counts
        number = added + changed
        if not (number or removed or kept or self.damaged):
            return f"{self.file}: all of it was imported before"
        extras = [f"{kept:,} kept as the API gave them"] if kept else []
        extras += [f"{self.damaged} damaged and skipped"] if self.damaged else []
        return (
            f"{self.file}: {', '.join([f'{added:,} {self.kind} imported', *extras])}, "
            f"{changed:,} imported again, {removed:,} removed in {self.seconds:.1f} s"
            + (f", {number / max(self.seconds, 0.001):,.0f} records/s" if number else "")
        )


def find_dump(opened: Ledger, path: Path) -> DumpRow:
    """Return the ledger's row of the dump; BadData unless it is the one that it accepted last.

    TryLater if the ledger also has hashes of another one.
    """
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    dump = opened.dump_of_file(sha256)
    if dump is None:
        raise BadData(
            f"{path}: the ledger does not know this dump: first discogs_xml_split.py -d {path} "
            f"-r {path}.hashes, then seed_queue.py -n {path}.hashes"
        )
    accepted = opened.last_accepted(dump.kind)
    if accepted is None or not _is_of(accepted, dump):
        what = "none yet" if accepted is None else accepted.file
        raise BadData(
            f"{path}: the ledger has not accepted this dump of {dump.kind} ({what}): first "
            "seed_queue.py -n with its hashes; only the newest dump can be imported"
        )
    _refuse_others(opened, accepted)
    return accepted


def _refuse_others(opened: Ledger, dump: DumpRow) -> None:
    """TryLater unless the hashes that the ledger has are those of this dump alone.

    Of a seeding that has not ended it has some of the hashes, which are not this dump's content.
    """
    accepted = opened.last_accepted(dump.kind)
    if opened.half_done(dump.kind) or accepted is None or accepted.id != dump.id:
        raise TryLater(
            f"{dump.file}: seeding with another dump of {dump.kind} has not ended: run "
            "seed_queue.py -n with the hashes of that dump again, or with those of this one to go "
            "back to it; then import_dump.py -d"
        )


def _is_of(accepted: DumpRow, dump: DumpRow) -> bool:
    """Whether the accepted hashes are those of the dump."""
    # A rebuilt ledger has accepted hashes without knowing their dump.
    if accepted.sha256 is None:
        return accepted.result_sha256 == dump.result_sha256
    return accepted.sha256 == dump.sha256


def run(path: Path, settings: Settings, *, force: bool) -> ImportReport:
    """Import the dump at `path` into the store, and note the run in the ledger.

    TryLater if another import does not end in time, or a seeding has not ended; BadData,
    UsageError, ConfigurationError or Unavailable if the dump, the store or the remote cannot be
    used. `force` skips the check of removals.
    """
    lock = settings.state_dir / "import_dump.lock"
    with (
        locks.exclusive(lock, "import_dump", patience_s=locks.PATIENCE_S),
        database.open(settings.database) as ledger,
    ):
        dump = find_dump(ledger, path)
        records = ledger.stored()
        refuse_to_begin_anew(settings, records)
        stop = Stop()
        store = open_store(settings, stop=stop)
        refuse_empty(store, records, settings.database)
        refuse_older_copy(store, ledger.revisions())
        with ledger.run("import_dump", dump.kind) as kept:
            report = import_dump(path, dump, store, ledger, settings, stop, force=force)
            kept.counts |= {**report.counts._asdict(), "damaged": report.damaged}
    return report


def import_dump(
    path: Path,
    dump: DumpRow,
    store: Store,
    opened: Ledger,
    settings: Settings,
    stop: Stop,
    *,
    force: bool,
) -> ImportReport:
    """Bring all records of the store that are not from the API up to date with the dump."""
    started = time.monotonic()
    trailers = {
        "Source": f"dump {path.name}",
        "Cleaner": cleaning.rules_for(settings, dump.kind).name,
    }
    counts, damaged = ImportCounts(), 0
    # A seeding that begins later changes nothing: what is noted is of the dumps in `selection`.
    with opened.snapshot():
        _refuse_others(opened, dump)
        gone = import_selection.vanished(opened, dump, force=force)
        selection = import_selection.select(opened, dump.kind) if dump.imported is None else None
    if gone:
        counts = _remove(store, opened, dump.kind, gone, trailers)
    if selection is not None:
        if selection.records:
            cache = opened.hash_cache_of(dump.kind, CANONICAL_VERSION)
            run = _Run(path, dump.kind, store, selection, cache, trailers, settings)
            run.go(stop)
            counts, damaged = counts.plus(run.counts), run.damaged
            with opened.transaction() as connection:
                noticed = run.watch.observations(dump.not_before)
                drift.record(connection, dump.kind, "import", noticed)
        import_selection.note_done(opened, dump)
    return ImportReport(path.name, dump.kind, counts, damaged, time.monotonic() - started)


def _remove(
    store: Store, opened: Ledger, kind: str, ids: Sequence[int], trailers: dict[str, str]
) -> ImportCounts:
    counts = ImportCounts()
    parts: dict[SingleStore, list[int]] = collections.defaultdict(list)
    for record_id in ids:
        parts[store.part(kind, segment_of(record_id))].append(record_id)
    for part, wanted in parts.items():
        gone, done = commit.remove(part, kind, wanted, trailers)
        import_selection.note_removed(opened, kind, gone)
        import_selection.note_revision(opened, kind, part.tip())
        counts = counts.plus(done)
    return counts


class _Run:
    """The state of a run: batches of records, their lanes, and the commit that is being made."""

    def __init__(
        self,
        path: Path,
        kind: str,
        store: Store,
        selection: Selection,
        cache_sha256: bytes | None,
        trailers: dict[str, str],
        settings: Settings,
    ) -> None:
        self._path, self._kind, self._store = path, kind, store
        self._selection, self._trailers, self._settings = selection, trailers, settings
        self._cache_sha256 = cache_sha256
        self._days = ["", "", *(day for day in selection.days for _ in range(2))]  # by marks
        most = PUSH_RECORDS if settings.store_remote else COMMIT_RECORDS
        self._limit = min(most, max(SMALL_COMMIT, selection.records // COMMITS + 1))
        self._batch: list[Record] = []
        self._segment = self._bytes = self._staged = 0
        self._parts: list[SingleStore] = []
        """of each batch that was sent to a lane since the last commit"""
        self._saving: Future[ImportCounts] | None = None
        self.counts = ImportCounts()
        self.damaged = 0
        self.watch = ElementWatch(kind)

    def go(self, stop: Stop) -> None:
        """Import all selected records."""
        rules = cleaning.rules_for(self._settings, self._kind)
        with contextlib.ExitStack() as stack:
            saver = stack.enter_context(ThreadPoolExecutor(1, "commit"))
            stack.callback(stop.ask)  # if interrupted, the saver does not wait for a remote
            wanted = self._selection.records
            lanes = stack.enter_context(Lanes(Setup(self._kind, rules, self._days), wanted))
            advance = stack.enter_context(progress.bar("import", wanted, "records/s"))
            for records in self._records(stack):
                for record in records:
                    self._take(lanes, record)
                if self._staged >= self._limit:
                    self._save(lanes, saver)
                advance(len(records))
            self._save(lanes, saver)
            self._wait()

    def _records(self, stack: contextlib.ExitStack) -> Iterator[list[Record]]:
        """Yield the selected records, in lists: first those that the split's hash cache has.

        It lacks damaged records, or all if the state folder has lost it; the dump is then read
        once more for the rest.
        """
        marks, state_dir = self._selection.marks, self._settings.state_dir
        cache = stack.enter_context(open_hash_cache(state_dir, self._kind, self._cache_sha256))
        if not cache.is_empty:
            yield from cut_known(*self._open(stack), marks, cache)
        if marks.count(0) < len(marks):
            yield from cut(*self._open(stack), marks)

    def _open(self, stack: contextlib.ExitStack) -> tuple[Window, str]:
        window = stack.enter_context(Window(stack.enter_context(DumpFile(self._path))))
        return window, read_prolog(window, self._kind)

    def _take(self, lanes: Lanes, record: Record) -> None:
        """Add a record to the batch, which has records of one segment."""
        segment = segment_of(record.id)
        if self._batch and (segment != self._segment or self._bytes >= BATCH_BYTES):
            self._send(lanes)
        self._segment = segment
        self._batch.append(record)
        self._bytes += len(record.xml)

    def _send(self, lanes: Lanes) -> None:
        """Send the batch to a lane."""
        part = self._store.part(self._kind, self._segment)
        lanes.put(part.repository.path, self._batch)
        ids, _, texts = zip(*self._batch, strict=True)
        self.watch.look_at_some(ids, texts)
        self._parts.append(part)
        self._staged += len(self._batch)
        self._batch, self._bytes = [], 0

    def _save(self, lanes: Lanes, saver: ThreadPoolExecutor) -> None:
        """Commit and note, in the background, what was sent to lanes."""
        if self._batch:
            self._send(lanes)
        answers = lanes.finish()
        self._wait()
        entries: dict[SingleStore, list[bytes]] = collections.defaultdict(list)
        for part, answer in zip(self._parts, answers, strict=True):
            entries[part].append(answer.entries)
            for record_id, reason in answer.damaged:
                log.warning("record %d is damaged and not imported: %s", record_id, reason)
                self.damaged += 1
        self._parts, self._staged = [], 0
        self._saving = saver.submit(self._commit, entries)

    def _wait(self) -> None:
        if self._saving is not None:
            self.counts = self.counts.plus(self._saving.result())
            self._saving = None

    def _commit(self, entries: dict[SingleStore, list[bytes]]) -> ImportCounts:
        """Commit, then note; in a thread of its own, with its own connection to the ledger."""
        counts = ImportCounts()
        for part, pieces in entries.items():
            outcome = commit.put(part, self._kind, b"".join(pieces), self._days, self._trailers)
            counts = counts.plus(outcome.counts)
            brought = (
                (self._selection.dump_of(marks), record_id)
                for record_id, marks, _ in ENTRY.iter_unpack(outcome.entries)
            )
            with database.open(self._settings.database) as opened:
                import_selection.note_imported(opened, self._kind, brought)
                import_selection.note_revision(opened, self._kind, part.tip())
        return counts
