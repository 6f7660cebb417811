"""Content hashes of many records at once, on all cores.

lxml needs 0.1 ms for a record: 40 minutes for a first dump on one core. Each worker is a process of
its own, `python -m discogs_crawler.hashing KIND`, which reads lists of records from its standard
input and answers each with a list of hashes; it ends when its standard input does.
"""

import contextlib
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO

from discogs_crawler import canonical
from discogs_crawler.errors import Unavailable

# Records hashed here before workers are started, which takes as long as to hash 2,000.
PATIENCE = 2_000

# More workers than this wait for the scanner, and each takes 25 MB.
MAX_WORKERS = 8

# Else the C library gives the memory of each tree back to the system, and asks for it again: 5 %.
_MALLOC = {"MALLOC_TOP_PAD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "67108864"}

# A content hash, or why the record is malformed.
Outcome = bytes | str


def hash_records(records: Sequence[bytes], kind: str) -> list[Outcome]:
    """For each record its content hash (20 bytes), or why it is malformed."""
    outcomes: list[Outcome] = []
    for record in records:
        try:
            outcomes.append(canonical.content_hash(record, kind))
        except canonical.Malformed as error:
            outcomes.append(str(error))
    return outcomes


class Hasher:
    """Hashes records in the background. Use it as a context manager."""

    def __init__(self, kind: str, workers: int | None = None) -> None:
        """`workers`: processes, by default one a core; with less than two it all happens here."""
        self._kind = kind
        self._workers = min(workers or len(os.sched_getaffinity(0)), MAX_WORKERS)
        self._patience = PATIENCE
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None

    @property
    def capacity(self) -> int:
        """How many calls of `submit` may wait for their results: enough to keep workers busy."""
        return 2 * self._workers

    def submit(self, records: list[bytes]) -> Callable[[], list[Outcome]]:
        """Begin to hash; the function that is returned waits for the outcomes."""
        if self._workers < 2 or self._patience > 0 or not records:
            self._patience -= len(records)
            outcomes = hash_records(records, self._kind)
            return lambda: outcomes
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._workers)
            for _ in range(self._workers):
                self._start()
        future: Future[list[Outcome]] = self._threads.submit(self._ask, records)
        return future.result

    def _start(self) -> None:
        library = str(Path(__file__).resolve().parents[1])
        paths = [library, *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [sys.executable, "-m", "discogs_crawler.hashing", self._kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | _MALLOC | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is for us alone; they end when we do
        )
        self._processes.append(process)
        self._idle.put(process)

    def _ask(self, records: list[bytes]) -> list[Outcome]:
        process = self._idle.get()
        assert process.stdin and process.stdout
        try:
            pickle.dump(records, process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            outcomes: list[Outcome] = pickle.load(process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            raise Unavailable(
                "a process that hashes records was killed; is memory short?"
            ) from None
        finally:
            self._idle.put(process)
        return outcomes

    def __enter__(self) -> "Hasher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            with contextlib.suppress(OSError):
                process.communicate()


def _serve(kind: str, requests: IO[bytes], answers: IO[bytes]) -> None:
    """What a worker does, until there are no more requests."""
    while True:
        try:
            records = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(hash_records(records, kind), answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        _serve(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
