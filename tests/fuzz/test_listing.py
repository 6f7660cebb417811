"""Whatever the dump site says: damage to a line costs that line, and nothing is made up."""

import re
import string

from hypothesis import given

from discogs_crawler.dumps import site_index
from discogs_crawler.errors import BadData
from discogs_crawler.records import KINDS
from tests.fuzz.damage import damaged, is_one_line


def index_line(name: str) -> str:
    place = f"data%2F2026%2F{name}"
    return f' 2026-11-02 04:05:06    1.3 GB   <a href="?download={place}">{name}</a><br>'


INDEX = {
    name: index_line(name)
    for month in (10, 11)
    for name in (
        *(f"discogs_2026{month}01_{kind}.xml.gz" for kind in KINDS),
        f"discogs_2026{month}01_CHECKSUM.txt",
    )
}
INDEX_SEEDS = (
    "\n".join(["<html><body><pre>", *INDEX.values(), "</pre></body></html>"]).encode(),
    "".join(list(INDEX.values())[:5]).encode(),
    b"<html><h1>503 Service Unavailable</h1></html>",
)
INDEX_TOKENS = (
    *(b'href="', b"?download=", b"&download=", b"/../", b"discogs_"),
    *(b"%2F", b"%00", b"%ff", b"%0a"),
    *(b"20261131", b"00000000", b"99999999", b"CHECKSUM", b"artists", b"</a>", b"<!--", b"-->"),
    *(b"0000-00-00 00:00:00", b"9999999.9 TB", b"1e9 GB", b"2026-02-30 25:61:61", b'href="' * 500),
)

DIGESTS = ("0123456789abcdef" * 4, "f" * 64, "A" * 64)
CHECKSUMS = {
    name: f"{DIGESTS[at % 3]} {' *'[at % 2]}{name}" for at, name in enumerate(list(INDEX)[:4])
}
CHECKSUM_SEEDS = (
    "\n".join(CHECKSUMS.values()).encode() + b"\n",
    "\r\n".join(CHECKSUMS.values()).encode(),
    b"<html>not found</html>",
)
CHECKSUM_TOKENS = (
    *(line.encode() for line in CHECKSUMS.values()),
    *(f"\n{DIGESTS[1]}  {name}\n".encode() for name in CHECKSUMS),
    *(b"*", b"  ", b"a", b"g", b"# ", b"\xa0", DIGESTS[1].encode(), b" discogs_20261001_x.xml.gz"),
)


@given(damaged(INDEX_SEEDS, INDEX_TOKENS))
def test_an_index_names_what_it_names_and_no_more(text: bytes) -> None:
    page = text.decode("utf-8", "replace")
    listed = site_index.parse_index(page)
    names = [file.name for file in listed]
    assert len(names) == len(set(names))
    for file in listed:
        kind = file.name.removeprefix(f"discogs_{file.date}_").partition(".")[0]
        assert kind == file.kind
        assert kind in (*KINDS, site_index.CHECKSUM)
        assert 19_000_000 <= file.date <= 20_999_999
        assert file.place.rpartition("/")[2] == file.name
        assert 0 <= file.size < 10**20
    lines = page.splitlines()
    assert {name for name, line in INDEX.items() if line in lines} <= set(names)
    for kind in KINDS:
        dates = site_index.dates_of(listed, kind)
        assert dates == sorted(set(dates), reverse=True)
        for date in dates:
            assert {f"discogs_{date}_{kind}.xml.gz", f"discogs_{date}_CHECKSUM.txt"} <= set(names)


@given(damaged(CHECKSUM_SEEDS, CHECKSUM_TOKENS))
def test_a_checksum_is_one_that_a_line_gives_to_that_file(text: bytes) -> None:
    page = text.decode("utf-8", "replace")
    right = slowly_read(page)
    try:
        found = site_index.parse_checksums(page)
    except BadData as error:
        assert is_one_line(str(error))
        assert len({name for _, name in right}) < len(right)
        return
    assert {(digest.hex(), name) for name, digest in found.items()} == right


def slowly_read(page: str) -> set[tuple[str, str]]:
    """Digests and names of the lines that are a digest, blanks, perhaps a star, and a name."""
    right = set()
    for line in page.splitlines():
        digest, *rest = re.split(r"[ \t\n\r\f\v]+", line.strip())
        if len(digest) == 64 and not set(digest) - set(string.hexdigits) and len(rest) == 1:
            star = rest[0].startswith("*") and len(rest[0]) > 1
            right.add((digest.lower(), rest[0][star:]))
    return right
