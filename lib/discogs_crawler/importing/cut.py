"""Cut the wanted records out of a dump that was split, and so verified, before."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from discogs_crawler.dumps.block_reader import Blocks
from discogs_crawler.dumps.scanner import Boundaries

# Only behind these can the end of a record be hidden; that none is there is found at 870 MB/s.
_HIDING = re.compile(rb"<[!?]")


class Record(NamedTuple):
    """A record's id, its marks (see Selection), and its XML."""

    id: int
    marks: int
    xml: bytes


def cut(blocks: Blocks, boundaries: Boundaries, marks: bytearray) -> Iterator[list[Record]]:
    """The records whose marks are not 0, in the order of the dump; a list for each look at it."""
    known = len(marks)
    while True:
        found: list[Record] = []
        taken = 0
        spans = boundaries.plain()
        buffer = blocks.buffer
        hidden = bool(spans) and _HIDING.search(buffer, spans[0][0], spans[-1][1]) is not None
        for start, stop, record_id in spans:
            mark = marks[record_id] if record_id < known else 0
            if (mark or hidden) and not boundaries.agrees(start, stop):
                break
            if mark:
                found.append(Record(record_id, mark, bytes(buffer[start:stop])))
            taken = stop
        if taken:
            boundaries.go_on(taken)
        else:
            span = boundaries.exact()
            if span is None:
                return
            boundaries.go_on(span.stop)
            if span.id < known and marks[span.id]:
                xml = bytes(blocks.buffer[span.start : span.stop])
                found.append(Record(span.id, marks[span.id], xml))
        yield found
