"""From a dump to RESULT: cut, hash, look up in the book, parse what the book does not know.

Every record whose bytes are not in the book is proven to be one well-formed element: those in the
book were in an earlier month. With that, and the checks on what stands around records, the dump is
verified as a whole although hardly any of it is parsed.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from discogs_crawler.dumps.block_reader import Blocks
from discogs_crawler.dumps.hash_cache import Book, pack_key
from discogs_crawler.dumps.hash_workers import Hasher, Outcome
from discogs_crawler.dumps.hashfile_writer import Hashed, ResultWriter
from discogs_crawler.dumps.metadata import Damage
from discogs_crawler.dumps.scanner import Boundaries

log = logging.getLogger(__name__)

# Records and bytes to be parsed in a batch: enough to make a hand-over to a worker cheap.
BATCH_RECORDS = 1_000
BATCH_BYTES = 256 * 1024

# With more damaged records the dump as a whole is not to be trusted.
MAX_DAMAGED = 100


class _Batch(NamedTuple):
    ids: list[int]
    offsets: list[int]
    keys: list[bytes]
    contents: list[bytes | None]
    unknown: list[bytes]


class Splitter:
    """One pass over one dump. `records`, `parsed`, `damaged` tell how far it has come."""

    def __init__(
        self,
        blocks: Blocks,
        boundaries: Boundaries,
        book: Book,
        hasher: Hasher | None,
    ) -> None:
        """Without a `hasher` nothing is parsed: the raw hashes are the result."""
        self._blocks = blocks
        self._boundaries = boundaries
        self._book = book
        self._hasher = hasher
        self._batch = _Batch([], [], [], [], [])
        self._unknown_bytes = 0
        self._waiting: deque[tuple[_Batch, Callable[[], list[Outcome]]]] = deque()
        self._damaged_keys: set[bytes] = set()
        self.parsed = self.damaged = 0

    def run(self, result: ResultWriter, progress: Callable[[], None]) -> None:
        """Write all records to `result`. Damage if the dump is not whole."""
        while self._cut(result):
            progress()
            if len(self._batch.ids) >= BATCH_RECORDS or self._unknown_bytes >= BATCH_BYTES:
                self._hand_over(result)
        self._settle(result)
        result.finish()
        if not result.records:
            raise Damage("it holds not a single record")

    def _cut(self, result: ResultWriter) -> bool:
        """Take the next records; False at the end of the dump."""
        try:
            spans = self._boundaries.plain()
            if spans and self._take(spans):
                return True
            span = self._boundaries.exact()
        except Damage:
            self._settle(result)
            raise
        if span:
            self._take([span], exact=True)
        return span is not None

    def _take(self, spans: list[tuple[int, int, int]], exact: bool = False) -> int:
        """Hash and look up records; the number taken before one that needs the exact way."""
        with memoryview(self._blocks.buffer) as view:
            keys = [
                pack_key(record_id, hashlib.sha1(view[start:stop], usedforsecurity=False).digest())
                for start, stop, record_id in spans
            ]
        contents = self._book.look_up(keys)
        if None in contents:
            known = self._take_unknown(spans, contents, exact)
            spans, keys, contents = spans[:known], keys[:known], contents[:known]
        origin = self._blocks.origin
        batch = self._batch
        batch.ids.extend([span[2] for span in spans])
        batch.offsets.extend([origin + span[0] for span in spans])
        batch.keys.extend(keys)
        batch.contents.extend(contents)
        if spans:
            self._boundaries.go_on(spans[-1][1])
        return len(spans)

    def _take_unknown(
        self, spans: list[tuple[int, int, int]], contents: list[bytes | None], exact: bool
    ) -> int:
        """Keep the bytes of records that the book does not know; the number of spans that hold."""
        buffer = self._blocks.buffer
        for number, content in enumerate(contents):
            if content is not None:
                continue
            start, stop, _ = spans[number]
            if not exact and not self._boundaries.agrees(start, stop):
                return number
            if self._hasher is not None:
                self._batch.unknown.append(bytes(buffer[start:stop]))
                self._unknown_bytes += stop - start
        return len(spans)

    def _hand_over(self, result: ResultWriter) -> None:
        """Have the batch hashed in the background, and write what is ready."""
        if not self._batch.ids:
            return
        batch, self._batch = self._batch, _Batch([], [], [], [], [])
        self._unknown_bytes = 0
        if self._hasher is None:
            result.write(Hashed(batch.ids, batch.offsets, batch.keys, [k[4:] for k in batch.keys]))
            return
        self._waiting.append((batch, self._hasher.submit(batch.unknown)))
        while len(self._waiting) > self._hasher.capacity:
            self._finish_one(result)

    def _settle(self, result: ResultWriter) -> None:
        """Write all that was taken."""
        self._hand_over(result)
        while self._waiting:
            self._finish_one(result)

    def _finish_one(self, result: ResultWriter) -> None:
        batch, outcomes_of = self._waiting.popleft()
        outcomes = iter(outcomes_of())
        contents = [
            self._outcome(batch, number, next(outcomes)) if content is None else content
            for number, content in enumerate(batch.contents)
        ]
        self.parsed += len(batch.unknown)
        result.write(Hashed(batch.ids, batch.offsets, batch.keys, contents, self._damaged_keys))

    def _outcome(self, batch: _Batch, number: int, outcome: Outcome) -> bytes:
        """The content hash of a parsed record: its raw hash if it is damaged, which is said."""
        if isinstance(outcome, bytes):
            return outcome
        record_id, offset = batch.ids[number], batch.offsets[number]
        self._damaged_keys.add(batch.keys[number])
        self.damaged += 1
        if self.damaged > MAX_DAMAGED:
            raise Damage(f"more than {MAX_DAMAGED} damaged records: {outcome}", offset, record_id)
        log.warning("record %d, byte %d: damaged: %s", record_id, offset, outcome)
        return batch.keys[number][4:]
