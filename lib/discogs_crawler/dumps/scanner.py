"""Where the records of a dump begin and end.

`usual_spans` finds `</release>\\n<release id="`, at 2-3 GB/s, and takes the bytes between two of
them as a record, which is right if they were one well-formed element in an earlier month.
`ExactScanner` knows comments, CDATA sections, nested elements of the same name, and what may stand
before, between and after records, and finds the record's true end tag; it takes over where nothing
usual is found, and in records with new bytes wherever the two may differ.
"""

import functools
import re
from typing import NamedTuple

from lxml import etree

from discogs_crawler.dumps import canonical
from discogs_crawler.dumps.block_reader import Window
from discogs_crawler.dumps.metadata import Damage
from discogs_crawler.errors import BadData
from discogs_crawler.records import ELEMENTS, parse_id

# Bytes of a start tag.
MAX_TAG = 64 * 1024

# Bytes that must be there to tell what comes next.
_LOOK_AHEAD = 64

_ID_DIGITS = 9
_SPACE = re.compile(rb"[ \t\r\n]*")
_INSIDE_TAG = rb"(?:[^<>\"']|\"[^<\"]*\"|'[^<']*')*"
_CLOSINGS = {b"<!--": b"-->", b"<?": b"?>", b"<![CDATA[": b"]]>"}
_MISC = re.compile(rb"<!--|<\?|<!\[CDATA\[")

# A record in the window: where it starts, where it stops, its id.
Span = tuple[int, int, int]


class Grammar(NamedTuple):
    """How the records of a kind are written."""

    kind: str
    id_is_attribute: bool
    """Else it is a child element."""
    prefix: bytes
    """What a usual record begins with; its id follows,"""
    id_end: bytes
    """and then this."""
    end_tag: bytes
    usual_start_tag: re.Pattern[bytes]
    """With the id, wherever it stands."""
    start: re.Pattern[bytes]
    """Enough to know that a record starts."""
    start_tag: re.Pattern[bytes]
    token: re.Pattern[bytes]
    """What decides where a record ends: tags of its name, and what may hide them."""
    first_child_id: re.Pattern[bytes]
    """The id in a malformed record, if it is a child."""
    root_end: re.Pattern[bytes]


@functools.cache
def grammar_of(kind: str) -> Grammar:
    name, root = ELEMENTS[kind].encode(), kind.encode()
    by_attribute = kind in ("releases", "masters")
    prefix = b'<%b id="' % name if by_attribute else b"<%b><id>" % name
    after_id = rb'"(?: [a-z_]+="[^<>"]*")*>' if by_attribute else rb"</id>"
    return Grammar(
        kind=kind,
        id_is_attribute=by_attribute,
        prefix=prefix,
        id_end=b'"' if by_attribute else b"<",
        end_tag=b"</%b>" % name,
        usual_start_tag=re.compile(re.escape(prefix) + rb"[1-9][0-9]{0,8}" + after_id),
        start=re.compile(rb"<%b[ \t\r\n/>]" % name),
        start_tag=re.compile(rb"<%b(?:[ \t\r\n]%b)?/?>" % (name, _INSIDE_TAG)),
        token=re.compile(
            rb"<!--|<!\[CDATA\[|<\?|</%b[ \t\r\n]*>|<%b(?=[ \t\r\n/>])" % (name, name)
        ),
        first_child_id=re.compile(
            rb"<%b>\s*(?:<images>.*?</images>\s*)?<id>([0-9]{1,9})</id>" % name, re.DOTALL
        ),
        root_end=re.compile(rb"</%b[ \t\r\n]*>" % root),
    )


def usual_spans(window: Window, grammar: Grammar) -> list[Span]:
    """The records from the start of the window on, as far as it goes; they are not taken yet.

    Empty if there is nothing like a usual record here. The window may have been advanced.
    """
    if window.buffer.startswith(b"\n", window.start, window.end):
        window.start += 1
    if not window.buffer.startswith(grammar.prefix, window.start, window.end):
        return []
    spans = _spans_up_to_the_last_boundary(window, grammar)
    if not spans and window.advance():
        spans = _spans_up_to_the_last_boundary(window, grammar)
    return spans


def _spans_up_to_the_last_boundary(window: Window, grammar: Grammar) -> list[Span]:
    spans = []
    find, end, id_end = window.buffer.find, window.end, grammar.id_end
    between = grammar.end_tag + b"\n" + grammar.prefix
    start = window.start
    id_start = start + len(grammar.prefix)
    while (boundary := find(between, id_start, end)) >= 0:
        id_stop = find(id_end, id_start, id_start + _ID_DIGITS + 1)
        if id_stop < 0 or not (digits := window.buffer[id_start:id_stop]).isdigit():
            break
        stop = boundary + len(grammar.end_tag)
        spans.append((start, stop, int(digits)))
        start = stop + 1
        id_start = boundary + len(between)
    return spans


class ExactScanner:
    """Finds records wherever XML allows them, one by one from the start of the window on."""

    def __init__(self, window: Window, grammar: Grammar) -> None:
        self._window = window
        self._grammar = grammar

    def find(self) -> Span | None:
        """The next record, not taken yet; None at the end of a dump that ends as it should."""
        window = self._window
        if not self._skip_to_record():
            self._check_rest()
            return None
        tag = self._read_start_tag()
        while (stop := self._find_end(window.start)) < 0:
            self._need_more("in the middle of a record")
        record = bytes(window.buffer[window.start : stop])
        return window.start, stop, self._read_id(record, tag)

    def agrees(self, start: int, stop: int) -> bool:
        """Whether what `usual_spans` took for a record is what `find` would."""
        buffer, grammar = self._window.buffer, self._grammar
        if not grammar.usual_start_tag.match(buffer, start):
            return False
        if not grammar.token.search(buffer, start + 1, stop - len(grammar.end_tag)):
            return True  # its end tag is the first thing that can be one
        return self._find_end(start) == stop

    def _skip_to_record(self) -> bool:
        """Go to the next start tag of a record; False past the end tag of the root."""
        window = self._window
        while self._skip_space():
            if self._grammar.start.match(window.buffer, window.start, window.end):
                return True
            if end := self._grammar.root_end.match(window.buffer, window.start, window.end):
                window.start = end.end()
                return False
            if not self._skip_misc(b"<x>%b</x>"):
                raise self._damage("no record, but")
        raise Damage("the dump is cut off: its root element has no end", window.offset)

    def _check_rest(self) -> None:
        """Damage if anything stands after the root that may not."""
        window, root = self._window, b"<" + self._grammar.kind.encode()
        while self._skip_space():
            if window.buffer.startswith(root, window.start, window.end):
                raise Damage("a second dump follows the end of the first", window.offset)
            if not self._skip_misc(b"<x/>%b"):
                raise self._damage("after the end of the root element:")

    def _skip_space(self) -> bool:
        """Go to what is not white space; False if that is the end of the dump."""
        window = self._window
        while True:
            space = _SPACE.match(window.buffer, window.start, window.end)
            window.start = space.end() if space else window.start
            if window.end - window.start >= _LOOK_AHEAD or not window.advance():
                return window.start < window.end

    def _skip_misc(self, document: bytes) -> bool:
        """Skip a comment, processing instruction or CDATA section; False if there is none.

        `document` is an XML document in which it must be well-formed.
        """
        window = self._window
        opening = _MISC.match(window.buffer, window.start, window.end)
        if opening is None:
            return False
        closing, length = _CLOSINGS[opening[0]], len(opening[0])
        while (found := window.buffer.find(closing, window.start + length, window.end)) < 0:
            self._need_more("between records")
        stop = found + len(closing)
        try:
            etree.fromstring(document % bytes(window.buffer[window.start : stop]))
        except etree.XMLSyntaxError:
            raise self._damage("malformed between records:") from None
        window.start = stop
        return True

    def _read_start_tag(self) -> bytes:
        window = self._window
        while True:
            tag = self._grammar.start_tag.match(window.buffer, window.start, window.end)
            if tag is not None:
                return tag[0]
            if window.end - window.start > MAX_TAG or not window.advance():
                raise self._damage("a malformed start tag:")

    def _find_end(self, start: int) -> int:
        """Where the record that starts there stops; -1 if the window ends before."""
        buffer, end, place = self._window.buffer, self._window.end, start
        depth = 0
        while token := self._grammar.token.search(buffer, place, end):
            place = token.end()
            if closing := _CLOSINGS.get(token[0]):
                found = buffer.find(closing, place, end)
                if found < 0:
                    return -1
                place = found + len(closing)
                continue
            if token[0].startswith(b"</"):
                depth -= 1
            else:
                tag = self._grammar.start_tag.match(buffer, token.start(), end)
                place = tag.end() if tag else place
                depth += 0 if tag and tag[0].endswith(b"/>") else 1
            if depth == 0:
                return place
        return -1

    def _read_id(self, record: bytes, tag: bytes) -> int:
        """The id of the record itself; Damage if it has none."""
        by_attribute = self._grammar.id_is_attribute
        text = self._attribute_id(tag) if by_attribute else self._child_id(record)
        if text is None:
            raise Damage("a record without an id", self._window.offset)
        try:
            return parse_id(text)
        except BadData as error:
            raise Damage(f"a record's id is {error}", self._window.offset) from None

    def _attribute_id(self, tag: bytes) -> str | None:
        empty = tag if tag.endswith(b"/>") else tag[:-1] + b"/>"
        try:
            found: str | None = etree.fromstring(empty).get("id")
        except etree.XMLSyntaxError:
            raise self._damage("a malformed start tag:") from None
        return found

    def _child_id(self, record: bytes) -> str | None:
        try:
            found = canonical.parse(record, self._grammar.kind).find("id")
        except canonical.Malformed:
            match = self._grammar.first_child_id.match(record)
            return match[1].decode() if match else None
        return None if found is None else "".join(found.itertext())

    def _need_more(self, where: str) -> None:
        """Advance the window; Damage if the dump ends here."""
        if not self._window.advance():
            raise Damage(f"the dump is cut off {where}", self._window.offset)

    def _damage(self, what: str) -> Damage:
        """`what` is wrong here, and the first bytes of it."""
        window = self._window
        shown = bytes(window.buffer[window.start : min(window.start + 30, window.end)])
        return Damage(f"{what} {repr(shown)[1:]}", window.offset)
