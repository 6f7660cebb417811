"""Whatever bytes claim to be JSON: what is accepted keeps its meaning, the rest is refused."""

import json
from typing import Any

from hypothesis import given

from discogs_crawler.api import exact_json
from discogs_crawler.errors import BadData
from tests.fuzz.damage import damaged, is_one_line

SEEDS = (
    b'{"id": 5, "title": "a \\u00fc \\ud83d\\ude00 b", "images": [], "n": [1, -0, 4.50, 1E+5]}',
    b'{\n  "a": {\n    "b": null,\n    "c": [\n      true,\n      false\n    ]\n  }\n}\n',
    b"[" * 30 + b"{}" + b"]" * 30,
    b'"\\"\\\\\\/\\b\\f\\n\\r\\t"',
)
TOKENS = (
    *(b"{", b"}", b"[", b"]", b"[]", b"{}", b",", b":", b'"":', b'"a":1,', b"[" * 5_000, b"/*x*/"),
    *(b"NaN", b"-Infinity", b"null", b"true", b"01", b".5", b"5.", b"1e", b"-", b"0x1", b"+1"),
    *(b"\\", b"\\u", b"\\ud800", b"\\udc00", b"\\u0000", b"\\x"),
    *(b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
)


def refuse(name: str) -> None:
    raise ValueError(name)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def plainly_read(text: bytes) -> Any:
    """What Python makes of it, each number as ("number", its spelling)."""
    return json.loads(
        text.decode(),
        parse_int=lambda spelled: ("number", spelled),
        parse_float=lambda spelled: ("number", spelled),
        parse_constant=refuse,
        object_pairs_hook=unique,
    )


@given(damaged(SEEDS, TOKENS))
def test_json_keeps_its_meaning_or_is_refused(text: bytes) -> None:
    try:
        written = exact_json.dumps(exact_json.loads(text))
    except BadData as error:
        assert is_one_line(str(error))
        try:
            plainly_read(text)
        except (ValueError, RecursionError):
            return
        raise
    assert plainly_read(written) == plainly_read(text)
    assert exact_json.dumps(exact_json.loads(written)) == written


@given(damaged(SEEDS, TOKENS))
def test_canonical_is_what_is_written_as_it_was_read(text: bytes) -> None:
    try:
        expected = exact_json.dumps(exact_json.loads(text)) == text
    except BadData:
        expected = False
    try:
        exact_json.canonical(text)
    except BadData as error:
        assert is_one_line(str(error))
        assert not expected
    else:
        assert expected
