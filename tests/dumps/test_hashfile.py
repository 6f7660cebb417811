"""Files of hashes: what is accepted, what is refused and how it is said."""

import gzip
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discogs_crawler.dumps import hashfile
from discogs_crawler.dumps.hashfile import Difference
from discogs_crawler.errors import BadData, TryLater, UsageError
from discogs_crawler.records import MAX_ID
from discogs_crawler.seeding import dump_lookup

HASH = "0123456789abcdef0123456789abcdef01234567"

CONTENTS = st.dictionaries(
    st.integers(1, 60) | st.integers(1, MAX_ID), st.binary(min_size=20, max_size=20), min_size=1
)

BAD = {
    "no hash": ("1\t{h}\n2\n", 2, "it has no tab, so the hash is missing: '2'"),
    "short hash": ("1\t{h}\n2\tabc\n", 2, "the hash has 3 characters, not 40"),
    "long hash": ("1\t{h}0\n", 1, "the hash has 41 characters, not 40"),
    "upper case": ("1\t{H}\n", 1, "the hash is not 40 lowercase hex digits"),
    "not hex": ("1\t{h}\n2\t{g}\n", 2, "the hash is not 40 lowercase hex digits"),
    "third column": ("1\t{h}\t2\n", 1, "the hash has 42 characters, not 40"),
    "space, no tab": ("1 {h}\n", 1, "it has no tab"),
    "negative": ("-1\t{h}\n", 1, "it does not begin with an id between 1 and 999999999"),
    "zero": ("0\t{h}\n", 1, "it does not begin with an id"),
    "leading zero": ("1\t{h}\n02\t{h}\n", 2, "it does not begin with an id"),
    "too high": ("1000000000\t{h}\n", 1, "it does not begin with an id"),
    "underscore": ("1_0\t{h}\n", 1, "it does not begin with an id"),
    "plus": ("+1\t{h}\n", 1, "it does not begin with an id"),
    "letters": ("abc\t{h}\n", 1, "it does not begin with an id"),
    "no id": ("\t{h}\n", 1, "it does not begin with an id"),
    "twice": ("1\t{h}\n2\t{h}\n2\t{h}\n", 3, "id 2 is there twice"),
    "twice, unsorted": ("2\t{h}\n1\t{h}\n2\t{h}\n", 3, "id 2 is there twice"),
    "Windows": ("1\t{h}\r\n", 1, "it ends with CR LF"),
    "empty line": ("1\t{h}\n\n2\t{h}\n", 2, "it is empty"),
    "cut off": ("1\t{h}\n2\t{h}", 2, "it is cut off"),
    "cut off in a hash": ("1\t{h}\n2\t0123", 2, "the hash has 4 characters"),
    "XML": ("<releases>\n", 1, "it is XML; discogs_xml_split.py makes a hash file"),
    "NUL": ("1\t{h}\n\0\0\0\n", 2, "it has no tab"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, name: str) -> None:
    text, line, message = BAD[name]
    path = tmp_path / "hashes.txt"
    path.write_bytes(text.format(h=HASH, H=HASH.upper(), g="g" * 40).encode())
    with pytest.raises(BadData, match=re.escape(f", line {line}: {message}")) as failure:
        dump_lookup.checked(path, tmp_path)
    assert str(failure.value).startswith(f"{path}")
    assert "\n" not in str(failure.value)


def test_the_number_of_a_bad_line_is_right_beyond_the_first_block(tmp_path: Path) -> None:
    path = tmp_path / "hashes.txt"
    lines = [f"{n}\t{HASH}\n" for n in range(1, 50_001)]
    lines[43_210] = f"43211\t{HASH[:39]}\n"
    path.write_text("".join(lines))
    with pytest.raises(BadData, match="line 43211: the hash has 39 characters"):
        hashfile.check(path)


def test_what_was_checked_is_what_is_read_or_the_run_ends(tmp_path: Path) -> None:
    """A split may put the next month in its place while seeding reads it for the second time."""
    path, other = tmp_path / "hashes.txt", tmp_path / "other"
    for name, number in ((path, 1), (other, 2)):
        name.write_text(f"{number}\t{HASH}\n")
    file = hashfile.check(path)
    with pytest.raises(TryLater, match="somebody has written to it"):
        with hashfile.opened(file):
            path.write_bytes(b"")
    other.rename(path)
    with pytest.raises(TryLater), hashfile.opened(file):
        pytest.fail("it is another file")


def test_a_pipe_is_refused_because_it_can_be_read_but_once() -> None:
    """Of the first dump, read from a pipe, not an id was queued, and it counted as accepted."""
    reader, writer = os.pipe()
    os.write(writer, f"1\t{HASH}\n".encode())
    os.close(writer)
    with pytest.raises(UsageError, match="it must be a regular file"):
        hashfile.check(Path(f"/dev/fd/{reader}"))
    assert hashfile.sha256_of(Path(f"/dev/fd/{reader}")) is None
    os.close(reader)


def test_an_empty_file_a_gzip_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "hashes.txt"
    path.touch()
    with pytest.raises(BadData, match="it is empty"):
        hashfile.check(path)
    path.write_bytes(gzip.compress(f"1\t{HASH}\n".encode()))
    with pytest.raises(BadData, match="line 1: it is a gzip file; unpack it first"):
        hashfile.check(path)
    path.write_bytes(b"x" * (3 << 20))
    with pytest.raises(BadData, match="line 1: it has no tab"):
        hashfile.check(path)


@given(contents=CONTENTS, seed=st.randoms(use_true_random=False))
def test_an_unsorted_file_is_sorted(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[int, bytes], seed: object
) -> None:
    folder = tmp_path_factory.mktemp("unsorted")
    lines = [hashfile.line_of(*item) for item in contents.items()]
    seed.shuffle(lines)  # type: ignore[attr-defined]
    path = folder / "hashes.txt"
    path.write_bytes(b"".join(lines))
    file = dump_lookup.checked(path, folder)
    pairs = [pair for block in hashfile.blocks(file) for pair in block.pairs()]
    assert pairs == sorted(contents.items())
    assert (file.first_id, file.last_id) == (min(contents), max(contents))


@given(old=CONTENTS, new=CONTENTS)
def test_differences_are_those_of_two_dictionaries(
    old: dict[int, bytes], new: dict[int, bytes]
) -> None:
    def lines(contents: dict[int, bytes]) -> list[bytes]:
        return [hashfile.line_of(*item) for item in sorted(contents.items())]

    expected = [
        Difference(n, old.get(n), new.get(n))
        for n in sorted(old.keys() | new.keys())
        if old.get(n) != new.get(n)
    ]
    assert list(hashfile.differences(lines(old), lines(new))) == expected


@given(contents=CONTENTS, damage=st.data())
def test_a_damaged_file_is_refused_or_says_what_it_holds(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[int, bytes], damage: st.DataObject
) -> None:
    """Whatever bytes are in it: BadData with a line, or lines of the right form in order."""
    text = bytearray(b"".join(hashfile.line_of(*item) for item in sorted(contents.items())))
    for _ in range(damage.draw(st.integers(1, 3))):
        at = damage.draw(st.integers(0, len(text)))
        new = damage.draw(st.binary(max_size=3) | st.sampled_from([b"\n", b"\t", b"\r\n", b"0"]))
        text[at : at + damage.draw(st.integers(0, 3))] = new
    path = tmp_path_factory.mktemp("damaged") / "hashes.txt"
    path.write_bytes(text)
    try:
        file = hashfile.check(path)
    except BadData as error:
        assert re.search(r", line [0-9]+: |: it is empty", str(error))
        return
    pairs = [pair for block in hashfile.blocks(file) for pair in block.pairs()]
    assert b"".join(hashfile.line_of(*pair) for pair in pairs) == bytes(text)
    assert [n for n, _ in pairs] == sorted({n for n, _ in pairs})
