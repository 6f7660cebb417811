"""The records that are wanted of a dump are cut out of it, however it is written."""

import hashlib
import io
from pathlib import Path

import pytest

from discogs_crawler.dumps.block_reader import DumpFile, Window
from discogs_crawler.dumps.hash_cache import HashCache, HashCacheWriter, pack_key
from discogs_crawler.dumps.prolog import read_prolog
from discogs_crawler.importing import cut as cutting
from discogs_crawler.importing.cut import Record, cut, cut_known
from discogs_crawler.records import KINDS
from tests.discogs import dump as dumps
from tests.discogs import elements
from tests.discogs.world import invented

# What is not a record, however much it looks like one.
HIDDEN = '\n<release id="2"><title>hidden</title></release>\n<release id="x">'
ODD = {
    "a comment": f'<release id="1"><title>1</title><!-- {HIDDEN}--></release>\n',
    "a CDATA section": f'<release id="1"><title>1</title><notes><![CDATA[{HIDDEN}]]></notes>'
    "</release>\n",
    "an instruction": f'<release id="1"><title>1</title><?x {HIDDEN}?></release>\n',
    "between records": f"<!-- {HIDDEN}-->\n",
    "indented": ' <release id="1">\n <title>1</title>\n </release>\n',
    "other attributes": '<release status="Accepted" id="1"><title>1</title></release>\n',
}


def all_of(path: Path, kind: str) -> list[Record]:
    """Every record, by the exact way."""
    with DumpFile(path) as file, Window(file) as window:
        read_prolog(window, kind)
        parts = list(cut(window, kind, bytearray(b"\2" * 1_000)))
    return [record for part in parts for record in part]


def cache_of(records: list[Record]) -> HashCache:
    """The hash cache that a split leaves."""
    file = io.BytesIO()
    keys = [pack_key(each.id, hashlib.sha1(each.xml).digest()) for each in records]
    HashCacheWriter(file).write(sorted(keys), [b"c" * 20] * len(keys), set())
    file.seek(0)
    return HashCache(file)


def by_cache(
    path: Path, kind: str, cache: HashCache, marks: bytearray, block_size: int = 1 << 19
) -> list[Record]:
    with DumpFile(path) as file, Window(file, block_size) as window:
        read_prolog(window, kind)
        return [record for part in cut_known(window, kind, marks, cache) for record in part]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("era", elements.ERAS)
def test_by_the_cache_of_the_split_come_the_same_records(
    kind: str, era: str, tmp_path: Path
) -> None:
    path = tmp_path / "dump.xml.gz"
    dumps.write(path, invented(60, [kind]), kind, era)
    records = all_of(path, kind)
    assert len(records) == 60
    marks = bytearray(b"\2" * 1_000)
    for record in records[::3]:
        marks[record.id] = 0
    wanted = [record for number, record in enumerate(records) if number % 3]
    for block_size in (3_001, 1 << 19):
        left = bytearray(marks)
        assert by_cache(path, kind, cache_of(records), left, block_size) == wanted
        assert {i for i, mark in enumerate(left) if mark}.isdisjoint(each.id for each in wanted)


@pytest.mark.parametrize("odd", ODD)
def test_what_hides_in_a_dump_is_none_and_hides_none(odd: str, tmp_path: Path) -> None:
    """What the cache does not find is left for the exact way, which finds it."""
    path = tmp_path / "dump.xml"
    record = '<release id="%d"><title>%d</title></release>\n'
    rest = "".join(record % (i, i) for i in (2, 3, 4))
    path.write_text(f"<releases>\n{record % (9, 9)}{ODD[odd]}{rest}</releases>\n")
    records = all_of(path, "releases")
    assert {2, 3, 4, 9} <= {each.id for each in records}
    for wanted in ({1, 2, 3, 4, 9}, {2}, {4}):
        marks = bytearray(10)
        for i in wanted:
            marks[i] = 2
        found = by_cache(path, "releases", cache_of(records), marks)
        with DumpFile(path) as file, Window(file) as window:
            read_prolog(window, "releases")
            found += [each for part in cut(window, "releases", marks) for each in part]
        assert sorted(found) == sorted(each for each in records if each.id in wanted)


def test_a_usual_month_is_not_searched_for_what_may_hide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes as long as all else."""
    path = tmp_path / "dump.xml"
    dumps.write(path, invented(60), "releases")
    records = all_of(path, "releases")
    monkeypatch.setattr(cutting, "_HIDING", None)
    monkeypatch.setattr(cutting.ExactScanner, "agrees", None)
    marks = bytearray(b"\2" * 1_000)
    assert by_cache(path, "releases", cache_of(records), marks) == records
