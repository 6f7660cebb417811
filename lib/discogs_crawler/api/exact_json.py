"""JSON in and out without changing a number: `4.50` stays `4.50`, `5.0` stays `5.0`.

A float that passes through a float printer may come out in another spelling, and an integer of
4,301 digits does not pass through Python's `int` at all; both would be commits that mean nothing.
So numbers stay text. Written form: UTF-8, keys sorted by code point, two spaces a level, a line
feed at the end; the same value gives the same bytes on every Python.
"""

import contextlib
import json
import re
from json.encoder import encode_basestring
from typing import Any, NoReturn

import orjson

from discogs_crawler.errors import BadData

# Commas in a text, and levels of nesting: 0.4 MB, the largest answer seen, has some 17,000 and 7.
# With more, a small text would take all memory as values, or as lines that are all indentation.
MOST_COMMAS = 200_000
DEEPEST = 64

# How a line begins that `dumps` refuses to write.
_TOO_DEEP = b"\n" + b" " * (2 * DEEPEST + 1)

_CANONICAL = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE

_SURROGATE = re.compile("[\ud800-\udfff]")


class Number(str):
    """A number, spelled as its sender spelled it."""

    __slots__ = ()


def loads(text: bytes) -> Any:
    """The value that UTF-8 JSON text spells, with each number as a Number; BadData if it is not.

    Refused besides bad syntax: NaN and Infinity, which are not JSON, an object that has a key
    twice, because it is not defined which of them counts, and more than MOST_COMMAS.
    """
    if text.count(b",") > MOST_COMMAS:
        raise BadData("JSON of more values than a record has")
    try:
        return _DECODER.decode(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadData(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise BadData(f"not JSON at character {error.pos} of {len(error.doc)}") from error
    except RecursionError as error:
        raise BadData("JSON nested too deeply") from error


def dumps(value: Any) -> bytes:
    """The one canonical spelling of a value that `loads` gave; BadData if nested too deeply."""
    pieces: list[str] = []
    _write(value, "\n", pieces.append)
    text = "".join(pieces) + "\n"
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        # Half of a surrogate pair came in as an escape; as an escape alone can it go out again.
        return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode("utf-8")


def dumps_plain(value: Any) -> bytes:
    """The same bytes, 28 times as fast, for what has neither fractions nor halves of surrogates.

    Such as what a dump says: it came as XML, and its numbers are ids and counts.
    """
    return orjson.dumps(value, option=_CANONICAL)


def canonical(text: bytes) -> Any:
    """The value of a text that `dumps` wrote, or would write so; BadData for any other.

    Its numbers may be Python's.
    """
    with contextlib.suppress(ValueError, TypeError):
        # What orjson writes as it was is canonical, and most is; this takes a fifth of the time.
        if text.count(b",") <= MOST_COMMAS and _TOO_DEEP not in text:
            value = orjson.loads(text)
            if dumps_plain(value) == text:
                return value
    value = loads(text)
    if dumps(value) != text:
        raise BadData("not in canonical form (keys sorted, indent 2, a line feed at the end)")
    return value


def _write(value: Any, newline: str, put: Any) -> None:
    if len(newline) > 1 + 2 * DEEPEST:
        raise BadData("JSON nested too deeply")
    if isinstance(value, Number):
        put(value)
    elif isinstance(value, str):
        put(encode_basestring(value))
    elif isinstance(value, dict) and value:
        inner = newline + "  "
        lead = "{" + inner
        for key in sorted(value):
            put(f"{lead}{encode_basestring(key)}: ")
            _write(value[key], inner, put)
            lead = "," + inner
        put(newline + "}")
    elif isinstance(value, list) and value:
        inner = newline + "  "
        lead = "[" + inner
        for element in value:
            put(lead)
            _write(element, inner, put)
            lead = "," + inner
        put(newline + "]")
    else:
        put(json.dumps(value))


def _refuse_constant(name: str) -> NoReturn:
    raise BadData(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise BadData("a key occurs twice in one JSON object")
    return value


_DECODER = json.JSONDecoder(
    parse_float=Number,
    parse_int=Number,
    parse_constant=_refuse_constant,
    object_pairs_hook=_unique,
)
