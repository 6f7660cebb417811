"""Read what precedes the first record, and check that it is the start of a dump."""

import re

from lxml import etree

from discogs_crawler.dumps.block_reader import Window
from discogs_crawler.dumps.metadata import Damage
from discogs_crawler.records import KINDS

# Bytes before the first record; real dumps have ten or twelve.
MAX_PROLOG = 64 * 1024

_BOM = b"\xef\xbb\xbf"
_MISC = re.compile(rb"(?:[ \t\r\n]+|<!--.*?-->|<\?.*?\?>)*", re.DOTALL)
_ROOT = re.compile(rb"<([A-Za-z_:][^ \t\r\n/<>]*)(?:[^<>\"']|\"[^<\"]*\"|'[^<']*')*>")
_ENCODING = re.compile(rb"<\?xml\s[^>]*?encoding\s*=\s*[\"']([\w.:-]*)[\"']")
_UTF8 = (b"utf-8", b"utf8", b"us-ascii", b"ascii")


def read_prolog(window: Window, kind_of_name: str | None) -> str:
    """Consume the root's start tag and what precedes it; return the dump's kind.

    `kind_of_name` is the kind in the name of the file. Damage if it is not that, or not a dump.
    """
    while window.end - window.start < MAX_PROLOG and window.advance():
        pass
    head = bytes(window.buffer[window.start : min(window.end, window.start + MAX_PROLOG)])
    if not head:
        raise Damage("it is empty")
    before = _MISC.match(head, len(_BOM) if head.startswith(_BOM) else 0)
    assert before is not None
    root = _ROOT.match(head, before.end())
    _refuse_other_formats(head, head[before.end() :])
    if root is None:
        cut_off = len(head) < MAX_PROLOG
        raise Damage("it is cut off" if cut_off else "it does not begin like a dump", before.end())
    kind = _kind_of_root(root[1].decode("utf-8", "replace"), kind_of_name)
    _check_well_formed(head[: root.end()], kind)
    window.start += root.end()
    return kind


def _refuse_other_formats(head: bytes, rest: bytes) -> None:
    if rest[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise Damage("it is an HTML page, not a dump; download it again")
    if rest.startswith(b"<!DOCTYPE"):
        raise Damage("it has a DOCTYPE, which no dump has", len(head) - len(rest))
    if rest and not rest.startswith(b"<"):
        raise Damage(f"it is not XML: it begins with {head[:20]!r}", len(head) - len(rest))
    encoding = _ENCODING.match(head.removeprefix(_BOM))
    if encoding and encoding[1].lower() not in _UTF8:
        raise Damage(f"its encoding is {encoding[1].decode('ascii', 'replace')[:40]}, not UTF-8", 0)


def _kind_of_root(root: str, kind_of_name: str | None) -> str:
    if root not in KINDS:
        raise Damage(f"its root element is <{root[:40]}>, not one of {', '.join(KINDS)}")
    if kind_of_name not in (None, root):
        raise Damage(f"by its name it holds {kind_of_name}, but its root element is <{root}>")
    return root


def _check_well_formed(prolog: bytes, kind: str) -> None:
    if prolog.endswith(b"/>"):
        raise Damage("it holds no records")
    try:
        root = etree.fromstring(prolog + b"</%b>" % kind.encode())
    except etree.XMLSyntaxError as error:
        reason = " ".join(str(error.msg).split())
        raise Damage(f"malformed before the first record: {reason}") from None
    if root.nsmap:
        raise Damage("its root element declares an XML namespace, which no dump does")
