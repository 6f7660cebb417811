"""One dump file as a whole: split or check it, and say whether it is whole."""

import contextlib
import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from discogs_crawler import files, locks
from discogs_crawler.cli import progress
from discogs_crawler.cli.formatting import printable
from discogs_crawler.dumps import metadata
from discogs_crawler.dumps.block_reader import DumpFile, Window
from discogs_crawler.dumps.canonical import CANONICAL_VERSION
from discogs_crawler.dumps.hash_cache import new_hash_cache, open_hash_cache
from discogs_crawler.dumps.hash_workers import Hasher
from discogs_crawler.dumps.hashfile_writer import Counts, ResultWriter
from discogs_crawler.dumps.known_elements import ElementWatch
from discogs_crawler.dumps.metadata import WHOLE, Damage, DumpFacts
from discogs_crawler.dumps.pipeline import Splitter
from discogs_crawler.dumps.prolog import read_prolog
from discogs_crawler.errors import ConfigurationError, CrawlerError, Unavailable, UsageError
from discogs_crawler.observed import Observation

# Elements and attributes that the summary names.
NAMED = 10


class SplitJob(NamedTuple):
    """What to do: split the dump at `path` (None: standard input) into `result` (None: only check).

    `raw`: hashes of raw bytes, and nothing is parsed; `verify`: everything is. `state_dir` holds
    hash caches and temporary files; `hash_cache_of` gives the SHA-256 of that of a kind, or None.
    """

    path: Path | None
    result: Path | None
    state_dir: Path
    hash_cache_of: Callable[[str], bytes | None]
    raw: bool = False
    verify: bool = False


class SplitReport(NamedTuple):
    """The result. In `facts` the `kind` is "" if the file does not even begin like a dump."""

    facts: DumpFacts
    counts: Counts
    xml_size: int
    seconds: float
    drift: Sequence[Observation] = ()

    def line(self) -> str:
        """The summary: one line."""
        facts = self.facts
        unused = facts.last_id - facts.first_id + 1 - facts.records
        extras = [f"{self.counts.parsed:,} parsed"]
        if facts.damaged:
            extras.append(f"{facts.damaged} damaged")
        if self.counts.out_of_order:
            extras.append(f"{self.counts.out_of_order:,} out of order")
        extras += [
            f"{what}: {named}" for what in ("unknown", "missing") if (named := self._odd(what))
        ]
        return (
            f"{facts.file}: {facts.verdict}: {facts.records:,} {facts.kind}, ids {facts.first_id} "
            f"to {facts.last_id} ({unused:,} unused between), {', '.join(extras)}; "
            f"{facts.size / 1e6:,.1f} MB, {self.xml_size / 1e6:,.1f} MB of XML "
            f"in {self.seconds:.1f} s, {self.xml_size / 1e6 / max(self.seconds, 0.001):,.0f} MB/s"
        )

    def _odd(self, what: str) -> str:
        """The first NAMED elements and attributes of which that was noticed."""
        paths = sorted(seen.path for seen in self.drift if seen.what == what)
        return " ".join(paths[:NAMED]) + " ..." * (len(paths) > NAMED)


# SHA-256 of RESULT and of the hash cache; None for what was not written.
_Digests = tuple[bytes | None, bytes | None]


def examine(job: SplitJob) -> SplitReport:
    """Do the job. RESULT and hash cache are written only if the report's verdict is good.

    UsageError if the dump cannot be read or RESULT cannot be a file, ConfigurationError if RESULT
    may not be written, Unavailable if the disk is full, TryLater while the kind is being split.
    """
    started = time.monotonic()
    counts, verdict, watch = Counts(), WHOLE, None
    digests: _Digests = (None, None)
    kind = (job.path and metadata.parse_name(job.path.name).kind) or ""
    with DumpFile(job.path) as source:
        try:
            with Window(source) as window:
                kind = read_prolog(window, kind or None)
                watch = ElementWatch(kind)
                digests = _split(job, kind, source, window, counts, watch)
        except Damage as damage:
            source.drain()
            verdict = f"damaged: {damage}"
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _not_written(error) from error
    facts = _facts(job, kind, source, counts, digests, verdict)
    drift = watch.observations(facts.not_before) if watch else ()
    return SplitReport(facts, counts, window.offset, time.monotonic() - started, drift)


def _split(
    job: SplitJob,
    kind: str,
    source: DumpFile,
    window: Window,
    counts: Counts,
    watch: ElementWatch,
) -> _Digests:
    """Write RESULT and hash cache; nothing of them is there after Damage or another error."""
    with contextlib.ExitStack() as stack:
        if job.result is not None:
            lock = job.state_dir / f"discogs_xml_split-{kind}.lock"
            stack.enter_context(locks.exclusive(lock, f"splitting {kind}"))
        known = None if job.raw or job.verify else job.hash_cache_of(kind)
        old_cache = stack.enter_context(open_hash_cache(job.state_dir, kind, known))
        new_cache = None
        if job.result is not None and not job.raw:
            new_cache = stack.enter_context(new_hash_cache(job.state_dir, kind))
        file = stack.enter_context(_open_result(job))
        hasher = None if job.raw else stack.enter_context(Hasher(kind))
        result = ResultWriter(file, new_cache, job.state_dir, counts)
        total = job.path.stat().st_size if job.path else 0
        advance = stack.enter_context(progress.bar("split", total, "MB/s", 1e6))
        shown = 0
        for _ in Splitter(window, kind, old_cache, hasher, result, watch).steps():
            size = source.size
            advance(size - shown)
            shown = size
    return result.sha256.digest(), new_cache.sha256.digest() if new_cache else None


def _facts(
    job: SplitJob, kind: str, source: DumpFile, counts: Counts, digests: _Digests, verdict: str
) -> DumpFacts:
    not_before, not_after = metadata.snapshot_time(job.path)
    return DumpFacts(
        file=metadata.STDIN if job.path is None else printable(job.path.name),
        kind=kind,
        not_before=not_before,
        not_after=not_after,
        size=source.size,
        sha256=source.sha256.digest(),
        records=counts.records,
        verdict=verdict,
        damaged=counts.damaged,
        result_sha256=digests[0],
        first_id=counts.first_id,
        last_id=counts.last_id,
        canonical_version=0 if job.raw else CANONICAL_VERSION,
        hash_cache_sha256=digests[1],
    )


def _not_written(error: OSError) -> CrawlerError:
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    meaning = ConfigurationError if isinstance(error, PermissionError) else Unavailable
    return meaning(f"{where}{error.strerror or error}; nothing was written")


@contextlib.contextmanager
def _open_result(job: SplitJob) -> Iterator[BinaryIO]:
    """RESULT, whole or not at all; if it is a pipe, or for a check, a temporary file."""
    path = job.result
    if path is not None and path.is_dir():
        raise UsageError(f"RESULT is a folder, {path}: give the name of a file")
    if path is not None and str(path) != metadata.STDIN and (path.is_file() or not path.exists()):
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}")
        with files.atomic_write(path) as file:
            yield file
        return
    with tempfile.TemporaryFile(dir=job.state_dir) as file:
        yield cast(BinaryIO, file)
        file.seek(0)
        if path is not None and str(path) == metadata.STDIN:
            if sys.stdout is None:
                raise OSError(errno.EBADF, "standard output is closed")
            shutil.copyfileobj(file, sys.stdout.buffer)
        elif path is not None:
            with path.open("wb") as pipe:
                shutil.copyfileobj(file, pipe)
