"""One dump file as a whole: split or check it, and say whether it is whole."""

import contextlib
import errno
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from discogs_crawler import files, locks
from discogs_crawler.cli import progress
from discogs_crawler.cli.formatting import printable
from discogs_crawler.dumps import metadata
from discogs_crawler.dumps.block_reader import Source, Window
from discogs_crawler.dumps.canonical import CANONICAL_VERSION
from discogs_crawler.dumps.hash_cache import new_book, open_book
from discogs_crawler.dumps.hash_workers import Hasher
from discogs_crawler.dumps.hashfile_writer import Counts, ResultWriter
from discogs_crawler.dumps.metadata import WHOLE, Damage, DumpFacts
from discogs_crawler.dumps.pipeline import Splitter
from discogs_crawler.dumps.prolog import read_prolog
from discogs_crawler.errors import ConfigurationError, CrawlerError, Unavailable, UsageError

log = logging.getLogger(__name__)


class Task(NamedTuple):
    """What to do: split the dump at `path` (None: standard input) into `result` (None: only check).

    `raw`: hashes of raw bytes, and nothing is parsed; `verify`: everything is. `state_dir` holds
    the books and temporary files; `book_of` gives the SHA-256 of the book of a kind, or None.
    """

    path: Path | None
    result: Path | None
    state_dir: Path
    book_of: Callable[[str], bytes | None]
    raw: bool = False
    verify: bool = False
    workers: int | None = None


class Report(NamedTuple):
    """What came of it. `kind` is "" in `facts` if the dump could not even be told to be one."""

    facts: DumpFacts
    counts: Counts
    xml_size: int
    seconds: float

    def line(self) -> str:
        """The summary: one line."""
        facts = self.facts
        unused = facts.last_id - facts.first_id + 1 - facts.records
        extras = [f"{self.counts.parsed:,} parsed"]
        if facts.damaged:
            extras.append(f"{facts.damaged} damaged")
        if self.counts.out_of_order:
            extras.append(f"{self.counts.out_of_order:,} out of order")
        return (
            f"{facts.file}: {facts.verdict}: {facts.records:,} {facts.kind}, ids {facts.first_id} "
            f"to {facts.last_id} ({unused:,} unused between), {', '.join(extras)}; "
            f"{facts.size / 1e6:,.1f} MB, {self.xml_size / 1e6:,.1f} MB of XML "
            f"in {self.seconds:.1f} s, {self.xml_size / 1e6 / max(self.seconds, 0.001):,.0f} MB/s"
        )


class _Digests(NamedTuple):
    """SHA-256 of what was written; None for what was not."""

    result: bytes | None
    book: bytes | None


def examine(task: Task) -> Report:
    """Do it. The verdict is in the report's facts; RESULT and book are there only if it is good.

    UsageError if the dump cannot be read or RESULT cannot be a file, ConfigurationError if it may
    not be written, Unavailable if the disk is full, TryLater if the same kind is being split.
    """
    started = time.monotonic()
    counts, verdict, digests = Counts(), WHOLE, _Digests(None, None)
    kind = (task.path and metadata.parse_name(task.path.name).kind) or ""
    with Source(task.path) as source, _bar(task.path, source) as show:
        try:
            with Window(source) as window:
                kind = read_prolog(window, kind or None)
                digests = _split(task, kind, window, counts, show)
        except Damage as damage:
            source.drain()
            verdict = f"damaged: {damage}"
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _not_written(error) from error
    facts = _facts(task, kind, source, counts, digests, verdict)
    return Report(facts, counts, window.offset, time.monotonic() - started)


def _split(
    task: Task, kind: str, window: Window, counts: Counts, show: Callable[[], None]
) -> _Digests:
    """Write RESULT and book; nothing of them is there after Damage or another error."""
    books = task.state_dir / "books"
    with contextlib.ExitStack() as stack:
        if task.result is not None:
            lock = task.state_dir / f"discogs_xml_split-{kind}.lock"
            stack.enter_context(locks.exclusive(lock, f"splitting {kind}"))
        known = None if task.raw or task.verify else task.book_of(kind)
        old_book = stack.enter_context(open_book(books, kind, known))
        keeps_book = task.result is not None and not task.raw
        book = stack.enter_context(new_book(books, kind)) if keeps_book else None
        file = stack.enter_context(_open_result(task))
        hasher = None if task.raw else stack.enter_context(Hasher(kind, task.workers))
        result = ResultWriter(file, book, task.state_dir, counts)
        Splitter(window, kind, old_book, hasher, result).run(show)
    return _Digests(result.sha256.digest(), book.sha256.digest() if book else None)


def _facts(
    task: Task, kind: str, source: Source, counts: Counts, digests: _Digests, verdict: str
) -> DumpFacts:
    not_before, not_after = metadata.snapshot_time(task.path)
    return DumpFacts(
        file=metadata.STDIN if task.path is None else printable(task.path.name),
        kind=kind,
        not_before=not_before,
        not_after=not_after,
        size=source.size,
        sha256=source.sha256.digest(),
        records=counts.records,
        verdict=verdict,
        damaged=counts.damaged,
        result_sha256=digests.result,
        first_id=counts.first_id,
        last_id=counts.last_id,
        canonical_version=0 if task.raw else CANONICAL_VERSION,
        book_sha256=digests.book,
    )


@contextlib.contextmanager
def _bar(path: Path | None, source: Source) -> Iterator[Callable[[], None]]:
    """A progress bar, if the size is known; the block calls the function now and then."""
    total = path.stat().st_size if path else 0
    if not total:
        yield lambda: None
        return
    with progress.bar("split", total, "MB/s", 1e6) as advance:
        shown = 0

        def show() -> None:
            nonlocal shown
            size = source.size
            advance(size - shown)
            shown = size

        yield show


def _not_written(error: OSError) -> CrawlerError:
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    meaning = ConfigurationError if isinstance(error, PermissionError) else Unavailable
    return meaning(f"{where}{error.strerror or error}; nothing was written")


@contextlib.contextmanager
def _open_result(task: Task) -> Iterator[BinaryIO]:
    """RESULT, whole or not at all; for a pipe or a check a temporary file."""
    path = task.result
    if path is not None and path.is_dir():
        raise UsageError(f"RESULT is a folder, {path}: give the name of a file")
    if path is not None and str(path) != metadata.STDIN and (path.is_file() or not path.exists()):
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}")
        with files.atomic_write(path) as file:
            yield file
        return
    with tempfile.TemporaryFile(dir=task.state_dir) as file:
        yield cast(BinaryIO, file)
        file.seek(0)
        if path is not None and str(path) == metadata.STDIN:
            if sys.stdout is None:
                raise OSError(errno.EBADF, "standard output is closed")
            shutil.copyfileobj(file, sys.stdout.buffer)
        elif path is not None:
            with path.open("wb") as pipe:
                shutil.copyfileobj(file, pipe)
