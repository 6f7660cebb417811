"""The schema of what is stored, and what differs from it in what the API sends."""

import copy
import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from discogs_crawler.api import cleaning, exact_json
from discogs_crawler.api.cleaning import Rules
from discogs_crawler.api.schema_paths import SCHEMAS, differences, shape_of
from discogs_crawler.config import Settings
from discogs_crawler.importing import lanes
from discogs_crawler.records import KINDS
from tests.discogs import answers, dump, elements, invent
from tests.discogs.world import invented
from tests.dumps.test_dump_json import real_records

ID = 7


@functools.cache
def schema_of(kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((SCHEMAS / f"{kind}.schema.json").read_bytes())
    Draft202012Validator.check_schema(schema)
    return schema


@functools.cache
def validator_of(kind: str) -> Draft202012Validator:
    return Draft202012Validator(schema_of(kind))


def faults(kind: str, record: Any) -> list[str]:
    errors = validator_of(kind).iter_errors(record)
    return [f"{list(error.path)}: {error.message[:100]}" for error in errors]


def cleaned(document: bytes, rules: Rules) -> Any:
    return json.loads(cleaning.clean(exact_json.loads(document), rules))


@pytest.mark.parametrize("preset", ["default", "public"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_real_answer_is_valid_when_it_is_cleaned(
    kind: str, preset: str, samples: Path, settings: Settings
) -> None:
    rules = cleaning.rules_for(dataclasses.replace(settings, clean_preset=preset), kind)
    captures = sorted((samples / kind).glob("*.json"))
    assert captures
    for capture in captures:
        assert faults(kind, cleaned(capture.read_bytes(), rules)) == [], capture.name


@pytest.mark.parametrize("kind", KINDS)
def test_invented_records_are_valid_and_differ_in_nothing(kind: str, settings: Settings) -> None:
    rules = cleaning.rules_for(settings, kind)
    for number in range(1, 300):
        document = answers.answer(kind, invent.facts(kind, number), moment=number)
        assert differences(document, shape_of(kind)) == set()
        assert faults(kind, document) == [], "so is what nothing was removed from"
        assert faults(kind, cleaned(json.dumps(document).encode(), rules)) == []


def imported(kind: str, records: Iterable[bytes], settings: Settings) -> Iterator[Any]:
    """Records of a dump as an import stores them if it leaves nothing out."""
    rules = cleaning.rules_for(dataclasses.replace(settings, keep_fields=("videos",)), kind)
    converter = lanes.Converter(kind, rules)
    return (json.loads(converter.convert(record, "20261101")) for record in records)


@pytest.mark.parametrize("kind", KINDS)
def test_every_real_record_is_valid_when_it_is_imported(
    kind: str, samples: Path, settings: Settings
) -> None:
    records = list(real_records(samples, kind))
    assert len(records) > 1_000
    for document in imported(kind, records, settings):
        assert faults(kind, document) == [], document["id"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_invented_record_is_valid_when_it_is_imported(kind: str, settings: Settings) -> None:
    world = invented(40, [kind])
    for era in elements.ERAS:
        records = [text.encode() for text in dump.records(world, kind, era)]
        assert len(records) == 40
        for document in imported(kind, records, settings):
            assert faults(kind, document) == [], document["id"]


IMPORTED: dict[str, Any] = {
    "releases": {
        "status": "Accepted",
        "year": 0,
        "labels": [],
        "series": [],
        "companies": [],
        "identifiers": [],
        "tracklist": [{"duration": "", "position": "", "title": "A"}],
    },
    "artists": {"releases_url": "r", "profile": "", "members": [{"id": 1, "name": "n"}]},
    "labels": {"releases_url": "r", "profile": ""},
    "masters": {"versions_url": "v", "year": 0},
}
IMPORTED["artists"]["members"][0]["resource_url"] = "u"


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_from_a_dump_may_lack_what_the_dump_does_not_say(kind: str) -> None:
    record = {"id": ID, "resource_url": "u", **IMPORTED[kind]}
    assert faults(kind, {"_dump": "20261101", **record}) == []
    name = "name" if kind in ("artists", "labels") else "title"
    assert f"[]: '{name}' is a required property" in faults(kind, record)
    assert faults(kind, {"_dump": "2026", **record})


def described(part: dict[str, Any], schema: dict[str, Any]) -> Any:
    """Every field that the schema describes: its path, and what is said of it."""
    seen: set[str] = set()

    def walk(part: dict[str, Any], path: str) -> Any:
        if "$ref" in part and part["$ref"] in seen and path.count(".") > 3:
            return
        if "$ref" in part:
            seen.add(part["$ref"])
            part = {**schema["$defs"][part["$ref"].rpartition("/")[2]], **part}
        if "items" in part:
            yield from walk(part["items"], f"{path}[]")
        for name, inner in part.get("properties", {}).items():
            where = f"{path}.{name}" if path else name
            yield where, inner
            yield from walk(inner, where)

    return walk(part, "")


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_says_where_it_is_from_and_whether_it_is_volatile(
    kind: str, settings: Settings
) -> None:
    rules = cleaning.rules_for(settings, kind)
    found = [pair for pair in described(schema_of(kind), schema_of(kind)) if pair[0] != "_dump"]
    assert len(found) > 15
    for path, field in found:
        text = field["description"]
        assert re.search(r"[.] From the API (only|and the dump)[.]", text), path
        removed = cleaning._removes(path, rules.remove, rules.keep)
        # Of what is removed whole, parts that others have too need not say so.
        if not cleaning._removes(path.rpartition(".")[0] or "id", rules.remove, rules.keep):
            assert ("Volatile: removed unless KEEP_FIELDS has it." in text) == removed, path
        assert "type" in field or "$ref" in field, path


def test_new_and_missing_fields_are_named_by_their_paths() -> None:
    document = answers.answer("releases", invent.facts("releases", ID), moment=1)
    document["new"] = {"deep": [1]}
    document["tracklist"][0]["extraartists"] = [{"id": 1}]
    del document["labels"][0]["catno"], document["title"]
    document["artists"] = "none"
    before = copy.deepcopy(document)
    found = differences(document, shape_of("releases"))
    assert document == before
    role = "tracklist[].extraartists[]"
    assert found == {
        ("unknown", "new"),
        ("missing", "title"),
        ("missing", "labels[].catno"),
        *(("missing", f"{role}.{name}") for name in ("anv", "join", "name", "role", "tracks")),
        ("missing", f"{role}.resource_url"),
        ("unknown", "artists: string"),
    }


def test_values_of_other_types_are_named_with_their_type() -> None:
    text = json.dumps(answers.answer("releases", invent.facts("releases", ID), moment=1))
    document = exact_json.loads(text.encode())
    assert differences(document, shape_of("releases")) == set()
    document |= {"year": "1999", "title": None, "country": None, "genres": ["Rock", ["Pop"]]}
    document |= {"community": [], "labels": [*document["labels"], "none"], "is_offensive": 0.5}
    document["artists"][0]["id"] = {"number": 5}
    document["tracklist"][0]["sub_tracks"] = [{**document["tracklist"][0], "title": True}]
    assert differences(document, shape_of("releases")) == {
        ("unknown", "year: string"),
        ("unknown", "title: null"),
        ("unknown", "genres[]: array"),
        ("unknown", "community: array"),
        ("unknown", "labels[]: string"),
        ("unknown", "is_offensive: number"),
        ("unknown", "artists[].id: object"),
        ("unknown", "tracklist[].sub_tracks[].title: boolean"),
    }


def test_what_is_remembered_of_hostile_answers_is_bounded() -> None:
    shape = shape_of("labels")
    for number in range(3_000):
        differences({f"field {number}": 1}, shape)
    assert len(shape.seen) <= 2_000
    assert ("unknown", "field 2999") in differences({"field 2999": 1}, shape)
