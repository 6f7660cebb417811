"""What a record is called."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discogs_crawler.errors import BadData
from discogs_crawler.records import (
    KINDS,
    MAX_ID,
    parse_id,
    parse_record_path,
    record_path,
    segment_of,
)


@pytest.mark.parametrize(
    ("record_id", "path"),
    [
        (1, "releases/00/00/00/1.json"),
        (100, "releases/00/00/01/100.json"),
        (13_999_999, "releases/13/99/99/13999999.json"),
        (123_456_789, "releases/123/45/67/123456789.json"),
    ],
)
def test_a_path_is_millions_ten_thousands_and_hundreds(record_id: int, path: str) -> None:
    assert record_path("releases", record_id) == path


@given(st.sampled_from(KINDS), st.integers(1, MAX_ID))
def test_a_path_leads_back_to_its_record(kind: str, record_id: int) -> None:
    path = record_path(kind, record_id)
    assert parse_record_path(path) == (kind, record_id)
    assert int(path.split("/")[1]) == segment_of(record_id)


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "releases/00/00/00/100.json",
        "releases/0/00/00/1.json",
        "releases/00/00/00/01.json",
        "releases/00/00/00/1.json\n",
        "users/00/00/00/1.json",
        "releases/00/00/00/١.json",
    ],
)
def test_a_path_where_no_record_belongs_is_none(path: str) -> None:
    assert parse_record_path(path) is None


@pytest.mark.parametrize(
    "text", ["", "0", "-1", " 5", "5 ", "05", "1e3", "1_000", "٣", "1000000000"]
)
def test_what_is_not_an_id_is_refused(text: str) -> None:
    with pytest.raises(BadData, match="not an id"):
        parse_id(text)


def test_the_highest_id_is_accepted() -> None:
    assert parse_id(str(MAX_ID)) == MAX_ID
