"""One run of import_dump.py: from a dump that the ledger has accepted to commits in the store.

One pass over the dump. Records go to lanes, which make blobs of them; every so many blobs are put
on the tip in one commit, and then noted in the ledger, while the lanes go on with the next. So a
run that was killed has at most committed what is not noted yet; the next one finds it there.
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
from discogs_crawler.errors import BadData, UsageError
from discogs_crawler.importing import commit
from discogs_crawler.importing import selection as import_selection
from discogs_crawler.importing.commit import ImportCounts
from discogs_crawler.importing.cut import Record, cut, cut_known
from discogs_crawler.importing.lanes import BATCH_BYTES, ENTRY, LaneAnswer, Lanes, Setup
from discogs_crawler.importing.selection import Selection
from discogs_crawler.ledger import database, drift
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.ledger.rows import DumpRow
from discogs_crawler.records import segment_of
from discogs_crawler.store import fast_import, git_process
from discogs_crawler.store.layouts import (
    SingleStore,
    Store,
    open_store,
    refuse_empty,
    refuse_older_copy,
    refuse_to_begin_anew,
)

log = logging.getLogger(__name__)

# Records in a commit: half a gigabyte of packs. While it is made Git needs 200 bytes a record, and
# we 100; each commit leaves a pack a lane and one of its own.
COMMIT_RECORDS = 500_000

# With a remote: its push, 1.2 kB a record, must not take longer than one waits for it.
PUSH_RECORDS = 100_000

# Commits into which what is not that much is divided, unless they become smaller than SMALL_COMMIT:
# all but the last are made while the dump is read on.
COMMITS = 8
SMALL_COMMIT = 2_000


class ImportReport(NamedTuple):
    """What a run did."""

    file: str
    kind: str
    counts: ImportCounts
    damaged: int
    seconds: float

    def line(self) -> str:
        """The summary: one line."""
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
    """What the ledger knows of the dump; BadData unless it is the one that it accepted last."""
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
            f"seed_queue.py -n with its hashes; only the newest dump can be imported"
        )
    return accepted


def _is_of(accepted: DumpRow, dump: DumpRow) -> bool:
    """Whether the accepted hashes are those of the dump.

    A ledger that was made again has accepted them not knowing of which file.
    """
    if accepted.sha256 is None:
        return accepted.result_sha256 == dump.result_sha256
    return accepted.sha256 == dump.sha256


def run(path: Path, settings: Settings, *, force: bool) -> ImportReport:
    """Import the dump at `path` into the store, alone, and keep a row about it in the ledger."""
    lock = settings.state_dir / "import_dump.lock"
    with locks.exclusive(lock, "import_dump"), database.open(settings.database) as ledger:
        dump = find_dump(ledger, path)
        records = ledger.count("state IN ('stored', 'imported')")
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
    """Bring the store up to what the dump has, where it has nothing from the API."""
    started = time.monotonic()
    trailers = {
        "Source": f"dump {path.name}",
        "Cleaner": cleaning.rules_for(settings, dump.kind).name,
    }
    counts, damaged = ImportCounts(), 0
    if gone := import_selection.vanished(opened, dump, force=force):
        counts = _remove(store, opened, dump.kind, gone, trailers)
    if dump.imported is None:
        selection = import_selection.select(opened, dump.kind)
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
    parts: dict[Path, tuple[SingleStore, list[int]]] = {}
    for record_id in ids:
        part = store.part(kind, segment_of(record_id))
        parts.setdefault(part.repository.path, (part, []))[1].append(record_id)
    for part, wanted in parts.values():
        gone, done = commit.remove(part, kind, wanted, trailers)
        import_selection.note_removed(opened, kind, gone)
        import_selection.note_revision(opened, kind, part.tip())
        counts = counts.plus(done)
    return counts


class _Run:
    """What is under way between the dump and the ledger."""

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
        self._parts: dict[int, SingleStore] = {}
        self._places: list[int] = []
        self._saving: Future[ImportCounts] | None = None
        self.counts = ImportCounts()
        self.damaged = 0
        self.watch = ElementWatch(kind)

    def go(self, stop: Stop) -> None:
        """Do all of it. When it is interrupted, a remote that is down is not waited for."""
        rules = cleaning.rules_for(self._settings, self._kind)
        setup = Setup(self._kind, rules, self._days, fast_import.FAST_IMPORT)
        with contextlib.ExitStack() as stack:
            saver = stack.enter_context(ThreadPoolExecutor(1, "commit"))
            stack.callback(stop.ask)
            wanted = self._selection.records
            lanes = stack.enter_context(Lanes(setup, git_process.environment(), wanted))
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
        """What is wanted of the dump: by the split's hash cache, and if that lacks any without it.

        It lacks damaged records, and all if the state folder has lost it.
        """
        marks, state_dir = self._selection.marks, self._settings.state_dir
        cache = stack.enter_context(open_hash_cache(state_dir, self._kind, self._cache_sha256))
        if not cache.is_empty:
            window = self._open(stack)
            yield from cut_known(window, read_prolog(window, self._kind), marks, cache)
        if marks.count(0) < len(marks):
            window = self._open(stack)
            yield from cut(window, read_prolog(window, self._kind), marks)

    def _open(self, stack: contextlib.ExitStack) -> Window:
        return stack.enter_context(Window(stack.enter_context(DumpFile(self._path))))

    def _take(self, lanes: Lanes, record: Record) -> None:
        segment = segment_of(record.id)
        if self._batch and (segment != self._segment or self._bytes >= BATCH_BYTES):
            self._hand_over(lanes)
        self._segment = segment
        self._batch.append(record)
        self._bytes += len(record.xml)

    def _hand_over(self, lanes: Lanes) -> None:
        """Give the batch to a lane."""
        part = self._parts.get(self._segment)
        if part is None:
            part = self._parts[self._segment] = self._store.part(self._kind, self._segment)
        lanes.put(part.repository.path, self._batch)
        ids, _, texts = zip(*self._batch, strict=True)
        self.watch.look_at_some(ids, texts)
        self._places.append(self._segment)
        self._staged += len(self._batch)
        self._batch, self._bytes = [], 0

    def _save(self, lanes: Lanes, saver: ThreadPoolExecutor) -> None:
        """Have what was handed over committed and noted, while we go on."""
        if self._batch:
            self._hand_over(lanes)
        answers = lanes.finish()
        self._wait()
        places, self._places, self._staged = self._places, [], 0
        for answer in answers:
            for record_id, reason in answer.damaged:
                log.warning("record %d is damaged and not imported: %s", record_id, reason)
                self.damaged += 1
        self._saving = saver.submit(self._commit, places, answers)

    def _wait(self) -> None:
        if self._saving is not None:
            self.counts = self.counts.plus(self._saving.result())
            self._saving = None

    def _commit(self, places: list[int], answers: list[LaneAnswer]) -> ImportCounts:
        """Commit, then note; in a thread of its own, with its own connection to the ledger."""
        entries: dict[Path, list[bytes]] = collections.defaultdict(list)
        stores = {self._parts[segment].repository.path: self._parts[segment] for segment in places}
        for segment, answer in zip(places, answers, strict=True):
            entries[self._parts[segment].repository.path].append(answer.entries)
        counts = ImportCounts()
        for path, pieces in entries.items():
            outcome = commit.put(
                stores[path], self._kind, b"".join(pieces), self._days, self._trailers
            )
            counts = counts.plus(outcome.counts)
            brought = (
                (self._selection.dump_of(marks), record_id)
                for record_id, marks, _ in ENTRY.iter_unpack(outcome.entries)
            )
            with database.open(self._settings.database) as opened:
                import_selection.note_imported(opened, self._kind, brought)
                import_selection.note_revision(opened, self._kind, stores[path].tip())
        return counts
