"""Dumps are whole, the same every time, and say what the API says."""

import subprocess
import sys
from pathlib import Path

import pytest
from lxml import etree

from discogs_crawler.dumps.canonical import content_hash
from tests.conftest import ROOT
from tests.discogs import dump, elements
from tests.discogs.world import KINDS, World, invented


def hashes(world: World, kind: str, era: str = elements.TODAY) -> dict[int, bytes]:
    ids = sorted(world.alive[kind])
    texts = dump.records(world, kind, era)
    return {n: content_hash(t.strip().encode(), kind) for n, t in zip(ids, texts, strict=True)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("era", elements.ERAS)
def test_every_era_is_well_formed_and_says_the_same(kind: str, era: str) -> None:
    world = invented(40, [kind])
    root = etree.fromstring(b"".join(dump.blocks(world, kind, era)))
    assert root.tag == kind
    assert {child.tag for child in root} == {elements.SINGULAR[kind]}
    assert [int(child.get("id") or child.findtext("id")) for child in root] == sorted(
        world.alive[kind]
    )
    assert hashes(world, kind, era) == hashes(world, kind)


def test_eras_differ_in_their_bytes() -> None:
    world = invented(10)
    assert len({b"".join(dump.blocks(world, "releases", era)) for era in elements.ERAS}) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_hash_changes_exactly_when_its_record_does(kind: str) -> None:
    world = invented(60, [kind])
    before = hashes(world, kind)
    changes = world.let_a_month_go_by()[kind]
    after = hashes(world, kind)
    assert sorted(before.keys() - after.keys()) == changes["removed"]
    assert sorted(after.keys() - before.keys()) == changes["added"]
    common = before.keys() & after.keys()
    assert sorted(n for n in common if before[n] != after[n]) == changes["edited"]


def test_dump_and_api_agree_on_a_release() -> None:
    world = invented(30)
    for record_id, text in zip(
        sorted(world.alive["releases"]), dump.records(world, "releases"), strict=True
    ):
        document = world.document("releases", record_id, 1)
        assert document
        element = etree.fromstring(text)
        assert element.findtext("title") == document["title"]
        assert element.findtext("notes", "").split() == document.get("notes", "").split()
        names = [track.findtext("title") for track in element.find("tracklist")]
        assert names == [track["title"] for track in document["tracklist"]]
        credited = [artist.findtext("name") for artist in element.iterfind("extraartists/artist")]
        assert credited == [artist["name"] for artist in document.get("extraartists", [])]


def test_records_are_as_long_as_real_ones() -> None:
    texts = list(dump.records(invented(300), "releases"))
    average = sum(map(len, texts)) / len(texts)
    assert 2_500 < average < 4_500
    assert sum("\n" in text.strip() for text in texts) > 200


def test_from_the_command_line_the_same_arguments_give_the_same_file(tmp_path: Path) -> None:
    contents = set()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        target = tmp_path / folder / "discogs_20261101_labels.xml.gz"
        command = [sys.executable, "-m", "tests.discogs.dump", "--records", "30", str(target)]
        subprocess.run(command, cwd=ROOT, check=True)
        contents.add(target.read_bytes())
    assert len(contents) == 1
