"""From XML to blobs in Git, on all cores: each lane is a process that converts records.

A lane passes the records to its own `git fast-import`, which compresses and stores them; no tree
has them yet. `python -m discogs_crawler.importing.lanes` reads its Setup and then batches from its
standard input, and answers each batch with the entries for the trees.
"""

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from struct import Struct
from typing import IO, Any, NamedTuple, cast

from discogs_crawler import files
from discogs_crawler.api import cleaning, exact_json
from discogs_crawler.api.cleaning import Rules
from discogs_crawler.dumps import canonical, dump_json, hash_workers
from discogs_crawler.errors import CrawlerError, Unavailable
from discogs_crawler.importing.cut import Record
from discogs_crawler.store import git_process, objects

# Bytes of XML in a batch, and batches that may wait for a lane: 2 MB.
BATCH_BYTES = 256 * 1024
AHEAD = 8

# More lanes than this would wait for the scanner, and each takes 100 MB.
MAX_LANES = 8

# Records per additional lane. Starting one takes as long as converting 2,000 records, and in a
# usual month a single lane converts records faster than they are found.
PAYS = 10_000

# A blob for a tree: id and marks (see Selection) of the record, object id.
ENTRY = Struct(">IB20s")


class Setup(NamedTuple):
    """What a lane needs to know before the first record."""

    kind: str
    rules: Rules
    days: Sequence[str]
    """by the marks of a record, the day (YYYYMMDD) of its dump"""


class LaneAnswer(NamedTuple):
    """The result of a batch."""

    entries: bytes
    """an ENTRY for each record"""
    damaged: Sequence[tuple[int, str]]
    """ids of records that cannot be parsed, and why"""


class Failure(NamedTuple):
    """A `git fast-import` that failed, or _KILLED."""

    repository: str
    status: int
    stderr: bytes


# Of a lane that has ended without an answer.
_KILLED = Failure("", 0, b"")


class Converter:
    """Converts a record's XML into the bytes to store."""

    def __init__(self, kind: str, rules: Rules) -> None:
        self._kind, self._rules = kind, rules
        # Usually the rules remove only whole fields; looking for others in each record takes time.
        whole = dump_json.convert(kind, canonical.parse(dump_json.FULLEST[kind].encode(), kind))
        left = cleaning.prune(whole, rules)
        self._skip = frozenset(whole.keys() - left.keys())
        self._is_deep = any(left[name] != whole[name] for name in left)

    def convert(self, xml: bytes, day: str) -> bytes:
        """Return the JSON to store, which begins with the day of the dump; Malformed if damaged."""
        if "videos" in self._skip:
            xml = _without_videos(xml)
        element = canonical.parse(xml, self._kind)
        document = dump_json.convert(self._kind, element, self._skip)
        if self._is_deep:
            document = cleaning.prune(document, self._rules)
        document[cleaning.DUMP] = day
        return exact_json.dumps_plain(document)


def _without_videos(xml: bytes) -> bytes:
    """Return the XML without its videos, half of it, which are not stored and need no parsing."""
    start = xml.find(b"<videos>")
    stop = xml.rfind(b"</videos>")
    # Most records have no `!`; looking for one byte takes a fraction of the time.
    if 0 < start < stop and (b"!" not in xml or b"<!" not in xml):
        return xml[:start] + xml[stop + len(b"</videos>") :]
    return xml


class Lane:
    """A process, a thread that sends it batches, and a thread that receives its answers."""

    def __init__(self, setup: Setup) -> None:
        environment = git_process.environment()
        self._process = hash_workers.start_process(environment, "importing.lanes")
        self._requests = cast(IO[bytes], self._process.stdin)
        self._answers = cast(IO[bytes], self._process.stdout)
        files.widen(self._requests)
        self._ahead: queue.Queue[Any] = queue.Queue(AHEAD)
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.failure: Failure | None = None
        for work in (self._feed, self._listen):
            threading.Thread(target=work, daemon=True).start()
        self._ahead.put(setup)

    @property
    def room(self) -> int:
        """The number of batches that `put` takes without waiting."""
        return AHEAD - self._ahead.qsize()

    def put(self, repository: Path, records: Sequence[Record]) -> None:
        """Send a batch, for blobs in that repository; waits while the lane has AHEAD batches."""
        self._ahead.put((str(repository), [tuple(record) for record in records]))

    def flush(self) -> None:
        """Have all blobs saved to disk; `take` returns one more answer when they are."""
        self._ahead.put(None)

    def take(self) -> LaneAnswer:
        """Return the next answer, in the order of `put` and `flush`.

        Unavailable if the lane was killed; what `git_process.failure` makes of a failure of Git.
        """
        answer: LaneAnswer | Failure = self._results.get()
        if isinstance(answer, Failure):
            self._results.put(answer)  # for the next call
            raise _error(answer)
        return answer

    def end(self) -> None:
        """Kill the process, and release whoever waits in `put`."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        with contextlib.suppress(queue.Empty):
            while True:
                self._ahead.get_nowait()

    def _feed(self) -> None:
        while True:
            message = self._ahead.get()
            with contextlib.suppress(OSError, ValueError):
                pickle.dump(message, self._requests, pickle.HIGHEST_PROTOCOL)
                self._requests.flush()

    def _listen(self) -> None:
        try:
            while True:
                answer = pickle.load(self._answers)
                if isinstance(answer, Failure):
                    self.failure = answer
                self._results.put(answer)
        except Exception:  # whatever it is, there will be no more answers
            self.failure = self.failure or _KILLED
            self._results.put(self.failure)


class _Imports:
    """The `git fast-import` of a lane for each repository."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
        """by repository: the process, and the file to which it complains"""

    def pipe(self, repository: str) -> IO[bytes]:
        """Return the input of a repository's `git fast-import`, which is started if need be."""
        if repository not in self._running:
            # Git complains of a damaged pack at each blob: more than a pipe has room for.
            words = tempfile.TemporaryFile()  # noqa: SIM115 - `finish` closes it
            running = subprocess.Popen(
                ["git", f"--git-dir={repository}", *git_process.FAST_IMPORT],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=words,
                bufsize=files.PIPE_B,
            )
            files.widen(cast(IO[bytes], running.stdin))
            self._running[repository] = running, words
        return cast(IO[bytes], self._running[repository][0].stdin)

    def finish(self) -> Failure | None:
        """Have all of them save their blobs to disk; return the first failure, if any."""
        failure = None
        for repository, (running, words) in self._running.items():
            with words:
                with contextlib.suppress(BrokenPipeError):
                    cast(IO[bytes], running.stdin).write(b"done\n")
                running.communicate()
                if running.returncode and failure is None:
                    words.seek(0)
                    said = words.read(git_process.MOST_WORDS_B)
                    failure = Failure(repository, running.returncode, said)
        self._running.clear()
        return failure


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Be a lane: answer requests until there are no more."""
    messages = hash_workers.received(requests)
    setup: Setup | None = next(messages, None)
    if setup is None:
        return
    converter = Converter(setup.kind, setup.rules)
    imports = _Imports()

    def answer(message: LaneAnswer | Failure) -> None:
        pickle.dump(message, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()

    for request in messages:
        if request is None:
            answer(imports.finish() or LaneAnswer(b"", ()))
            continue
        repository, records = request
        try:
            answer(_store(converter, setup.days, imports.pipe(repository), records))
        except BrokenPipeError:
            answer(imports.finish() or Failure(repository, 1, b"it ended early"))


def _store(
    converter: Converter,
    days: Sequence[str],
    pipe: IO[bytes],
    records: Sequence[tuple[int, int, bytes]],
) -> LaneAnswer:
    entries, damaged = [], []
    for record_id, marks, xml in records:
        try:
            data = converter.convert(xml, days[marks])
        except canonical.Malformed as error:
            damaged.append((record_id, str(error)))
            continue
        pipe.write(b"blob\ndata %d\n%b\n" % (len(data), data))
        entries.append(ENTRY.pack(record_id, marks, objects.blob_id(data)))
    return LaneAnswer(b"".join(entries), damaged)


class Lanes:
    """Lanes that share the work. Use it as a context manager: its end kills them."""

    def __init__(self, setup: Setup, records: int) -> None:
        """Start a lane per core, or as many as pay for this number of records."""
        number = min(len(os.sched_getaffinity(0)), MAX_LANES, 1 + records // PAYS)
        self._lanes = [Lane(setup) for _ in range(number)]
        self._order: list[Lane] = []

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(self, *_: object) -> None:
        for lane in self._lanes:
            lane.end()

    def put(self, repository: Path, records: Sequence[Record]) -> None:
        """Send a batch to the lane that has most room."""
        for lane in self._lanes:
            if lane.failure:
                raise _error(lane.failure)
        lane = max(self._lanes, key=lambda lane: lane.room)
        lane.put(repository, records)
        self._order.append(lane)

    def finish(self) -> list[LaneAnswer]:
        """Have all blobs saved to disk; return the answers in the order of `put`."""
        for lane in self._lanes:
            lane.flush()
        answers = [lane.take() for lane in self._order]
        for lane in self._lanes:
            lane.take()
        self._order.clear()
        return answers


def _error(failure: Failure) -> CrawlerError:
    if failure == _KILLED:
        return Unavailable("a process that converts records was killed; is memory short?")
    repository = Path(failure.repository)
    return git_process.failure(repository, ("fast-import",), failure.status, failure.stderr)


if __name__ == "__main__":
    # Imported under its name, because the other side does not know the classes of __main__.
    from discogs_crawler.importing import lanes

    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        lanes.serve(sys.stdin.buffer, sys.stdout.buffer)
