"""Read the XML of a dump through a window: from a file or a pipe, gzip or plain.

A thread of its own reads, hashes and inflates the next blocks while the caller works on this one:
isal inflates without holding the interpreter's lock, at 600-950 MB/s of XML.
"""

import gzip
import hashlib
import io
import queue
import threading
from pathlib import Path
from typing import Any

from isal import igzip
from isal.igzip_lib import IsalError

from discogs_crawler.dumps.metadata import Damage
from discogs_crawler.errors import UsageError

# Bytes of XML in a block: smaller ones cost more exchanges with the thread, larger ones do not stay
# in the CPU's cache.
BLOCK_SIZE = 512 * 1024

# Blocks in use: one that the caller works on, one ready, one to inflate into.
SLOTS = 3

# Room before a block for what the caller keeps of the one before; the largest records are 72 kB.
HEADROOM = 128 * 1024

# Bytes of a record, or of what stands between two; the largest real ones have 72 kB. What is
# larger has lost its end, and would take all memory: 60 times as much when it is parsed.
MAX_RECORD = 2 * 1024 * 1024

_GZIP_MAGIC = b"\x1f\x8b"


class DumpFile(io.FileIO):
    """The dump's file as it is; counts (`size`) and hashes (`sha256`) what has been read of it."""

    def __init__(self, path: Path | None) -> None:
        """Open the file; None is standard input. UsageError if it cannot be read."""
        self.size = 0
        self.sha256 = hashlib.sha256()
        try:
            super().__init__(0 if path is None else path, closefd=path is not None)
            head = bytearray(len(_GZIP_MAGIC))
            self._head = bytes(head[: _read_full(super(), memoryview(head))])
        except OSError as error:
            name = path or "standard input"
            raise UsageError(f"{name}: cannot be read: {error.strerror}") from error
        self.compressed = self._head == _GZIP_MAGIC

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        if self._head and len(view):
            count = min(len(view), len(self._head))
            view[:count] = self._head[:count]
            self._head = self._head[count:]
        else:
            count = super().readinto(view) or 0
        self.sha256.update(view[:count])
        self.size += count
        return count

    def drain(self) -> None:
        """Read and hash what is left."""
        block = bytearray(BLOCK_SIZE)
        while self.readinto(block):
            pass


class Window:
    """The XML that has been inflated and not yet consumed: `buffer[start:end]`.

    The caller consumes by moving `start`; `advance` adds a block. `offset` is the byte of the XML
    at `start`. Use it as a context manager: leaving it stops the thread.
    """

    def __init__(self, source: DumpFile, block_size: int = BLOCK_SIZE) -> None:
        self._source = source
        self._free: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[tuple[bytearray, int] | Damage] = queue.SimpleQueue()
        for _ in range(SLOTS):
            self._free.put(bytearray(HEADROOM + block_size))
        # The buffer, if it is a slot: what is kept may be too large for one.
        self._slot: bytearray | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._fill, name="inflate", daemon=True)
        self.buffer = bytearray()
        self.start = self.end = self.origin = 0
        self._at_end = False

    def __enter__(self) -> "Window":
        self._thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._stopping = True
        self._free.put(None)
        if error is None or issubclass(error, Exception):
            self._thread.join()  # not when interrupted: it may wait for standard input

    @property
    def offset(self) -> int:
        return self.origin + self.start

    def advance(self) -> bool:
        """Add a block at the end, which may move everything; False at the end of the dump.

        Damage if the dump cannot be inflated, or nothing was taken from far too large a window.
        """
        keep = self.end - self.start
        if keep > MAX_RECORD:
            raise Damage(
                f"a record without its end, or of more than {MAX_RECORD} bytes", self.offset
            )
        if self._at_end:
            return False
        filled = self._filled.get()
        if isinstance(filled, Damage):
            self._at_end = True
            raise filled
        slot, count = filled
        if not count:
            self._at_end = True
            return False
        offset, used = self.offset, self._slot
        kept = memoryview(self.buffer)[self.start : self.end]
        if keep <= HEADROOM:
            self._slot = self.buffer = slot
            self.start = HEADROOM - keep
            slot[self.start : HEADROOM] = kept
        else:
            self._slot, self.start = None, 0
            self.buffer = bytearray(kept) + memoryview(slot)[HEADROOM : HEADROOM + count]
            self._free.put(slot)
        kept.release()
        if used is not None:
            self._free.put(used)
        self.end = self.start + keep + count
        self.origin = offset - self.start
        return True

    def _fill(self) -> None:
        """The thread: inflate into free slots until the end or the first fault."""
        stream: io.RawIOBase | igzip.IGzipFile = self._source
        if self._source.compressed:
            stream = igzip.IGzipFile(fileobj=self._source)  # type: ignore[no-untyped-call]
        total = 0
        try:
            while not self._stopping and (slot := self._free.get()) is not None:
                count = _read_full(stream, memoryview(slot)[HEADROOM:])
                total += count
                self._filled.put((slot, count))
                if not count:
                    break
        except (gzip.BadGzipFile, IsalError) as error:  # type: ignore[misc]
            self._filled.put(Damage(f"the gzip data are damaged: {error}", total))
        except EOFError:
            self._filled.put(Damage("the gzip data are cut off", total))
        except OSError as error:
            self._filled.put(Damage(f"it cannot be read on: {error.strerror}", total))


def _read_full(stream: Any, view: memoryview) -> int:
    """Read until `view` is full or the stream ends; the number of bytes."""
    count = 0
    while count < len(view) and (more := stream.readinto(view[count:])):
        count += more
    return count
