"""From XML to blobs in Git, on all cores: each lane is a process that converts records.

It hands them to a `git fast-import` of its own, which compresses and keeps them; nothing refers to
them yet. `python -m discogs_crawler.importing.lanes` reads its Setup and then batches from its
standard input, and answers each batch with what is to be put into a tree.
"""

import contextlib
import hashlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import IO, Any, NamedTuple, cast

from discogs_crawler import files
from discogs_crawler.api import cleaning, exact_json
from discogs_crawler.api.cleaning import Rules
from discogs_crawler.dumps import canonical, dump_json, hash_workers
from discogs_crawler.errors import Unavailable
from discogs_crawler.importing.cut import Record
from discogs_crawler.store import git_process

# Bytes of XML in a batch, and batches that wait for a lane: 2 MB ahead of it.
BATCH_BYTES = 256 * 1024
AHEAD = 8

# More lanes than this wait for the scanner, and each takes 100 MB.
MAX_LANES = 8

# Records for a lane more: to start one takes as long as to convert 2,000, and in a usual month one
# alone converts them faster than they are found.
PAYS = 10_000

# A blob that is to be put into a tree: id, marks of the record, object id.
ENTRY = Struct(">IB20s")

# Else the C library gives memory back to the system after each record, and asks for it again: 7 %.
_MALLOC = {"MALLOC_TOP_PAD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "67108864"}

_KILLED = "a process that converts records was killed; is memory short?"


class Setup(NamedTuple):
    """What a lane has to know before the first record."""

    kind: str
    rules: Rules
    days: Sequence[str]
    """by the marks of a record, the day of its dump"""
    fast_import: Sequence[str]
    """the arguments of git"""


class LaneAnswer(NamedTuple):
    """What came of a batch."""

    entries: bytes
    """an ENTRY for each record"""
    damaged: Sequence[tuple[int, str]]
    """ids of records that cannot be read, and why"""


class Failure(NamedTuple):
    """A `git fast-import` has ended as it should not."""

    repository: str
    status: int
    stderr: bytes


class Converter:
    """Makes the bytes to store of a record's XML."""

    def __init__(self, kind: str, rules: Rules) -> None:
        self._kind, self._rules = kind, rules
        whole = dump_json.convert(kind, canonical.parse(dump_json.FULLEST[kind].encode(), kind))
        left = cleaning.prune(whole, rules)
        # By default the rules remove at most whole fields; looking for others takes time.
        self._skip = frozenset(whole.keys() - left.keys())
        self._is_deep = any(left[name] != whole[name] for name in left)

    def convert(self, xml: bytes, day: str) -> bytes:
        """The stored form, which begins with the day of the dump. Malformed if it is damaged."""
        if "videos" in self._skip:
            xml = _without_videos(xml)
        element = canonical.parse(xml, self._kind)
        document = dump_json.convert(self._kind, element, self._skip)
        if self._is_deep:
            document = cleaning.prune(document, self._rules)
        document[cleaning.DUMP] = day
        return exact_json.dumps_plain(document)


def _without_videos(xml: bytes) -> bytes:
    """The record without what is half of it and is not stored, so that it need not be parsed."""
    start = xml.find(b"<videos>")
    stop = xml.rfind(b"</videos>")
    # Most have no `!` at all, which is found in a fraction of the time.
    if 0 < start < stop and (b"!" not in xml or b"<!" not in xml):
        return xml[:start] + xml[stop + len(b"</videos>") :]
    return xml


class Lane:
    """A process, a thread that feeds it, and one that takes its answers."""

    def __init__(self, setup: Setup, environment: dict[str, str]) -> None:
        library = str(Path(__file__).resolve().parents[2])
        paths = [library, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "discogs_crawler.importing.lanes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment | _MALLOC | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is for us alone; they end when we do
        )
        self.pid = self._process.pid
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
        """The number of batches that it takes at once."""
        return AHEAD - self._ahead.qsize()

    def put(self, repository: Path, records: Sequence[Record]) -> None:
        """Have the records made blobs of that repository; waits while it has enough to do."""
        self._ahead.put((str(repository), [tuple(record) for record in records]))

    def flush(self) -> None:
        """Have everything saved to disk; `take` then gives one answer more."""
        self._ahead.put(None)

    def take(self) -> LaneAnswer | Failure:
        """The next answer, in the order of what was asked."""
        return self._results.get() or self._lost()

    def _lost(self) -> Failure:
        self._results.put(None)  # for whoever asks again
        return Failure("", -9, b"")

    def end(self) -> None:
        """Whatever it is doing."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, 9)
        self._process.wait()
        while True:  # let go of whoever waits for room
            try:
                self._ahead.get_nowait()
            except queue.Empty:
                break

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
            self.failure = self.failure or self._lost()


class _Imports:
    """The running `git fast-import` of each repository; what a lane is there for."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = arguments
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def pipe(self, repository: str) -> IO[bytes]:
        running = self._running.get(repository)
        if running is None:
            running = self._running[repository] = subprocess.Popen(
                ["git", f"--git-dir={repository}", *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=files.PIPE_B,
            )
            files.widen(cast(IO[bytes], running.stdin))
        return cast(IO[bytes], running.stdin)

    def finish(self) -> Failure | None:
        """Have all of them save what they have; what went wrong, if anything."""
        failure = None
        for repository, running in self._running.items():
            with contextlib.suppress(BrokenPipeError):
                cast(IO[bytes], running.stdin).write(b"done\n")
            _, stderr = running.communicate()
            if running.returncode and failure is None:
                failure = Failure(repository, running.returncode, stderr)
        self._running.clear()
        return failure


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """What a lane does, until there are no more requests."""
    messages = hash_workers.received(requests)
    setup: Setup | None = next(messages, None)
    if setup is None:
        return
    converter = Converter(setup.kind, setup.rules)
    imports = _Imports(setup.fast_import)

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
        # As importing.blob_id, which would load all of Git's part into every lane.
        blob = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
        blob.update(data)
        entries.append(ENTRY.pack(record_id, marks, blob.digest()))
    return LaneAnswer(b"".join(entries), damaged)


class Lanes:
    """All of them. Use it as a context manager: leaving it ends them."""

    def __init__(self, setup: Setup, environment: dict[str, str], records: int) -> None:
        """One a core, or as few as these records are worth."""
        number = min(len(os.sched_getaffinity(0)), MAX_LANES, 1 + records // PAYS)
        self._lanes = [Lane(setup, environment) for _ in range(number)]
        self._order: list[Lane] = []

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for lane in self._lanes:
            lane.end()

    def put(self, repository: Path, records: Sequence[Record]) -> None:
        """Have a batch made blobs, by the lane that has most room."""
        for lane in self._lanes:
            _raise(lane.failure)
        lane = max(self._lanes, key=lambda lane: lane.room)
        lane.put(repository, records)
        self._order.append(lane)

    def finish(self) -> list[LaneAnswer]:
        """Have all blobs saved to disk; the answers to the batches in the order of `put`."""
        for lane in self._lanes:
            lane.flush()
        answers = [_whole(lane.take()) for lane in self._order]
        for lane in self._lanes:
            _whole(lane.take())
        self._order.clear()
        return answers


def _whole(answer: LaneAnswer | Failure) -> LaneAnswer:
    if isinstance(answer, Failure):
        _raise(answer)
        raise AssertionError("unreachable")
    return answer


def _raise(failure: Failure | None) -> None:
    """The error that it stands for."""
    if failure is None:
        return
    if not failure.repository:
        raise Unavailable(_KILLED)
    repository = Path(failure.repository)
    raise git_process.failure(repository, ("fast-import",), failure.status, failure.stderr)


if __name__ == "__main__":
    # By its name: what is sent from __main__ is of no class that the other side knows.
    from discogs_crawler.importing import lanes

    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        lanes.serve(sys.stdin.buffer, sys.stdout.buffer)
