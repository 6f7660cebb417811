"""Cut the wanted records out of a dump, which the split has verified before."""

import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from discogs_crawler.dumps.block_reader import Window
from discogs_crawler.dumps.hash_cache import HashCache, pack_key
from discogs_crawler.dumps.metadata import Damage
from discogs_crawler.dumps.scanner import ExactScanner, grammar_of, usual_spans

# Only these can hide the end of a record. Searching for them runs at 870 MB/s.
_HIDING = re.compile(rb"<[!?]")


class Record(NamedTuple):
    """A record's id, its marks (see Selection), and its XML."""

    id: int
    marks: int
    xml: bytes


def cut_known(
    window: Window, kind: str, marks: bytearray, cache: HashCache
) -> Iterator[list[Record]]:
    """Yield, in lists, the records whose marks are not 0 and whose bytes the split has seen.

    `marks` are by id; those of the records become 0. Where records end is not checked: the split's
    hash cache lacks the bytes of anything that is not a record, which is then skipped.
    """
    grammar = grammar_of(kind)
    exact = ExactScanner(window, grammar)
    known = len(marks)
    while True:
        spans = usual_spans(window, grammar)
        if not spans:
            try:
                span = exact.find()
            except Damage:
                return
            if span is None:
                return
            spans = [span]
        wanted = [span for span in spans if span[2] < known and marks[span[2]]]
        texts = [bytes(window.buffer[start:stop]) for start, stop, _ in wanted]
        keys = [
            pack_key(span[2], hashlib.sha1(text, usedforsecurity=False).digest())
            for span, text in zip(wanted, texts, strict=True)
        ]
        found = []
        contents = cache.look_up(keys)
        for (_, _, record_id), text, content in zip(wanted, texts, contents, strict=True):
            if content:
                found.append(Record(record_id, marks[record_id], text))
                marks[record_id] = 0
        window.start = spans[-1][1]
        yield found


def cut(window: Window, kind: str, marks: bytearray) -> Iterator[list[Record]]:
    """Yield, in lists, all records whose marks are not 0; Damage if the dump is not whole."""
    grammar = grammar_of(kind)
    exact = ExactScanner(window, grammar)
    known = len(marks)
    while True:
        found: list[Record] = []
        spans = usual_spans(window, grammar)
        buffer, taken = window.buffer, window.start
        hidden = bool(spans) and _HIDING.search(buffer, spans[0][0], spans[-1][1]) is not None
        for start, stop, record_id in spans:
            mark = marks[record_id] if record_id < known else 0
            if (mark or hidden) and not exact.agrees(start, stop):
                break
            if mark:
                found.append(Record(record_id, mark, bytes(buffer[start:stop])))
            taken = stop
        if taken > window.start:
            window.start = taken
        else:
            span = exact.find()
            if span is None:
                return
            start, stop, record_id = span
            if record_id < known and marks[record_id]:
                xml = bytes(window.buffer[start:stop])
                found.append(Record(record_id, marks[record_id], xml))
            window.start = stop
        yield found
