"""JSON goes through without a change of meaning or of spelling."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discogs_crawler.api import exact_json
from discogs_crawler.errors import BadData

DOCUMENTS: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


def shuffled(value: Any, seed: int) -> Any:
    """The same value with the keys of its objects in another order."""
    if isinstance(value, list):
        return [shuffled(element, seed) for element in value]
    if not isinstance(value, dict):
        return value
    keys = list(value)
    random.Random(seed).shuffle(keys)
    return {key: shuffled(value[key], seed) for key in keys}


@given(DOCUMENTS, st.integers(), st.booleans())
def test_the_order_of_keys_and_the_escapes_of_the_sender_do_not_matter(
    document: Any, seed: int, ascii_only: bool
) -> None:
    sent = json.dumps(shuffled(document, seed), ensure_ascii=ascii_only, indent=seed % 3 or None)
    expected = json.dumps(document, ensure_ascii=False, sort_keys=True, indent=2) + "\n"
    try:
        expected_bytes = expected.encode()
    except UnicodeEncodeError:
        return
    assert exact_json.dumps(exact_json.loads(sent.encode())) == expected_bytes


@given(DOCUMENTS)
def test_what_is_written_reads_and_writes_the_same_again(document: Any) -> None:
    once = exact_json.dumps(exact_json.loads(json.dumps(document).encode()))
    assert exact_json.dumps(exact_json.loads(once)) == once
    exact_json.canonical(once)


@pytest.mark.parametrize(
    "number", ["5", "5.0", "4.50", "-0", "-0.0", "1E400", "1e-7", "0.1", "9" * 5_000, "1.0e+2"]
)
def test_a_number_keeps_its_spelling(number: str) -> None:
    assert exact_json.dumps(exact_json.loads(f'{{"n":{number}}}'.encode())) == (
        f'{{\n  "n": {number}\n}}\n'.encode()
    )


def test_half_a_surrogate_pair_stays_an_escape_and_a_whole_one_becomes_a_letter() -> None:
    written = exact_json.dumps(exact_json.loads(rb'{"b\ud800":"\ud83d\ude00 \udc00x"}'))
    assert written == '{\n  "b\\ud800": "😀 \\udc00x"\n}\n'.encode()
    assert exact_json.dumps(exact_json.loads(written)) == written


@pytest.mark.parametrize("number", ["5", "4.50", "1e5", "1" * 30])
def test_canonical_text_is_what_would_be_written(number: str) -> None:
    text = f'{{\n  "id": {number},\n  "text": "\u00fc\x7f\\u0001"\n}}\n'.encode()
    assert float(exact_json.canonical(text)["id"]) == float(number)
    text_before, text_after = b'{\n  "text": 1,', b'\n  "id": 1\n}\n'
    for other in (text[:-1], b" " + text, text + b"\n", text_before + text_after):
        with pytest.raises(BadData, match="not in canonical form"):
            exact_json.canonical(other)


@pytest.mark.parametrize("depth", [exact_json.DEEPEST, exact_json.DEEPEST + 1])
def test_canonical_text_is_nested_no_deeper_than_what_is_written(depth: int) -> None:
    text = b"0"
    for level in reversed(range(depth)):
        text = b"[\n%b%b\n%b]" % (b"  " * (level + 1), text, b"  " * level)
    if depth > exact_json.DEEPEST:
        with pytest.raises(BadData, match="nested too deeply"):
            exact_json.canonical(text + b"\n")
    else:
        exact_json.canonical(text + b"\n")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "not JSON at character 0 of 0"),
        (b'{"a":1', "not JSON at character 6 of 6"),
        (b'{"a":1} x', "not JSON at character 8 of 9"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'{"a":-Infinity}', "-Infinity is not JSON"),
        (b'{"a":01}', "not JSON"),
        (b'{"a":1,"a":1}', "a key occurs twice"),
        (b'{"a":"\xff"}', "not UTF-8 at byte 6"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b'{"a":"\n"}', "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_json_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(BadData, match=why):
        exact_json.loads(text)
