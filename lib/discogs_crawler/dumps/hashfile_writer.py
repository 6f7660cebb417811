"""Write RESULT: one line per record, `id<TAB>sha1`, ids ascending even if the dump's are not.

Records in ascending order go straight to the file. One whose id is not above all ids before it is a
straggler: stragglers are sorted in bounded memory and merged at the end.
"""

import hashlib
import heapq
import io
import logging
import operator
import os
import shutil
import tempfile
from binascii import hexlify
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from discogs_crawler.dumps.external_sort import sort_lines
from discogs_crawler.dumps.hash_cache import HashCacheWriter
from discogs_crawler.dumps.hashfile import key_of
from discogs_crawler.dumps.metadata import Damage

log = logging.getLogger(__name__)

# Memory for sorting stragglers.
SORT_MEMORY = 32 * 1024 * 1024


@dataclass
class Counts:
    """Counts over a dump: over all of it, or over the part before the damage."""

    records: int = 0
    first_id: int = 0
    last_id: int = 0
    out_of_order: int = 0
    parsed: int = 0
    damaged: int = 0


@dataclass
class Hashed:
    """Records in the dump's order: ids, offsets, keys of the hash cache, content hashes."""

    ids: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    damaged: set[bytes] = field(default_factory=set)
    """keys of records that must not enter the hash cache"""


class ResultWriter:
    """Writes lines to `file`, open for reading too, and entries to `cache`, and counts them."""

    def __init__(
        self, file: BinaryIO, cache: HashCacheWriter | None, folder: Path, counts: Counts
    ) -> None:
        """`folder` is for temporary files."""
        self._file = file
        self._cache = cache
        self._folder = folder
        self._last_id = 0
        self._stragglers: BinaryIO | None = None
        self.sha256 = hashlib.sha256()
        self.counts = counts

    def write(self, hashed: Hashed) -> None:
        """Write some records, at least one."""
        ids, counts = hashed.ids, self.counts
        counts.records += len(ids)
        counts.first_id = min(counts.first_id or ids[0], *ids)
        counts.last_id = max(counts.last_id, *ids)
        if ids[0] <= self._last_id or not all(map(operator.lt, ids, ids[1:])):
            hashed = self._put_stragglers_aside(hashed)
        if hashed.ids:
            self._write_ascending(hashed)

    def _write_ascending(self, hashed: Hashed) -> None:
        ids, contents = hashed.ids, hashed.contents
        lines = b"".join(
            [b"%d\t%b\n" % pair for pair in zip(ids, map(hexlify, contents), strict=True)]
        )
        self._file.write(lines)
        self.sha256.update(lines)
        if self._cache is not None:
            self._cache.write(hashed.keys, contents, hashed.damaged)
        self._last_id = ids[-1]

    def _put_stragglers_aside(self, hashed: Hashed) -> Hashed:
        """Return the records that ascend; the others are kept for the end."""
        if self._stragglers is None:
            self._stragglers = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        rest = Hashed(damaged=hashed.damaged)
        last_id = self._last_id
        rows = zip(hashed.ids, hashed.offsets, hashed.keys, hashed.contents, strict=True)
        for record_id, offset, key, content in rows:
            if record_id > last_id:
                last_id = record_id
                rest.ids.append(record_id)
                rest.offsets.append(offset)
                rest.keys.append(key)
                rest.contents.append(content)
            else:
                self._stragglers.write(b"%d\t%b\t%d\n" % (record_id, hexlify(content), offset))
                self.counts.out_of_order += 1
        return rest

    def finish(self) -> None:
        """Merge the stragglers in; Damage if an id is there twice."""
        if self._stragglers is None:
            return
        log.warning("records out of order: %d; sorting them in", self.counts.out_of_order)
        self._stragglers.seek(0)
        sorted_lines = sort_lines(self._stragglers, key_of, self._folder, SORT_MEMORY)
        with self._stragglers, tempfile.TemporaryFile(dir=self._folder) as merged:
            self._file.flush()
            with io.FileIO(os.dup(self._file.fileno())) as raw, io.BufferedReader(raw) as written:
                written.seek(0)
                merged.writelines(_without_twins(heapq.merge(written, sorted_lines, key=key_of)))
            merged.seek(0)
            self._file.seek(0)
            shutil.copyfileobj(merged, self._file)
            merged.seek(0)
            self.sha256 = hashlib.file_digest(merged, "sha256")


def _without_twins(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of RESULT from sorted lines; those of stragglers also have an offset."""
    last_id = b""
    for line in lines:
        fields = line.split(b"\t")
        if fields[0] == last_id:
            raise Damage("the id is there twice", int(fields[2]), int(last_id))
        last_id = fields[0]
        yield line if len(fields) == 2 else b"%b\t%b\n" % (fields[0], fields[1])
