"""Whatever is in a hash file: it is read as a slow reader reads it, or refused by line."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discogs_crawler.dumps import hashfile
from discogs_crawler.errors import BadData
from tests.fuzz.damage import damaged, is_one_line

DIGESTS = ("0123456789abcdef0123456789abcdef01234567", "f" * 40, "0" * 40, "1" * 40)
LINES = [
    f"{record_id}\t{DIGESTS[record_id % 4]}\n".encode()
    for record_id in (1, 2, 30, 400, 999_999_999)
]
SEEDS = (b"".join(LINES), LINES[0], b"".join(LINES[::-1]), b"")
TOKENS = (
    *LINES,
    *(LINES[1][:-1], LINES[1].upper(), b"0" + LINES[2]),
    *(b"1000000000", b"a", b"\t\n", b"\x1f\x8b", b"<r>"),
)


def slowly_read(text: bytes) -> list[tuple[int, bytes]] | None:
    """Ids and hashes, read by the letter of the format; None if it is not one of these files."""
    pairs: list[tuple[int, bytes]] = []
    if not text.endswith(b"\n"):
        return None
    for line in text[:-1].split(b"\n"):
        record_id, _, digest = line.partition(b"\t")
        right_id = 0 < len(record_id) < 10 and not record_id.strip(b"0123456789")
        right_hash = len(digest) == 40 and not digest.strip(b"0123456789abcdef")
        if not right_id or record_id.startswith(b"0") or not right_hash:
            return None
        if pairs and int(record_id) <= pairs[-1][0]:
            return None
        pairs.append((int(record_id), bytes.fromhex(digest.decode())))
    return pairs


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hashes") / "hashes.txt"


@given(text=damaged(SEEDS, TOKENS), block_size=st.sampled_from((64, 100, 1 << 20)))
def test_a_file_of_hashes_is_read_as_a_slow_reader_reads_it_or_refused(
    path: Path, text: bytes, block_size: int
) -> None:
    path.write_bytes(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashfile, "BLOCK_SIZE", block_size)
        expected = slowly_read(text)
        try:
            file = hashfile.check(path)
        except BadData as error:
            assert expected is None
            assert is_one_line(str(error))
            line = re.search(r", line ([0-9]+): ", str(error))
            assert 1 <= int(line[1]) <= text.count(b"\n") + 1 if line else not text
            return
        pairs = [pair for block in hashfile.blocks(file) for pair in block.pairs()]
    assert pairs == expected
    assert (file.records, file.first_id, file.last_id) == (len(pairs), pairs[0][0], pairs[-1][0])
