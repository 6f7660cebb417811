"""From a dump to RESULT: cut, hash, look up in the hash cache, parse what is not there.

Every record whose bytes are not in the cache is parsed, which proves that it is one well-formed
element; those in the cache were parsed in an earlier month. Together with the checks of the text
between records this verifies the whole dump, although hardly any of it is parsed.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator

from discogs_crawler.dumps.block_reader import Window
from discogs_crawler.dumps.hash_cache import HashCache, pack_key
from discogs_crawler.dumps.hash_workers import Hasher, HashOrFault
from discogs_crawler.dumps.hashfile_writer import Hashed, ResultWriter
from discogs_crawler.dumps.known_elements import ElementWatch
from discogs_crawler.dumps.metadata import Damage
from discogs_crawler.dumps.scanner import ExactScanner, Span, grammar_of, usual_spans

log = logging.getLogger(__name__)

# Records and bytes to be parsed in a batch: enough to make sending it to a worker cheap.
BATCH_RECORDS = 1_000
BATCH_BYTES = 256 * 1024

# With more damaged records the dump as a whole cannot be trusted.
MAX_DAMAGED = 100


class Splitter:
    """One pass over one dump."""

    def __init__(
        self,
        window: Window,
        kind: str,
        cache: HashCache,
        hasher: Hasher | None,
        result: ResultWriter,
        watch: ElementWatch,
    ) -> None:
        """Without a `hasher` nothing is parsed: the raw hashes are the result."""
        self._window = window
        self._grammar = grammar_of(kind)
        self._exact = ExactScanner(window, self._grammar)
        self._cache = cache
        self._hasher = hasher
        self._result = result
        self._watch = watch
        self._batch = Hashed()
        self._unknown: list[bytes] = []
        self._waiting: deque[tuple[Hashed, Callable[[], list[HashOrFault]]]] = deque()

    def steps(self) -> Iterator[None]:
        """Write all records to the result, some at each step. Damage if the dump is not whole."""
        while self._cut():
            yield
            full = sum(map(len, self._unknown)) >= BATCH_BYTES
            if full or len(self._batch.ids) >= BATCH_RECORDS:
                self._hand_over()
        self._settle()
        self._result.finish()
        if not self._result.counts.records:
            raise Damage("it holds no records")

    def _cut(self) -> bool:
        """Take the next records; False at the end of the dump."""
        try:
            if self._take(usual_spans(self._window, self._grammar)):
                return True
            span = self._exact.find()
        except Damage:
            self._settle()  # what came before is counted, and may be worse
            raise
        return span is not None and self._take([span], exact=True)

    def _take(self, spans: list[Span], exact: bool = False) -> bool:
        """Hash and look up records up to one that needs the exact way; False if it is the first."""
        with memoryview(self._window.buffer) as view:
            keys = [
                pack_key(record_id, hashlib.sha1(view[start:stop], usedforsecurity=False).digest())
                for start, stop, record_id in spans
            ]
        contents = self._cache.look_up(keys)
        if b"" in contents:
            known = self._take_unknown(spans, contents, exact)
            spans, keys, contents = spans[:known], keys[:known], contents[:known]
        if not spans:
            return False
        origin = self._window.origin
        batch = self._batch
        batch.ids.extend([span[2] for span in spans])
        batch.offsets.extend([origin + span[0] for span in spans])
        batch.keys.extend(keys)
        batch.contents.extend(contents)
        self._window.start = spans[-1][1]
        return True

    def _take_unknown(self, spans: list[Span], contents: list[bytes], exact: bool) -> int:
        """Keep the bytes of records that are not in the cache; the number of spans that hold."""
        buffer = self._window.buffer
        for number, content in enumerate(contents):
            if content:
                continue
            start, stop, _ = spans[number]
            if not exact and not self._exact.agrees(start, stop):
                return number
            self._unknown.append(bytes(buffer[start:stop]))
        return len(spans)

    def _hand_over(self) -> None:
        """Have the batch hashed in the background, and write what is ready."""
        batch, unknown = self._batch, self._unknown
        if not batch.ids:
            return
        self._batch, self._unknown = Hashed(), []
        if self._hasher is None:
            batch.contents = [key[4:] for key in batch.keys]
            self._result.write(batch)
            return
        self._waiting.append((batch, self._hasher.submit(unknown)))
        ids = [i for i, content in zip(batch.ids, batch.contents, strict=True) if not content]
        self._watch.look_at_some(ids, unknown)
        while len(self._waiting) > self._hasher.capacity:
            self._finish_one()

    def _settle(self) -> None:
        """Write all that was taken."""
        self._hand_over()
        while self._waiting:
            self._finish_one()

    def _finish_one(self) -> None:
        """Wait for the hashes of a batch, and write it."""
        batch, hashes_of = self._waiting.popleft()
        unknown = [number for number, content in enumerate(batch.contents) if not content]
        for number, hashed in zip(unknown, hashes_of(), strict=True):
            if isinstance(hashed, str):
                self._report_damaged(batch, number, hashed)
                hashed = batch.keys[number][4:]
            batch.contents[number] = hashed
        self._result.counts.parsed += len(unknown)
        self._result.write(batch)

    def _report_damaged(self, batch: Hashed, number: int, reason: str) -> None:
        """Report a damaged record; its hash is that of its bytes."""
        record_id, offset, counts = batch.ids[number], batch.offsets[number], self._result.counts
        batch.damaged.add(batch.keys[number])
        counts.damaged += 1
        if counts.damaged > MAX_DAMAGED:
            raise Damage(f"more than {MAX_DAMAGED} damaged records: {reason}", offset, record_id)
        log.warning("record %d, byte %d: damaged: %s", record_id, offset, reason)
