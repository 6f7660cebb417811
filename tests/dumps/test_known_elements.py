"""A dump whose elements or attributes are new is split as before, and they are named."""

import gzip
import sqlite3
from pathlib import Path

import pytest
from lxml import etree

from discogs_crawler.dumps.known_elements import STRIDE, THOROUGH, ElementWatch
from discogs_crawler.records import ELEMENTS, KINDS
from tests.conftest import Run
from tests.discogs import dump as dumps
from tests.discogs import elements
from tests.discogs.world import invented
from tests.dumps.slow_split import slow_split


def watched(kind: str, records: list[bytes], repeat: int = 1) -> dict[tuple[str, str], int]:
    watch = ElementWatch(kind)
    for _ in range(repeat):
        watch.look_at_some(range(1, len(records) + 1), records)
    return {(seen.what, seen.path): seen.records for seen in watch.observations(0)}


@pytest.mark.parametrize("kind", KINDS)
def test_real_dumps_of_all_years_have_nothing_new(kind: str, samples: Path) -> None:
    found = sorted((samples / "xml").glob(f"*{kind}*"))
    assert len(found) >= 3
    for path in found:
        data = path.read_bytes()
        text = gzip.decompress(data) if path.suffix == ".gz" else data
        root = etree.fromstring(text, etree.XMLParser(recover=True, huge_tree=True))
        records = [etree.tostring(record) for record in root.iterchildren(ELEMENTS[kind])]
        # The last one of the raw head is cut off.
        assert watched(kind, records[: THOROUGH + STRIDE][: len(records) - 1]) == {}, path.name


def test_new_and_missing_elements_and_attributes_are_named() -> None:
    record = (
        b'<release id="1" mood="1"><title lang="en">t</title><tracklist><track><sub_tracks><track>'
        b"<isrc><code/></isrc></track></sub_tracks></track></tracklist><artists/><labels/>"
        b"<formats><format name='a' colour='b'/></formats><genres/></release>"
    )
    assert watched("releases", [record, b"<release"]) == {
        ("missing", "data_quality"): 1,
        ("unknown", "@mood"): 1,
        ("unknown", "title/@lang"): 1,
        ("unknown", "tracklist/track/sub_tracks/track/isrc"): 1,
        ("unknown", "formats/format/@colour"): 1,
    }


def test_of_many_records_some_are_looked_at() -> None:
    record = b"<label><id>1</id><name>n</name><data_quality>q</data_quality><new/></label>"
    seen = watched("labels", [record] * 100, repeat=100)
    assert seen == {("unknown", "new"): THOROUGH + (10_000 - THOROUGH) // STRIDE}


@pytest.mark.parametrize("era", elements.ERAS)
def test_invented_dumps_have_nothing_new(era: str) -> None:
    world = invented(200, KINDS)
    for kind in KINDS:
        assert watched(kind, [text.encode() for text in dumps.records(world, kind, era)]) == {}


def test_such_a_dump_is_split_as_before_and_the_summary_and_the_ledger_name_it(
    run: Run, tmp_path: Path
) -> None:
    text = b"".join(dumps.blocks(invented(50), "releases"))
    changed = text.replace(b"</release>", b"<mood>blue</mood></release>")
    changed = changed.replace(b"<notes>", b'<notes lang="en">')
    assert changed.count(b"<mood>") == 50
    path = tmp_path / "discogs_20261101_releases.xml"
    ours = tmp_path / "result"

    def split(dump: bytes) -> str:
        path.write_bytes(dump)
        done = run("discogs_xml_split.py", "-v", "-d", path, "-r", ours)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "unknown" not in split(text)
    ids = [line.partition(b"\t")[0] for line in ours.read_bytes().splitlines()]
    said = split(changed)
    assert "50 parsed, unknown: mood notes/@lang; " in said
    assert [line.partition(b"\t")[0] for line in ours.read_bytes().splitlines()] == ids
    assert ours.read_bytes() == slow_split(changed)
    with sqlite3.connect(tmp_path / "state" / "crawler.db") as database:
        rows = database.execute("SELECT * FROM drift_dates WHERE path = 'mood'").fetchall()
    assert [row[:7] for row in rows] == [
        ("releases", "dump", "unknown", "mood", "2026-11-01 00:00:00", "2026-11-01 00:00:00", 50)
    ]
