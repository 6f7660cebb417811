"""Where the records of a dump begin and end.

Two ways. `plain` finds `</release>\\n<release id="`, at 2-3 GB/s, and takes for a record what lies
between two of them: rightly, if these bytes were one well-formed element in an earlier month.
`exact` knows comments, CDATA sections, nested elements of the same name, and what may stand before,
between and after records, and finds the record's true end tag; it is asked where `plain` finds
nothing usual, and in records with new bytes wherever the two may differ.
"""

import re
from typing import NamedTuple

from lxml import etree

from discogs_crawler.dumps import canonical
from discogs_crawler.dumps.block_reader import Blocks
from discogs_crawler.dumps.metadata import Damage
from discogs_crawler.dumps.prolog import read_prolog
from discogs_crawler.errors import BadData
from discogs_crawler.records import ELEMENTS, parse_id

# Bytes of a record, or of what stands between two; the largest real ones have 72 kB. What is
# larger has lost its end, and would take all memory.
MAX_RECORD = 16 * 1024 * 1024

# Bytes of a start tag.
MAX_TAG = 64 * 1024

# Bytes that must be there to tell what comes next.
_LOOK_AHEAD = 64

_ID_DIGITS = 9
_SPACE = re.compile(rb"[ \t\r\n]*")
_INSIDE_TAG = rb"(?:[^<>\"']|\"[^<\"]*\"|'[^<']*')*"
_CLOSINGS = {b"<!--": b"-->", b"<?": b"?>", b"<![CDATA[": b"]]>"}
_MISC = re.compile(rb"<!--|<\?|<!\[CDATA\[")


class Span(NamedTuple):
    """A record: its bytes are `buffer[start:stop]` of the window."""

    start: int
    stop: int
    id: int


class Boundaries:
    """A place in the window that is known to lie between two records, and how to go on."""

    def __init__(self, blocks: Blocks, kind_of_name: str | None) -> None:
        """Read up to the first record. Damage if it is not a dump of the kind in its name."""
        self._blocks = blocks
        self.kind, self._position = read_prolog(blocks, kind_of_name)
        name = ELEMENTS[self.kind].encode()
        root = self.kind.encode()
        self._by_attribute = self.kind in ("releases", "masters")
        self._prefix = b'<%b id="' % name if self._by_attribute else b"<%b><id>" % name
        self._id_end = b'"' if self._by_attribute else b"<"
        self._end_tag = b"</%b>" % name
        self._between = self._end_tag + b"\n" + self._prefix
        self._root = b"<" + root
        self._root_end = re.compile(rb"</%b[ \t\r\n]*>" % root)
        self._plain_start = re.compile(
            re.escape(self._prefix)
            + rb"([1-9][0-9]{0,8})"
            + (rb'"(?: [a-z_]+="[^<>"]*")*>' if self._by_attribute else rb"</id>")
        )
        # Within a record: what may hide its end, or may be one.
        self._doubtful = re.compile(rb"<(?:[!?]|/?%b[ \t\r\n/>])" % name)
        self._start = re.compile(rb"<%b[ \t\r\n/>]" % name)
        self._start_tag = re.compile(rb"<%b(?:[ \t\r\n]%b)?/?>" % (name, _INSIDE_TAG))
        self._token = re.compile(
            rb"<!--|<!\[CDATA\[|<\?|</%b[ \t\r\n]*>|<%b(?=[ \t\r\n/>])" % (name, name)
        )
        self._first_child_id = re.compile(
            rb"<%b>\s*(?:<images>.*?</images>\s*)?<id>([0-9]{1,9})</id>" % name, re.DOTALL
        )

    @property
    def offset(self) -> int:
        """Where we are: a byte of the dump's XML."""
        return self._blocks.origin + self._position

    def plain(self) -> list[tuple[int, int, int]]:
        """Start, stop and id of each record here, as far as the window goes; `go_on` after them.

        Empty if there is nothing like a usual record here. The window may have moved.
        """
        buffer = self._blocks.buffer
        if buffer.startswith(b"\n", self._position, self._blocks.end):
            self._position += 1
        if not buffer.startswith(self._prefix, self._position, self._blocks.end):
            return []
        spans = self._plain_in_window()
        if not spans and self._more():
            spans = self._plain_in_window()
        return spans

    def _plain_in_window(self) -> list[tuple[int, int, int]]:
        spans = []
        buffer, end = self._blocks.buffer, self._blocks.end
        find, between, id_end = buffer.find, self._between, self._id_end
        length, end_tag_length = len(between), len(self._end_tag)
        start = self._position
        id_start = start + len(self._prefix)
        while (boundary := find(between, id_start, end)) >= 0:
            id_stop = find(id_end, id_start, id_start + _ID_DIGITS + 1)
            if id_stop < 0 or not (digits := buffer[id_start:id_stop]).isdigit():
                break
            stop = boundary + end_tag_length
            spans.append((start, stop, int(digits)))
            start = stop + 1
            id_start = boundary + length
        return spans

    def agrees(self, start: int, stop: int) -> bool:
        """Whether what `plain` took for a record is what `exact` would."""
        buffer = self._blocks.buffer
        if not self._plain_start.match(buffer, start):
            return False
        if not self._doubtful.search(buffer, start + 1, stop - len(self._end_tag)):
            return True
        return self._find_end(start) == stop

    def go_on(self, stop: int) -> None:
        """The record that stops there was taken."""
        self._position = stop

    def exact(self) -> Span | None:
        """The next record, wherever it is; None at the end of a dump that ends as it should."""
        if not self._skip_to_record():
            self._check_rest()
            return None
        tag = self._read_start_tag()
        while (stop := self._find_end(self._position)) < 0:
            if not self._more():
                raise Damage("the dump is cut off in the middle of a record", self.offset)
        start = self._position
        return Span(start, stop, self._read_id(bytes(self._blocks.buffer[start:stop]), tag))

    def _more(self) -> bool:
        """Move the window on, keeping all from here; False at the end of the dump."""
        keep = self._blocks.end - self._position
        if keep > MAX_RECORD:
            raise Damage(
                f"a record without its end, or of more than {MAX_RECORD} bytes", self.offset
            )
        moved = self._blocks.advance(keep)
        if moved:
            self._position = self._blocks.start
        return moved

    def _skip_space(self) -> bool:
        """Go to what is not white space; False if that is the end of the dump."""
        while True:
            space = _SPACE.match(self._blocks.buffer, self._position, self._blocks.end)
            self._position = space.end() if space else self._position
            if self._blocks.end - self._position >= _LOOK_AHEAD or not self._more():
                return self._position < self._blocks.end

    def _skip_to_record(self) -> bool:
        """Go to the next start tag of a record; False past the end tag of the root."""
        while self._skip_space():
            buffer, end = self._blocks.buffer, self._blocks.end
            if self._start.match(buffer, self._position, end):
                return True
            if root_end := self._root_end.match(buffer, self._position, end):
                self._position = root_end.end()
                return False
            if not self._skip_misc(b"<x>%b</x>"):
                raise Damage(f"no record, but {self._shown()}", self.offset)
        raise Damage("the dump is cut off: its root element has no end", self.offset)

    def _skip_misc(self, document: bytes) -> bool:
        """Skip a comment, processing instruction or CDATA section; False if there is none.

        `document` is an XML document in which it must be well-formed.
        """
        opening = _MISC.match(self._blocks.buffer, self._position, self._blocks.end)
        if opening is None:
            return False
        closing = _CLOSINGS[opening[0]]
        length = len(opening[0])
        while True:
            start = self._position
            found = self._blocks.buffer.find(closing, start + length, self._blocks.end)
            if found >= 0:
                break
            if not self._more():
                raise Damage("the dump is cut off between records", self.offset)
        stop = found + len(closing)
        try:
            etree.fromstring(document % bytes(self._blocks.buffer[start:stop]))
        except etree.XMLSyntaxError:
            raise Damage(f"malformed between records: {self._shown()}", self.offset) from None
        self._position = stop
        return True

    def _check_rest(self) -> None:
        """Damage if anything stands after the root that may not."""
        while self._skip_space():
            if self._blocks.buffer.startswith(self._root, self._position, self._blocks.end):
                raise Damage("a second dump follows the end of the first", self.offset)
            if not self._skip_misc(b"<x/>%b"):
                raise Damage(f"after the end of the root element: {self._shown()}", self.offset)

    def _shown(self) -> str:
        stop = min(self._position + 30, self._blocks.end)
        return repr(bytes(self._blocks.buffer[self._position : stop]))[1:]

    def _read_start_tag(self) -> bytes:
        while True:
            tag = self._start_tag.match(self._blocks.buffer, self._position, self._blocks.end)
            if tag is not None:
                return tag[0]
            if self._blocks.end - self._position > MAX_TAG or not self._more():
                raise Damage(f"a malformed start tag: {self._shown()}", self.offset)

    def _find_end(self, start: int) -> int:
        """Where the record that starts there stops; -1 if the window ends before."""
        buffer, end, place = self._blocks.buffer, self._blocks.end, start
        depth = 0
        while token := self._token.search(buffer, place, end):
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
                tag = self._start_tag.match(buffer, token.start(), end)
                place = tag.end() if tag else place
                depth += 0 if tag and tag[0].endswith(b"/>") else 1
            if depth == 0:
                return place
        return -1

    def _read_id(self, record: bytes, tag: bytes) -> int:
        """The id of the record itself; Damage if it has none."""
        text = self._attribute_id(tag) if self._by_attribute else self._child_id(record)
        if text is None:
            raise Damage("a record without an id", self.offset)
        try:
            return parse_id(text)
        except BadData as error:
            raise Damage(f"a record's id is {error}", self.offset) from None

    def _attribute_id(self, tag: bytes) -> str | None:
        empty = tag if tag.endswith(b"/>") else tag[:-1] + b"/>"
        try:
            found: str | None = etree.fromstring(empty).get("id")
        except etree.XMLSyntaxError:
            raise Damage(f"a malformed start tag: {self._shown()}", self.offset) from None
        return found

    def _child_id(self, record: bytes) -> str | None:
        try:
            found = canonical.parse(record, self.kind).find("id")
        except canonical.Malformed:
            match = self._first_child_id.match(record)
            return match[1].decode() if match else None
        return None if found is None else "".join(found.itertext())
