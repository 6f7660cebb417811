"""Bytes that were right once: seeds with pieces of them cut out, doubled or replaced."""

import re
from collections.abc import Sequence

from hypothesis import strategies as st

# What confuses readers of any text.
TOKENS = (
    *(b"\x00", b"\x07", b"\x1b[31m", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x85"),
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\t", b" ", b"\x0b", b"\x0c", b"\x1c", b'"', b"'", b"\\"),
    *(b"0", b"7", b"-1", b"1e400", b"nan", b"9" * 30, b"9" * 5_000, b"1_0"),
    *("٣".encode(), "ü".encode()),
)

# Where a word begins or ends, or a value, which is where damage is most likely to make sense.
_WORD = re.compile(rb"\b|(?<=[\s=:\"])")


@st.composite
def damaged(
    draw: st.DrawFn, seeds: Sequence[bytes], tokens: Sequence[bytes] = (), pieces: int = 4
) -> bytes:
    """A seed with none to four pieces of damage."""
    text = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, pieces))):
        words = [match.start() for match in _WORD.finditer(text)] + [len(text)]
        start = draw(st.sampled_from(words) | st.integers(0, len(text)))
        end_of_word = next(place for place in words if place > start or place == len(text))
        near = draw(st.sampled_from((start, min(start + 1, len(text)), end_of_word)))
        stop = draw(st.just(near) | st.integers(start, len(text)))
        new = draw(
            st.sampled_from(tokens or TOKENS)
            | st.sampled_from(TOKENS)
            | st.binary(max_size=3)
            | st.sampled_from((b"", text[start:stop] * 2, text[start:]))
        )
        text = text[:start] + new + text[stop:]
    return text


def is_one_line(message: str) -> bool:
    """Whether a terminal shows it as one line, and UTF-8 can spell it."""
    return bool(message) and message.isprintable()
