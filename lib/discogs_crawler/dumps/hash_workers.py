"""Content hashes of many records at once, on all cores.

A record takes 0.05 ms: 16 minutes for a first dump on one core. Each worker is a process of its
own, `python -m discogs_crawler.dumps.hash_workers KIND [parse_all]`, which reads lists of records
from its standard input and answers each with a list of hashes; it ends when its standard input
does.
"""

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import IO

from discogs_crawler import files
from discogs_crawler.dumps import canonical
from discogs_crawler.errors import Unavailable

# Records hashed here before workers are started, each of which takes as long as to hash 2,000.
PATIENCE = 1_000

# Bytes in a call of `submit` that one worker cannot keep up with. In a usual month they are fewer.
MANY_BYTES = 128 * 1024

# More workers than this wait for the scanner, and each takes 25 MB.
MAX_WORKERS = 8

# Else the C library gives memory back to the system after each batch, and asks for it again: 5 %.
_MALLOC = {"MALLOC_TOP_PAD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "67108864"}

_KILLED = "a process that hashes records was killed; is memory short?"

# A content hash, or why the record is malformed.
Outcome = bytes | str


def hash_records(records: Sequence[bytes], kind: str, parse_all: bool = False) -> list[Outcome]:
    """For each record its content hash (20 bytes), or why it is malformed."""
    outcomes: list[Outcome] = []
    for record in records:
        try:
            outcomes.append(canonical.content_hash(record, kind, parse_all))
        except canonical.Malformed as error:
            outcomes.append(str(error))
    return outcomes


class Hasher:
    """Hashes records in the background. Use it as a context manager."""

    def __init__(self, kind: str, workers: int | None = None, parse_all: bool = False) -> None:
        """`workers`: processes, by default one a core; with less than two it all happens here.

        `parse_all`: as for `canonical.content_hash`.
        """
        self._kind = kind
        self._parse_all = parse_all
        self._count = min(workers or len(os.sched_getaffinity(0)), MAX_WORKERS)
        self._patience = PATIENCE
        self.workers: list[Worker] = []

    @property
    def capacity(self) -> int:
        """How many calls of `submit` may wait for their results: enough to keep workers busy."""
        return 2 * self._count

    def submit(self, records: list[bytes]) -> Callable[[], list[Outcome]]:
        """Begin to hash; the function that is returned waits for the outcomes."""
        self._patience -= len(records)
        if self._patience < 0 and self._count > 1:
            wanted = self._count if sum(map(len, records)) > MANY_BYTES else 1
            while len(self.workers) < wanted:
                self.workers.append(Worker(self._kind, self._parse_all))
        ready = [worker for worker in self.workers if worker.is_ready]
        if ready and records:
            return min(ready, key=lambda worker: worker.waiting).ask(records).result
        outcomes = hash_records(records, self._kind, self._parse_all)
        return lambda: outcomes

    def __enter__(self) -> "Hasher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.workers:
            worker.end()


class Worker:
    """A process, and a thread that takes its answers: so it never waits for us to take them."""

    def __init__(self, kind: str, parse_all: bool) -> None:
        library = str(Path(__file__).resolve().parents[2])
        paths = [library, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "discogs_crawler.dumps.hash_workers",
                kind,
                *["parse_all"] * parse_all,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | _MALLOC | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is for us alone; they end when we do
        )
        assert self._process.stdin and self._process.stdout
        self.pid = self._process.pid
        self._requests, self._answers = self._process.stdin, self._process.stdout
        # So that it finds the next batch when it has done with the last.
        files.widen(self._requests)
        self._promises: queue.SimpleQueue[Future[list[Outcome]] | None] = queue.SimpleQueue()
        self._asked = self._answered = 0
        self._thread = threading.Thread(target=self._listen, name="hashes", daemon=True)
        self._thread.start()
        self._started = self.ask([])

    @property
    def is_ready(self) -> bool:
        """Whether it has answered yet."""
        return self._started.done()

    @property
    def waiting(self) -> int:
        """Requests without an answer."""
        return self._asked - self._answered

    def ask(self, records: list[bytes]) -> Future[list[Outcome]]:
        """Send records; their outcomes are promised in the order of the calls."""
        self._asked += 1
        promise: Future[list[Outcome]] = Future()
        self._promises.put(promise)
        try:
            pickle.dump(records, self._requests, pickle.HIGHEST_PROTOCOL)
            self._requests.flush()
        except OSError:
            raise Unavailable(_KILLED) from None
        return promise

    def end(self) -> None:
        """Whatever it is doing."""
        self._process.kill()
        self._promises.put(None)
        self._thread.join()
        with contextlib.suppress(OSError):
            self._process.communicate()

    def _listen(self) -> None:
        while (promise := self._promises.get()) is not None:
            try:
                promise.set_result(pickle.load(self._answers))
            except (OSError, EOFError, ValueError, pickle.UnpicklingError):
                promise.set_exception(Unavailable(_KILLED))
            self._answered += 1


def _serve(kind: str, parse_all: bool, requests: IO[bytes], answers: IO[bytes]) -> None:
    """What a worker does, until there are no more requests."""
    while True:
        try:
            records = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(hash_records(records, kind, parse_all), answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        _serve(sys.argv[1], "parse_all" in sys.argv[2:], sys.stdin.buffer, sys.stdout.buffer)
