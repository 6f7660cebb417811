"""Bytes that were right once: seeds with pieces of them cut out, doubled or replaced."""

from collections.abc import Sequence

from hypothesis import strategies as st

# What confuses readers of any text.
TOKENS = (
    *(b"\x00", b"\x07", b"\x1b[31m", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x85"),
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\t", b" ", b"\x0b", b"\x0c", b"\x1c", b'"', b"'", b"\\"),
    *(b"0", b"-1", b"1e400", b"nan", b"9" * 30, b"9" * 5_000, b"1_0", "٣".encode(), "ü".encode()),
)


@st.composite
def damaged(
    draw: st.DrawFn, seeds: Sequence[bytes], tokens: Sequence[bytes] = (), pieces: int = 4
) -> bytes:
    """A seed with none to four pieces of damage."""
    text = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, pieces))):
        start = draw(st.integers(0, len(text)))
        reach = draw(st.sampled_from((0, 0, 1, 12, len(text))))
        stop = draw(st.integers(start, min(start + reach, len(text))))
        new = draw(
            st.sampled_from((*tokens, *TOKENS))
            | st.binary(max_size=3)
            | st.sampled_from((b"", text[start:stop] * 2, text[start:]))
        )
        text = text[:start] + new + text[stop:]
    return text


def is_one_line(message: str) -> bool:
    """Whether a terminal shows it as one line, and UTF-8 can spell it."""
    return bool(message) and message.isprintable()
