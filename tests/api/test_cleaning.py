"""Which fields a stored record has, and that its bytes depend on nothing else."""

import fnmatch
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discogs_crawler import config
from discogs_crawler.api import cleaning, exact_json
from discogs_crawler.errors import BadData, ConfigurationError

ENVIRONMENT = {"ENV_FILE": "/dev/null", "STATE_DIR": "/nonexistent"}


def rules(kind: str = "releases", **extra: str) -> cleaning.Rules:
    return cleaning.rules_for(config.load(environ=ENVIRONMENT | extra), kind)


def cleaned(document: Any, kind: str = "releases", **extra: str) -> Any:
    parsed = exact_json.loads(json.dumps(document).encode())
    return json.loads(cleaning.clean(parsed, rules(kind, **extra)))


RELEASE = {
    "id": 249504,
    "title": "Never Gonna Give You Up",
    "num_for_sale": 58,
    "lowest_price": 0.63,
    "estimated_weight": 60,
    "blocked_from_sale": False,
    "thumb": "https://i.example/1.jpg",
    "videos": [{"uri": "https://www.youtube.com/watch?v=te2jJncBVG4", "description": None}],
    "community": {
        "have": 252,
        "want": 42,
        "rating": {"count": 45, "average": 3.42},
        "submitter": {"username": "memory", "resource_url": "https://api.example/users/memory"},
        "contributors": [{"username": "memory"}],
        "data_quality": "Correct",
        "status": "Accepted",
    },
    "artists": [{"id": 72872, "name": "Rick Astley", "thumbnail_url": "https://i.example/2"}],
    "tracklist": [
        {
            "title": "Never Gonna Give You Up",
            "sub_tracks": [{"extraartists": [{"id": 20942, "thumbnail_url": "x"}]}],
        }
    ],
    "images": [{"type": "primary", "uri": "u", "uri150": "v", "resource_url": "u", "width": 600}],
    "a_field_of_tomorrow": {"have": 1, "videos": [1]},
}


def test_what_is_volatile_goes_and_everything_else_stays() -> None:
    assert cleaned(RELEASE) == {
        "id": 249504,
        "title": "Never Gonna Give You Up",
        "community": {
            "submitter": {"username": "memory", "resource_url": "https://api.example/users/memory"},
            "contributors": [{"username": "memory"}],
            "data_quality": "Correct",
            "status": "Accepted",
        },
        "artists": [{"id": 72872, "name": "Rick Astley"}],
        "tracklist": [
            {
                "title": "Never Gonna Give You Up",
                "sub_tracks": [{"extraartists": [{"id": 20942}]}],
            }
        ],
        "images": [{"type": "primary", "width": 600}],
        "a_field_of_tomorrow": {"have": 1, "videos": [1]},
    }


def test_the_public_preset_also_removes_what_the_terms_restrict() -> None:
    record = cleaned(RELEASE, CLEAN_PRESET="public")
    assert record["community"] == {"data_quality": "Correct", "status": "Accepted"}
    assert "images" not in record


def test_fields_can_be_added_to_those_removed_at_any_depth() -> None:
    record = cleaned(RELEASE, REMOVE_FIELDS="tracklist[].sub_tracks, **.data_quality a_field*")
    assert record["tracklist"] == [{"title": "Never Gonna Give You Up"}]
    assert "data_quality" not in record["community"]
    assert "a_field_of_tomorrow" not in record


def test_fields_that_would_go_can_be_kept_whole_or_in_part() -> None:
    record = cleaned(RELEASE, KEEP_FIELDS="videos,community.rating.average,images")
    assert record["videos"] == RELEASE["videos"]
    assert record["community"]["rating"] == {"average": 3.42}
    assert record["images"] == RELEASE["images"]
    assert "num_for_sale" not in record


def test_a_removed_list_keeps_of_its_objects_what_is_to_be_kept() -> None:
    record = cleaned(RELEASE, KEEP_FIELDS="videos[].uri")
    assert record["videos"] == [{"uri": "https://www.youtube.com/watch?v=te2jJncBVG4"}]
    assert "lowest_price" not in cleaned(RELEASE, KEEP_FIELDS="**.uri,lowest_price.amount")


def test_the_most_recent_release_of_a_master_is_volatile() -> None:
    master = {"id": 1, "title": "t", "most_recent_release": 2, "most_recent_release_url": "u"}
    assert cleaned(master, "masters") == {"id": 1, "title": "t"}
    assert cleaned(master, "releases") == master


@pytest.mark.parametrize("path", ["a..b", ".a", "a.", "**", "a.**", "a[", "a[0]", "[]", "a/b"])
@pytest.mark.parametrize("setting", ["REMOVE_FIELDS", "KEEP_FIELDS"])
def test_what_is_not_a_path_is_refused_by_name(setting: str, path: str) -> None:
    with pytest.raises(ConfigurationError, match=setting):
        rules(**{setting: path})


@pytest.mark.parametrize("path", ["id", "i?", "*", "**.id", "**.*d"])
def test_a_record_cannot_lose_its_id(path: str) -> None:
    with pytest.raises(ConfigurationError, match="must leave the id"):
        rules(REMOVE_FIELDS=path)
    if path != "id":
        assert cleaned(RELEASE, REMOVE_FIELDS=path, KEEP_FIELDS="id")["id"] == RELEASE["id"]


def test_an_imported_record_always_says_so() -> None:
    record = {"_dump": "20261101", "id": 1, "notes": "n"}
    assert cleaned(record, REMOVE_FIELDS="*", KEEP_FIELDS="id") == {"_dump": "20261101", "id": 1}
    assert cleaned(record, REMOVE_FIELDS="_dump") == record


@pytest.mark.parametrize(
    ("remove", "keep", "named"),
    [
        ("notes", "notes", ("notes", "notes")),
        ("title,images[].type", "videos,images.type", ("images[].type", "images.type")),
        ("community.status", "community", ("community.status", "community")),
        ("notes", "n*", ("notes", "n*")),
    ],
)
def test_a_field_to_remove_and_to_keep_is_refused(
    remove: str, keep: str, named: tuple[str, str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        rules(REMOVE_FIELDS=remove, KEEP_FIELDS=keep)
    assert str(caught.value) == (
        f"REMOVE_FIELDS has {named[0]} and KEEP_FIELDS has {named[1]}, which keeps it:"
        " take one of them out"
    )


def test_a_part_of_what_is_removed_may_be_kept() -> None:
    assert cleaned(RELEASE, REMOVE_FIELDS="community", KEEP_FIELDS="community.status")[
        "community"
    ] == {"status": "Accepted"}


@pytest.mark.parametrize(
    ("before", "now", "fields"),
    [
        ({"REMOVE_FIELDS": "notes,images"}, {}, ["images", "notes"]),
        ({"REMOVE_FIELDS": "notes"}, {"REMOVE_FIELDS": "n*,images"}, []),
        ({"REMOVE_FIELDS": "**.role"}, {"REMOVE_FIELDS": "artists.role"}, ["**.role"]),
        ({}, {"KEEP_FIELDS": "videos[].uri,title"}, ["videos[].uri"]),
        ({"KEEP_FIELDS": "videos"}, {"REMOVE_FIELDS": "notes"}, []),
        (
            {"CLEAN_PRESET": "public", "KEEP_FIELDS": "images"},
            {},
            ["community.contributors", "community.submitter"],
        ),
        ({"CLEAN_PRESET": "public"}, {"CLEAN_PRESET": "public"}, []),
    ],
)
def test_fields_that_earlier_rules_removed_are_known_from_the_name_of_those_rules(
    before: dict[str, str], now: dict[str, str], fields: list[str]
) -> None:
    found = cleaning.brought_back(rules(**before).name, rules(**now), "releases")
    assert list(found) == fields


def test_a_commit_can_say_which_rules_made_it() -> None:
    version = str(cleaning.CLEANER_VERSION)
    assert rules().name == version
    configured = rules(CLEAN_PRESET="public", REMOVE_FIELDS="notes", KEEP_FIELDS="videos,thumb")
    assert configured.name == f"{version} public -notes +thumb +videos"


@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_in_the_answer_does_not_matter(chance: random.Random) -> None:
    keys = list(RELEASE)
    chance.shuffle(keys)
    answer = json.dumps({key: RELEASE[key] for key in keys}).encode()
    expected = cleaning.clean(exact_json.loads(json.dumps(RELEASE).encode()), rules())
    assert cleaning.clean(exact_json.loads(answer), rules()) == expected


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["id", "videos", "thumbnail_url", "community", "have", "x"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_cleaning_twice_is_cleaning_once(value: Any) -> None:
    parsed = exact_json.loads(json.dumps({"id": 1, "value": value}).encode())
    once = cleaning.clean(parsed, rules())
    assert cleaning.clean(exact_json.loads(once), rules()) == once
    assert b"thumbnail_url" not in once


def test_a_document_nested_beyond_reason_is_refused() -> None:
    deep: Any = {"id": exact_json.Number("1")}
    for _ in range(900):
        deep = {"a": [deep]}
    with pytest.raises(BadData, match="nested too deeply"):
        cleaning.clean(deep, rules())


def test_two_captures_that_differ_in_volatile_fields_only_become_the_same_bytes(
    samples: Path,
) -> None:
    path = samples / "releases" / "1.json"
    earlier = exact_json.loads(path.read_bytes())
    later = json.loads(path.read_bytes())
    later["community"] |= {"have": 1_000, "want": 2_000, "rating": {"count": 200, "average": 5}}
    later |= {"num_for_sale": 90, "lowest_price": None, "thumb": "https://i.example/rotated"}
    later["videos"] = later["videos"][:2]
    for image in later["images"]:
        image["uri"] = image["resource_url"] = "https://i.example/rotated"
    for artist in later["artists"]:
        artist["thumbnail_url"] = "https://i.example/rotated"
    again = exact_json.loads(json.dumps(later, ensure_ascii=False, indent=1).encode())
    assert cleaning.clean(again, rules()) == cleaning.clean(earlier, rules())


@pytest.mark.parametrize("kind", ["releases", "artists", "labels", "masters"])
def test_every_real_capture_becomes_sorted_json_without_volatile_fields(
    samples: Path, kind: str
) -> None:
    for path in sorted((samples / kind).glob("*.json")):
        document = exact_json.loads(path.read_bytes())
        stored = cleaning.clean(document, rules(kind))
        value = json.loads(stored)
        assert stored.decode() == (
            json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
        )
        assert not {"videos", "num_for_sale", "lowest_price", "thumb"} & value.keys()
        volatile = [*cleaning.VOLATILE, *cleaning.VOLATILE_OF_KIND.get(kind, ())]
        for name in set(document) - set(value):
            assert any(fnmatch.fnmatchcase(name, path) for path in volatile), name
