"""What a dump says of a record, in the shape of the API's answers, and nothing that is guessed."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from discogs_crawler.api import exact_json
from discogs_crawler.dumps import canonical, dump_json
from discogs_crawler.records import KINDS
from tests import dump_fields
from tests.discogs import answers, elements, invent

# What the stand-in for the API makes up otherwise than the real one, or a dump does not have.
INVENTED_OTHERWISE = {"uri", "artists_sort", "released_formatted", "description"}


def converted(kind: str, text: str) -> dict[str, Any]:
    return dump_json.convert(kind, canonical.parse(text.encode(), kind))


def release(inside: str = "", title: str = "T") -> dict[str, Any]:
    return converted("releases", f'<release id="5">{inside}<title>{title}</title></release>')


def artists(*names: str, join: str = ",", anv: str = "") -> str:
    people = [
        f"<artist><id>7</id><name>{name}</name><anv>{anv}</anv><join>{join}</join></artist>"
        for name in names
    ]
    return f"<artists>{''.join(people)}</artists>"


def paths_of(value: Any, path: str = "") -> set[str]:
    if isinstance(value, dict):
        found = {f"{path}.{name}" for name in value}
        return found.union(*(paths_of(inner, f"{path}.{name}") for name, inner in value.items()))
    if isinstance(value, list):
        return set().union(*(paths_of(inner, path + "[]") for inner in value))
    return set()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_there_is_what_a_real_answer_of_today_has(samples: Path, kind: str) -> None:
    for path, document in dump_fields.captures(kind):
        if dump_fields.is_of_today(kind, document):
            found = dump_fields.compared(dump_fields.converted(kind, document), document)
            assert [where for where, verdict in found if verdict == "wrong"] == [], path


def test_the_table_of_fields_is_that_of_the_real_answers(samples: Path) -> None:
    assert dump_fields.TARGET.read_text() == dump_fields.table(), (
        "python -m tests.dump_fields --write"
    )


def real_records(folder: Path, kind: str) -> Iterator[bytes]:
    for path in sorted((folder / "xml").glob(f"*{kind}*")):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        # One of them is cut off in the midst of its last record.
        root = etree.fromstring(data, etree.XMLParser(recover=True, huge_tree=True))
        yield from (etree.tostring(record, with_tail=False) for record in root)


@pytest.mark.parametrize("kind", KINDS)
def test_real_records_of_all_years_are_converted(samples: Path, kind: str) -> None:
    full = paths_of(converted(kind, dump_json.FULLEST[kind])) | {".tracklist[].sub_tracks[].type_"}
    for record in real_records(samples, kind):
        document = dump_json.convert(kind, canonical.parse(record, kind))
        assert document["id"] > 0
        assert paths_of(document) <= full
        assert exact_json.dumps(document) == exact_json.dumps_plain(document)
        assert exact_json.dumps(exact_json.loads(exact_json.dumps(document))) == exact_json.dumps(
            document
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("era", elements.ERAS)
def test_all_eras_say_the_same(kind: str, era: str) -> None:
    for number in range(1, 40):
        facts = invent.facts(kind, number)
        videos = invent.videos(kind, number, 1) if kind in ("releases", "masters") else []
        element = elements.record(kind, facts, videos)
        today = elements.serialise(element, elements.ERAS[elements.TODAY])
        then = elements.serialise(element, elements.ERAS[era])
        assert converted(kind, then) == converted(kind, today)


@pytest.mark.parametrize("kind", KINDS)
def test_an_imported_record_agrees_with_the_answer_of_the_api(kind: str) -> None:
    for number in range(1, 60):
        facts = invent.facts(kind, number)
        element = elements.record(kind, facts, [])
        text = elements.serialise(element, elements.ERAS[elements.TODAY])
        found = dump_fields.compared(
            converted(kind, text), answers.answer(kind, facts, moment=1) | {"videos": []}
        )
        wrong = {path for path, verdict in found if verdict != "right"}
        unlinked = {path for path in wrong if path.endswith("resource_url")}
        assert wrong - unlinked - INVENTED_OTHERWISE == set()


def test_the_fullest_record_has_all_there_is() -> None:
    for kind in KINDS:
        whole = converted(kind, dump_json.FULLEST[kind])
        for number in range(1, 40):
            facts = invent.facts(kind, number)
            element = elements.record(kind, facts, [])
            text = elements.serialise(element, elements.ERAS[elements.TODAY])
            assert paths_of(converted(kind, text)) <= paths_of(whole)


@pytest.mark.parametrize(
    ("names", "join", "expected"),
    [
        (("The Persuader",), "", "Persuader, The"),
        (("The Fall (2)",), ",", "Fall, The (2)"),
        (("Theo",), "", "Theo"),
        (("A", "The B", "C"), ",", "A, B, The, C"),
        (("A", "B"), "Feat.", "A Feat. B"),
        (("A", "B"), "", None),
    ],
)
def test_artists_are_sorted_as_the_api_sorts_them(
    names: tuple[str, ...], join: str, expected: str | None
) -> None:
    document = release(artists(*names, join=join))
    assert document.get("artists_sort") == expected
    assert document["artists"][-1]["join"] == ""


@pytest.mark.parametrize(
    ("released", "formatted", "year"),
    [
        ("1999-03-06", "06 Mar 1999", 1999),
        ("1999-03-00", "Mar 1999", 1999),
        ("1999-00-00", "1999", 1999),
        ("1999", "1999", 1999),
        ("1999-13-01", None, 1999),
        ("1999-00-07", None, 1999),
        ("?", None, 0),
        ("", None, 0),
    ],
)
def test_the_date_is_written_out(released: str, formatted: str | None, year: int) -> None:
    document = release(f"<released>{released}</released>")
    assert (document.get("released_formatted"), document["year"]) == (formatted, year)
    assert ("released" in document) == bool(released)


@pytest.mark.parametrize(
    ("name", "anv", "title", "slug"),
    [
        ("A &amp; B", "", "T: (C)", "A-B-T-C"),
        ("EH!DE", "", "„So“ – it's", "EH!DE-So-its"),
        ("ポルノ", "", "The Day", "ポルノ-The-Day"),
        ("Wool (4)", "", "T", None),
        ("Wool (4)", "Wool", "T", "Wool-T"),
        ("A", "", "-", None),
        ("A", "", "x" * 98, f"A-{'x' * 98}"),
        ("A", "", "x" * 200, f"A-{'x' * 98}"),
    ],
)
def test_the_address_is_there_where_it_is_certain(
    name: str, anv: str, title: str, slug: str | None
) -> None:
    document = release(artists(name, anv=anv), title)
    expected = slug and f"https://www.discogs.com/release/5-{slug}"
    assert document.get("uri") == expected


@pytest.mark.parametrize(
    ("formats", "quantity"),
    [
        ('<format name="CD" qty="2"/><format name="Vinyl" qty="1"/>', 3),
        ('<format name="CD" qty="2"/><format name="All Media" qty="1"/>', 2),
        ('<format name="Box Set" qty="1"/><format name="CD" qty="2"/>', None),
        ('<format name="File" qty="4"/>', None),
        (f'<format name="CD" qty="{"9" * 60}"/>', None),
        ('<format name="CD" qty=""/>', None),
    ],
)
def test_media_are_counted_where_that_is_certain(formats: str, quantity: int | None) -> None:
    assert release(f"<formats>{formats}</formats>").get("format_quantity") == quantity


def test_tracks_are_told_apart_by_what_they_have() -> None:
    track = "<track><position>{}</position><title>t</title>{}</track>".format
    tracks = [
        track("1", ""),
        track("", ""),
        track("", f"<sub_tracks>{track('1a', '')}</sub_tracks>"),
        track("", artists("A")),
    ]
    found = release(f"<tracklist>{''.join(tracks)}</tracklist>")["tracklist"]
    assert [item.get("type_") for item in found] == ["track", "heading", "index", None]


def test_what_is_not_there_is_empty_or_absent_as_in_the_api() -> None:
    assert release() == {
        "id": 5,
        "status": "Accepted",
        "title": "T",
        "year": 0,
        "resource_url": "https://api.discogs.com/releases/5",
        "labels": [],
        "series": [],
        "companies": [],
        "identifiers": [],
    }
    credit = release("<artists><artist><name>X</name></artist></artists>")["artists"][0]
    assert (credit["id"], credit["resource_url"], credit["anv"]) == (0, "", "")


def test_members_of_2019_are_not_their_numbers() -> None:
    members = '<members><id>26</id><name id="26">A</name></members>'
    text = f"<artist><id>2</id><name>n</name>{members}</artist>"
    assert converted("artists", text)["members"] == [
        {"id": 26, "name": "A", "resource_url": "https://api.discogs.com/artists/26"}
    ]


def test_skipped_fields_are_not_there() -> None:
    element = etree.fromstring(dump_json.FULLEST["releases"])
    document = dump_json.convert("releases", element, {"videos", "notes"})
    assert not {"videos", "notes"} & document.keys()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_the_fast_way_writes_the_same_bytes(value: Any) -> None:
    assert exact_json.dumps_plain(value) == exact_json.dumps(value)
