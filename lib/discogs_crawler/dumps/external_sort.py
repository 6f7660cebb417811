"""Sort more lines than fit into memory: sorted runs in temporary files, merged."""

import contextlib
import heapq
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

# Files merged at once: well below the 1,024 that a process may usually have open.
FAN_IN = 64

# Bytes of a run's file read or written at once, as one of at most FAN_IN + 1.
BUFFER_SIZE = 128 * 1024

Key = Callable[[bytes], Any]


def sort_lines(
    lines: Iterable[bytes], key: Key, folder: Path, memory_bytes: int
) -> Iterator[bytes]:
    """The lines, each with its line feed, in ascending order of `key`; equal ones as they came.

    Holds about `memory_bytes` of them in memory, the rest in nameless files in `folder`.
    """
    with contextlib.ExitStack() as stack:
        runs: list[IO[bytes]] = []
        last: list[bytes] = []
        for run in _runs(lines, memory_bytes):
            if last:
                runs.append(stack.enter_context(_write(sorted(last, key=key), folder)))
            last = run
            if len(runs) == FAN_IN:
                merged = stack.enter_context(_write(heapq.merge(*runs, key=key), folder))
                for file in runs:
                    file.close()
                runs = [merged]
        last.sort(key=key)
        yield from heapq.merge(*runs, last, key=key)


def _runs(lines: Iterable[bytes], memory_bytes: int) -> Iterator[list[bytes]]:
    """The lines in lists of about `memory_bytes`, counted with what Python needs for each."""
    run: list[bytes] = []
    size = 0
    # The list's pointer, and the key that sorting keeps for every line.
    overhead = sys.getsizeof(b"") + 8 + 8 + sys.getsizeof(1 << 30)
    for line in lines:
        run.append(line)
        size += len(line) + overhead
        if size >= memory_bytes:
            yield run
            run, size = [], 0
    if run:
        yield run


def _write(lines: Iterable[bytes], folder: Path) -> IO[bytes]:
    """A nameless file with the lines, to be read from its start."""
    file = tempfile.TemporaryFile(dir=folder, buffering=BUFFER_SIZE)  # noqa: SIM115
    file.writelines(lines)
    file.seek(0)
    return file
