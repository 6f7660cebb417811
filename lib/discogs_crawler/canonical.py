"""The content hash: one hash for one content, however a dump spells it.

Discogs changed its serialisation in 2020-02, 2024-12 and again by 2026-04; a hash of the plain
bytes then differs for every record, which would be 220 days of needless requests. So a record is
parsed and hashed in a canonical form of what can matter to the store:

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

# Raise it when the same record may get another hash: seeding then refuses to compare.
CANONICAL_VERSION = 1

_IGNORED = ("videos", "images", "resource_url")

# libxml2 leaves out white space between elements itself, except beside a comment or a text.
_PARSER = etree.XMLParser(
    remove_blank_text=True, remove_comments=True, remove_pis=True, collect_ids=False
)

# In C14N output every `<` opens a tag: in texts and attributes it is written `&lt;`.
_BLANK = re.compile(rb"(?<=>)[ \t\n]+(?=<[^/])|(</[^<>]+>)[ \t\n]+(?=</)")
_EMPTY = re.compile(rb"<([^ <>/]+)></\1>")
_TAG = re.compile(rb'</?[^<> ]+(?: [^ =]+="[^"]*")*>')


class Malformed(ValueError):
    """The bytes are not one well-formed element of the kind; the text says why."""


def content_hash(record: bytes, kind: str) -> bytes:
    """SHA-1 (20 bytes) of the canonical form of a record; Malformed if it is not well-formed."""
    return hashlib.sha1(canonical_form(record, kind), usedforsecurity=False).digest()


def canonical_form(record: bytes, kind: str) -> bytes:
    """What is hashed: UTF-8 XML that two records share if and only if their content is the same."""
    element = parse(record, kind)
    etree.strip_elements(element, *_IGNORED, with_tail=False)
    attributes = element.attrib
    if len(attributes) > 1 or (attributes and "id" not in attributes):
        for name in attributes:
            if name != "id":
                del attributes[name]
    text: bytes = etree.tostring(element, method="c14n", with_comments=False)
    return _without_empty(_without_empty_attributes(_without_blanks(text)))


def parse(record: bytes, kind: str) -> etree._Element:
    """The record's element; Malformed if the bytes are not exactly one."""
    try:
        element = etree.fromstring(record, _PARSER)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise Malformed(str(error).partition(" (<string>")[0]) from None
    if element.tag != ELEMENTS[kind]:
        raise Malformed(f"it is <{element.tag}>")
    return element


def _without_blanks(text: bytes) -> bytes:
    """`text` without white space between tags, unless it is all that an element holds."""
    if b">\n" in text or b"> " in text or b">\t" in text:
        return _BLANK.sub(rb"\1", text)
    return text


def _without_empty_attributes(text: bytes) -> bytes:
    """`text` without `name=""` in its tags."""
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
    while _has_empty(text):
        text = _EMPTY.sub(b"", text)
    return text


def _has_empty(text: bytes) -> bool:
    """Whether _EMPTY matches: four times as fast, and today's dumps have no empty elements."""
    end = text.find(b"></")
    while end >= 0:
        start = text.rfind(b"<", 0, end)
        if b" " not in text[start:end] and text[start + 1] != 47:
            return True
        end = text.find(b"></", end + 3)
    return False
