"""What the dump site lists is understood, and nothing else is made of it."""

import hashlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discogs_crawler.dumps.site_index import (
    CHECKSUM,
    Listed,
    dates_of,
    parse_checksums,
    parse_index,
)
from discogs_crawler.errors import BadData
from discogs_crawler.records import KINDS
from tests.discogs.site import Site

DIGEST = hashlib.sha256(b"").hexdigest()
FILE = "discogs_20261001_releases.xml.gz"


def test_an_index_names_files_with_size_and_time() -> None:
    with Site() as site:
        site.publish(20261001, {"releases": b"x" * 12_300}, modified=1_790_882_219)
        listed = parse_index(site.index("data/2026/"))
    assert listed[1] == Listed(
        FILE, f"data/2026/{FILE}", 20261001, "releases", 1_790_882_219, 12_300
    )
    assert listed[0].kind == CHECKSUM


def test_the_real_index_is_understood(samples) -> None:
    page = (samples / "listings" / "data.discogs.com_2026.html").read_text()
    listed = parse_index(page)
    assert [file.kind for file in listed] == [CHECKSUM, "artists", "labels", "masters", "releases"]
    assert listed[4].size == 10_400_000_000
    assert all(dates_of(listed, kind) == [20260701] for kind in KINDS)
    assert parse_index((samples / "listings" / "data.discogs.com_index.html").read_text()) == []


def test_the_real_checksum_file_is_understood(samples) -> None:
    text = (samples / "listings" / "discogs_20260801_CHECKSUM.txt").read_text()
    assert set(parse_checksums(text)) == {f"discogs_20260801_{kind}.xml.gz" for kind in KINDS}


@pytest.mark.parametrize("space", [" ", "  ", " *", "\t"])
def test_checksums_may_be_written_with_one_space_or_two(space: str) -> None:
    text = f"{DIGEST}{space}{FILE}\n"
    assert parse_checksums(text) == {FILE: bytes.fromhex(DIGEST)}


def test_lines_of_a_checksum_file_may_be_in_any_order_and_damaged() -> None:
    text = f"\r\nnonsense\n{DIGEST} b\r\n{DIGEST[:-1]} c\n{DIGEST.upper()} a"
    assert parse_checksums(text) == dict.fromkeys("ab", bytes.fromhex(DIGEST))


def test_two_checksums_for_one_file_are_refused() -> None:
    with pytest.raises(BadData, match="two different checksums"):
        parse_checksums(f"{DIGEST} a\n{'0' * 64} a\n")


@given(st.text(max_size=2_000))
def test_nonsense_is_an_empty_list(text: str) -> None:
    assert parse_index(text) == []
    assert parse_checksums(text) == {}


@given(
    st.text(
        alphabet='<a href="?download=data%2F2026discogs_20261001_CHECKSUM.txt> \n-:', max_size=300
    )
)
def test_what_looks_like_an_index_never_breaks_anything(text: str) -> None:
    for line in ("", text):
        for file in parse_index(f"<pre>{line}\n2026-13-41 99:99:99  1e9 GB {text}</pre>"):
            assert file.kind in (*KINDS, CHECKSUM)


def test_an_index_of_one_endless_line_does_not_take_minutes() -> None:
    started = time.monotonic()
    parse_index(f'<a href="?download={FILE}">' * 15_000)
    assert time.monotonic() - started < 10
