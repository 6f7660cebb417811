"""Content hashes of many records at once, on all cores.

A record takes 0.07 ms: 22 minutes for a first dump on one core. Each worker is a process of its
own, `python -m discogs_crawler.dumps.hash_workers KIND`, which reads lists of records from its
standard input and answers each with a list of hashes; it ends when its standard input does.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from discogs_crawler.dumps import canonical
from discogs_crawler.errors import Unavailable

# Records hashed here before workers are started, each of which takes as long as to hash 2,000.
PATIENCE = 1_000

# Bytes in a call of `submit` that one worker cannot keep up with. In a usual month they are fewer.
MANY_BYTES = 128 * 1024

# More workers than this wait for the scanner, and each takes 25 MB.
MAX_WORKERS = 8

# Else the C library gives memory back to the system after each batch, and asks for it again: 5-7 %.
_MALLOC = {"MALLOC_TOP_PAD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "67108864"}

_KILLED = "a process that hashes records was killed; is memory short?"

# A content hash, or why the record is malformed.
HashOrFault = bytes | str


def hash_records(records: Sequence[bytes], kind: str) -> list[HashOrFault]:
    """For each record its content hash (20 bytes), or why it is malformed."""
    hashes: list[HashOrFault] = []
    for record in records:
        try:
            hashes.append(canonical.content_hash(record, kind))
        except canonical.Malformed as error:
            hashes.append(str(error))
    return hashes


class Hasher:
    """Hashes records in the background. Use it as a context manager."""

    def __init__(self, kind: str, workers: int | None = None) -> None:
        """`workers`: processes, by default one a core; with less than two it all happens here."""
        self._kind = kind
        self._count = min(workers or len(os.sched_getaffinity(0)), MAX_WORKERS)
        self._patience = PATIENCE
        self.workers: list[HashWorker] = []

    @property
    def capacity(self) -> int:
        """The number of calls of `submit` that may wait for results, so that workers are busy."""
        return 2 * self._count

    def submit(self, records: list[bytes]) -> Callable[[], list[HashOrFault]]:
        """Begin to hash; the function that is returned waits for the hashes."""
        self._patience -= len(records)
        if self._patience < 0 and self._count > 1:
            wanted = self._count if sum(map(len, records)) > MANY_BYTES else 1
            while len(self.workers) < wanted:
                self.workers.append(HashWorker(self._kind))
        ready = [worker for worker in self.workers if worker.is_ready]
        if ready and records:
            return min(ready, key=lambda worker: worker.waiting).ask(records).result
        hashes = hash_records(records, self._kind)
        return lambda: hashes

    def __enter__(self) -> "Hasher":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.end()


def start_process(
    environment: Mapping[str, str], module: str, *arguments: str
) -> "subprocess.Popen[bytes]":
    """Start `python -m discogs_crawler.MODULE ARGUMENTS`, with pipes to its input and output."""
    library = str(Path(__file__).resolve().parents[2])
    paths = [library, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", f"discogs_crawler.{module}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**environment, **_MALLOC, "PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,  # Ctrl-C is for us alone; they end when we do
    )


class HashWorker:
    """A process that hashes, and a thread that talks with it: a request, then its answer."""

    def __init__(self, kind: str) -> None:
        self._process = start_process(os.environ, "dumps.hash_workers", kind)
        self.pid = self._process.pid
        self._thread = ThreadPoolExecutor(1, "hashes")
        self._asked: list[Future[list[HashOrFault]]] = []
        self._started = self.ask([])

    @property
    def is_ready(self) -> bool:
        """Whether it has answered yet."""
        return self._started.done()

    @property
    def waiting(self) -> int:
        """Requests without an answer."""
        self._asked = [request for request in self._asked if not request.done()]
        return len(self._asked)

    def ask(self, records: list[bytes]) -> Future[list[HashOrFault]]:
        """Hash records when those of earlier calls are hashed."""
        promise = self._thread.submit(self._converse, records)
        self._asked.append(promise)
        return promise

    def end(self) -> None:
        """Whatever it is doing."""
        self._process.kill()
        self._thread.shutdown(cancel_futures=True)
        with contextlib.suppress(OSError):
            self._process.communicate()

    def _converse(self, records: list[bytes]) -> list[HashOrFault]:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests and answers
        try:
            pickle.dump(records, requests, pickle.HIGHEST_PROTOCOL)
            requests.flush()
            hashes: list[HashOrFault] = pickle.load(answers)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            raise Unavailable(_KILLED) from None
        return hashes


def _serve(kind: str, requests: IO[bytes], answers: IO[bytes]) -> None:
    """What a worker does, until there are no more requests."""
    for records in received(requests):
        pickle.dump(hash_records(records, kind), answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


def received(requests: IO[bytes]) -> Iterator[Any]:
    """What the process at the other end has sent, until it ends or is killed, even within one."""
    while True:
        try:
            yield pickle.load(requests)
        except (EOFError, pickle.UnpicklingError):
            return


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        _serve(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
