"""One dump file as a whole: split or check it, and say whether it is whole."""

import contextlib
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
from discogs_crawler.dumps import metadata
from discogs_crawler.dumps.block_reader import Blocks, Source
from discogs_crawler.dumps.canonical import CANONICAL_VERSION
from discogs_crawler.dumps.hash_cache import BookWriter, new_book, open_book
from discogs_crawler.dumps.hash_workers import Hasher
from discogs_crawler.dumps.hashfile_writer import ResultWriter
from discogs_crawler.dumps.metadata import WHOLE, Damage, DumpFacts
from discogs_crawler.dumps.pipeline import Splitter
from discogs_crawler.dumps.scanner import Boundaries
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

    @property
    def keeps_book(self) -> bool:
        return self.result is not None and not self.raw


class Report(NamedTuple):
    """What came of it. `kind` is "" in `facts` if the dump could not even be told to be one."""

    facts: DumpFacts
    parsed: int
    out_of_order: int
    xml_size: int
    seconds: float

    def line(self) -> str:
        """The summary: one line."""
        facts = self.facts
        unused = facts.last_id - facts.first_id + 1 - facts.records
        extras = [f"{self.parsed:,} parsed"]
        if facts.damaged:
            extras.append(f"{facts.damaged} damaged")
        if self.out_of_order:
            extras.append(f"{self.out_of_order:,} out of order")
        return (
            f"{facts.file}: {facts.verdict}: {facts.records:,} {facts.kind}, ids {facts.first_id} "
            f"to {facts.last_id} ({unused:,} unused between), {', '.join(extras)}; "
            f"{facts.size / 1e6:,.1f} MB, {self.xml_size / 1e6:,.1f} MB of XML "
            f"in {self.seconds:.1f} s, {self.xml_size / 1e6 / max(self.seconds, 0.001):,.0f} MB/s"
        )


class _Run:
    """How far a run has come, for the facts of a dump that turns out to be damaged, too."""

    def __init__(self, task: Task, source: Source) -> None:
        self.task = task
        self.source = source
        self.kind = (task.path and metadata.parse_name(task.path.name).kind) or ""
        self.boundaries: Boundaries | None = None
        self.splitter: Splitter | None = None
        self.result: ResultWriter | None = None
        self.book: BookWriter | None = None

    def split(self, advance: Callable[[int], None]) -> None:
        with contextlib.ExitStack() as stack:
            blocks = stack.enter_context(Blocks(self.source))
            self.boundaries = Boundaries(blocks, self.kind or None)
            self.kind = self.boundaries.kind
            self._open_outputs(stack, blocks)
            assert self.splitter and self.result
            shown = 0

            def show() -> None:
                nonlocal shown
                advance(self.source.size - shown)
                shown = self.source.size

            self.splitter.run(self.result, show)

    def _open_outputs(self, stack: contextlib.ExitStack, blocks: Blocks) -> None:
        task, kind = self.task, self.kind
        books = task.state_dir / "books"
        if task.result is not None:
            lock = task.state_dir / f"discogs_xml_split-{kind}.lock"
            stack.enter_context(locks.exclusive(lock, f"splitting {kind}"))
        known = None if task.raw or task.verify else task.book_of(kind)
        book = stack.enter_context(open_book(books, kind, known))
        if task.keeps_book:
            self.book = stack.enter_context(new_book(books, kind))
        file = stack.enter_context(_open_result(task))
        hasher = None
        if not task.raw:
            hasher = stack.enter_context(Hasher(kind, task.workers))
        assert self.boundaries
        self.splitter = Splitter(blocks, self.boundaries, book, hasher)
        self.result = ResultWriter(file, self.book, task.state_dir)

    def facts(self, verdict: str) -> DumpFacts:
        whole = verdict == WHOLE
        result, path = self.result, self.task.path
        not_before, not_after = metadata.snapshot_time(path)
        return DumpFacts(
            file=metadata.STDIN if path is None else path.name,
            kind=self.kind,
            not_before=not_before,
            not_after=not_after,
            size=self.source.size,
            sha256=self.source.sha256.digest(),
            records=result.records if result else 0,
            verdict=verdict,
            damaged=self.splitter.damaged if self.splitter else 0,
            result_sha256=result.sha256.digest() if whole and result else None,
            first_id=result.first_id if result else 0,
            last_id=result.last_id if result else 0,
            canonical_version=0 if self.task.raw else CANONICAL_VERSION,
            book_sha256=self.book.sha256.digest() if whole and self.book else None,
        )


def examine(task: Task) -> Report:
    """Do it. The verdict is in the report's facts; RESULT and book are there only if it is good.

    UsageError if the dump cannot be read or RESULT cannot be a file, ConfigurationError if it may
    not be written, Unavailable if the disk is full, TryLater if the same kind is being split.
    """
    started = time.monotonic()
    run, verdict = _attempt(task)
    return Report(
        facts=run.facts(verdict),
        parsed=run.splitter.parsed if run.splitter else 0,
        out_of_order=run.result.out_of_order if run.result else 0,
        xml_size=run.boundaries.offset if run.boundaries else 0,
        seconds=time.monotonic() - started,
    )


def _attempt(task: Task) -> tuple[_Run, str]:
    """One pass over the dump, and the verdict."""
    with Source(task.path) as source:
        run = _Run(task, source)
        total = task.path.stat().st_size if task.path else 0
        with progress.bar("split", total, "MB/s", 1e6) if total else _no_bar() as advance:
            try:
                run.split(advance)
                verdict = WHOLE
            except Damage as damage:
                source.drain()
                verdict = f"damaged: {damage}"
            except BrokenPipeError:
                raise
            except OSError as error:
                raise _not_written(error) from error
    return run, verdict


def _not_written(error: OSError) -> CrawlerError:
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    meaning = ConfigurationError if isinstance(error, PermissionError) else Unavailable
    return meaning(f"{where}{error.strerror or error}; nothing was written")


@contextlib.contextmanager
def _no_bar() -> Iterator[Callable[[int], None]]:
    yield lambda done: None


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
            shutil.copyfileobj(file, sys.stdout.buffer)
        elif path is not None:
            with path.open("wb") as pipe:
                shutil.copyfileobj(file, pipe)
