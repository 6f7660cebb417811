"""The content hash: the same content has the same hash, however a dump spells it.

Discogs changed its serialisation in 2020-02, 2024-12 and again by 2026-04; a hash of the plain
bytes then differs for every record, which would cost 226 days of needless requests. So a record is
parsed, and what is hashed is a canonical form of everything that can matter to the store:

- without `<videos>`, `<images>` and `<resource_url>`, and without the attributes of the record's
  own start tag other than its id;
- without attributes that are empty, and elements that have neither content nor attributes;
- attributes sorted, entities, CDATA sections and line ends as C14N writes them;
- without comments, processing instructions and white space between elements.
"""

import hashlib
import re

from lxml import etree

from discogs_crawler.records import ELEMENTS

# Raise it when the same record may get another hash: seeding then refuses to compare the two.
CANONICAL_VERSION = 1

# Elements that say nothing about the content of a record, wherever they stand.
_IGNORED = ("videos", "images", "resource_url")

# libxml2 itself leaves out white space between elements, as it should but beside a comment, a
# processing instruction or a CDATA section; there it is left in, and cut out of the C14N output.
_PARSER = etree.XMLParser(
    remove_blank_text=True, remove_comments=True, remove_pis=True, collect_ids=False
)
_EXACT_PARSER = etree.XMLParser(remove_comments=True, remove_pis=True, collect_ids=False)
_PI_END = re.compile(rb"\?>")

# In C14N output every `<` opens a tag: in texts and attributes it is written `&lt;`.
_BLANK = re.compile(rb"(?<=>)[ \t\n]+(?=<[^/])|(</[^<>]+>)[ \t\n]+(?=</)")
_EMPTY = re.compile(rb"<([^ <>/]+)></\1>")
_EMPTY_START = re.compile(rb"<[^ <>/]+></")
# Finds `=""` faster than `in`, which stumbles over every quote; `=''` may be text.
_EMPTY_VALUE = re.compile(rb"=[\"']{2}")
_TAG = re.compile(rb'</?[^<> ]+(?: [^ =]+="[^"]*")*>')


class Malformed(ValueError):
    """The bytes are not one well-formed element of the kind; the text says why."""


def content_hash(record: bytes, kind: str) -> bytes:
    """SHA-1 (20 bytes) of the canonical form of a record; Malformed if it is not well-formed."""
    return hashlib.sha1(canonical_form(record, kind), usedforsecurity=False).digest()


def canonical_form(record: bytes, kind: str) -> bytes:
    """What is hashed: UTF-8 XML, the same for two records if and only if their content is."""
    if b"\r" in record:
        # XML reads all of these as "\n", but libxml2 drops some of them where a text is blank.
        record = record.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    odd = _is_odd(record)
    element = parse(record, kind, _EXACT_PARSER if odd else _PARSER)
    etree.strip_elements(element, *_IGNORED, with_tail=False)
    attributes = element.attrib
    if len(attributes) > 1 or (attributes and "id" not in attributes):
        for name in attributes:
            if name != "id":
                del attributes[name]
    try:
        text: bytes = etree.tostring(element, method="c14n", with_comments=False)
    except etree.C14NError as error:
        raise Malformed(f"it has no canonical form: {error}") from None
    if odd:
        text = _BLANK.sub(rb"\1", text)
    return _without_empty(_without_empty_attributes(text))


def _is_odd(record: bytes) -> bool:
    """Whether there is a comment, a CDATA section or a processing instruction in it."""
    if b"!" in record and b"<!" in record:
        return True
    # There is hardly ever a `?>`, and often a `?`: fastest in this order.
    return _PI_END.search(record) is not None and b"<?" in record


def parse(record: bytes, kind: str, parser: etree.XMLParser = _EXACT_PARSER) -> etree._Element:
    """The record's element; Malformed if the bytes are not exactly one element of that kind."""
    try:
        element = etree.fromstring(record, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        reason = " ".join(str(error).partition(" (<string>")[0].split())
        raise Malformed(reason[:200]) from None
    if element.tag != ELEMENTS[kind]:
        raise Malformed(f"it is <{element.tag}>")
    return element


def _without_empty_attributes(text: bytes) -> bytes:
    """`text` without `name=""` in its tags."""
    if not _EMPTY_VALUE.search(text):
        return text
    pieces = []
    done = 0
    found = text.find(b'=""')
    while found >= 0:
        tag = _TAG.match(text, text.rfind(b"<", 0, found))
        if tag is not None and found < tag.end():
            pieces.append(text[done : text.rfind(b" ", 0, found)])
            done = found + 3
        found = text.find(b'=""', found + 3)
    return b"".join((*pieces, text[done:])) if pieces else text


def _without_empty(text: bytes) -> bytes:
    """`text` without elements that are empty, or became so."""
    while _EMPTY_START.search(text):
        fewer = _EMPTY.sub(b"", text)
        if fewer == text:
            break
        text = fewer
    return text
