"""The rules of wanting, a case a row: what an answer or a dump makes of what is known of an id."""

import re
import subprocess
import sys
from typing import Any

import pytest

from discogs_crawler.broker.messages import CLASSES, Result
from discogs_crawler.clock import DAY_S
from discogs_crawler.ledger.rows import DumpRow, Row
from discogs_crawler.seeding import want_rules
from discogs_crawler.seeding.want_rules import after_dump, after_result, want

NOW = 50_000
COOLDOWN_S = 10_000

# Taken between 20,000 and 30,000, and the third that was split.
_OF_DUMP: dict[str, Any] = {"id": 3, "not_before": 20_000, "not_after": 30_000}
DUMP = DumpRow._make((dict.fromkeys(DumpRow._fields) | _OF_DUMP).values())

OLD, NEW = b"o" * 20, b"n" * 20

# A record that was stored before the dump was taken, with the hash of the dump before.
STORED = Row(7, hash=OLD, dump=2, crawled=5_000, status=200, alive=5_000, changed=5_000)

# As seen by the dump, when nothing else is wanted.
CHANGED: dict[str, Any] = {"reason": "changed", "due": NOW, "since": 30_001}


def known(**values: Any) -> Row:
    return STORED._replace(**values)


# The ids of the table in want_rules, with nothing wanted.
STATES = {
    "unseen": Row(7),
    "listed": Row(7, hash=OLD, dump=2),
    "stored": STORED,
    "fresh": known(crawled=40_000, alive=40_000),
    "missing": known(crawled=6_000, status=404, misses=1),
    "removed": known(crawled=6_000, status=404, misses=2, removed=6_000),
    "unused": Row(7, crawled=6_000, status=404, misses=1),
}

# What happens to them in its columns, to the row and the class that was requested.
EVENTS: dict[str, Any] = {
    "same": lambda row, _: after_dump(row, OLD, DUMP, NOW, COOLDOWN_S),
    "other": lambda row, _: after_dump(row, NEW, DUMP, NOW, COOLDOWN_S),
    "lacks": lambda row, _: after_dump(row, None, DUMP, NOW, COOLDOWN_S),
    "record": lambda row, asked: after_result(row, Result(7, asked, "stored", 200, NOW), NOW),
    "404": lambda row, asked: after_result(row, Result(7, asked, "gone", 404, NOW), NOW),
    "discovered": lambda row, _: after_result(row, Result(7, "discovered", "gone", 404, NOW), NOW),
    "confirm": lambda row, _: after_result(row, Result(7, "confirm", "gone", 404, NOW), NOW),
    "none": lambda row, asked: after_result(row, Result(7, asked, "dead", 0, NOW), NOW),
}


def tables() -> list[list[list[str]]]:
    """The tables in the docstring: lines of cells, the heads first."""
    blocks = (want_rules.__doc__ or "").split("\n\n")
    return [
        [re.split(r"  +", line.strip()) for line in block.splitlines()]
        for block in blocks
        if block.startswith("    ")
    ]


def cells() -> list[Any]:
    (_, *events), *lines = tables()[0]
    assert (events, [line[0] for line in lines]) == ([*EVENTS], [*STATES])
    return [
        pytest.param(state, event, reason, id=f"{state}-{event}")
        for state, *reasons in lines
        for event, reason in zip(events, reasons, strict=True)
    ]


@pytest.mark.parametrize(("state", "event", "reason"), cells())
@pytest.mark.parametrize("asked", sorted({*CLASSES} - {"discovered", "confirm"}))
def test_every_cell_of_the_table(state: str, event: str, reason: str, asked: str) -> None:
    after = EVENTS[event](STATES[state], asked)
    assert after.reason == {"-": None, "same": asked}.get(reason, reason)
    assert (after.due is None, after.since is None) == (reason == "-",) * 2
    assert (after.removed == NOW) == (
        event == "confirm" and state in ("stored", "fresh", "missing")
    ), "only a confirmation removes"


@pytest.mark.parametrize("wanted", CLASSES)
@pytest.mark.parametrize("asked", CLASSES)
def test_every_cell_of_the_table_of_older_wants(wanted: str, asked: str) -> None:
    (_, *heads), as_requested, any_other = tables()[1]
    assert heads == ["arose before the request", "after it"]
    impatient = as_requested[0].removesuffix(": as requested").split(", ")
    line = as_requested if wanted == asked and wanted in impatient else any_other
    meanings = {
        "is satisfied": (None, None, None),
        "becomes changed": (1, "changed", 9_001),
        "stays as it is": (1, wanted, 9_001),
    }
    for since, cell in zip((9_000, 9_001), line[1:], strict=True):
        row = known(reason=wanted, due=1, since=since)
        assert answer(row, "stored", asked)[3:6] == meanings[cell]


@pytest.mark.parametrize(
    ("row", "after"),
    [
        pytest.param(
            Row(7),
            Row(7, hash=NEW, dump=3, reason="new", due=NOW, since=30_001),
            id="an id that nobody has seen is new",
        ),
        pytest.param(
            Row(7, reason="manual", due=1, since=1),
            Row(7, hash=NEW, dump=3, reason="manual", due=1, since=30_001),
            id="an id asked for by hand keeps its class, and must be as new as the dump",
        ),
        pytest.param(
            Row(7, reason="refresh", due=1, since=1),
            Row(7, hash=NEW, dump=3, reason="changed", due=1, since=30_001),
            id="an id whose last answer is not believed is none that nobody has seen",
        ),
        pytest.param(
            Row(7, hash=OLD, dump=2, reason="backfill", due=1, since=1),
            Row(7, hash=NEW, dump=3, reason="backfill", due=1, since=30_001),
            id="a change in the midst of the first crawl is not urgent",
        ),
        pytest.param(known(), known(hash=NEW, dump=3, **CHANGED), id="another hash"),
        pytest.param(known(hash=NEW), known(hash=NEW), id="the same hash in both dumps"),
        pytest.param(
            known(hash=NEW, dump=None), known(hash=NEW, dump=3), id="the same hash after a gap"
        ),
        pytest.param(
            known(crawled=30_000, alive=30_000),
            known(crawled=30_000, alive=30_000, hash=NEW, dump=3, **CHANGED),
            id="fetched at the last instant of the dump: it may be older",
        ),
        pytest.param(
            known(crawled=30_001, alive=30_001),
            known(crawled=30_001, alive=30_001, hash=NEW, dump=3),
            id="fetched after the dump was taken",
        ),
        pytest.param(
            known(misses=1, hash=NEW),
            known(misses=1, hash=NEW, **CHANGED),
            id="the API did not have what the dump has",
        ),
    ],
)
def test_a_dump_that_has_the_id(row: Row, after: Row) -> None:
    assert after_dump(row, NEW, DUMP, NOW, COOLDOWN_S) == after


def test_a_change_waits_for_the_cooldown() -> None:
    row = after_dump(known(), NEW, DUMP, 14_000, COOLDOWN_S)
    assert (row.due, row.since) == (15_000, 14_000), "a want is never newer than now"


def test_adopted_hashes_are_no_reason_to_ask() -> None:
    assert after_dump(known(), NEW, DUMP, NOW, 0, adopt=True) == known(hash=NEW, dump=3)
    missed = known(misses=1)
    assert after_dump(missed, NEW, DUMP, NOW, 0, adopt=True).reason == "changed"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param(known(), "retired", id="stored before the dump was taken"),
        pytest.param(known(alive=19_999), "retired", id="just before"),
        pytest.param(known(alive=20_000), None, id="alive when the dump was begun"),
        pytest.param(known(misses=1), None, id="the API does not have it either"),
        pytest.param(Row(7), None, id="a number that nobody has seen"),
        pytest.param(Row(7, hash=OLD, dump=2), "retired", id="never fetched"),
        pytest.param(Row(7, crawled=9, status=500), "retired", id="fetched in vain"),
    ],
)
def test_a_dump_that_lacks_the_id(row: Row, reason: str | None) -> None:
    want_of_it = (reason, reason and NOW, reason and 20_000)
    after = after_dump(row, None, DUMP, NOW, COOLDOWN_S)
    assert (after.reason, after.due, after.since) == want_of_it
    assert after._replace(reason=None, due=None, since=None) == row._replace(dump=None)


def answer(row: Row, outcome: str, asked: str = "changed", **values: Any) -> Row:
    return after_result(row, Result(7, asked, outcome, **{"fetched": 9_000, **values}), NOW)


def test_a_stored_answer_ends_the_want_and_what_was_missing() -> None:
    row = known(misses=2, removed=8_000, failure="HTTP 500", successor=9)
    row = row._replace(reason="changed", due=1, since=9_000)
    after = known(crawled=9_000, alive=9_000)
    assert answer(row, "stored", status=200) == after
    assert answer(row, "stored", status=200, changed=True) == after._replace(changed=9_000)
    assert answer(row, "stored", status=200, fetched=0).crawled == NOW


def test_an_answer_older_than_the_last_one_tells_nothing() -> None:
    wanted = known(crawled=9_001, reason="changed", due=1, since=1)
    assert answer(wanted, "stored") == answer(wanted, "gone") == wanted
    assert answer(wanted._replace(crawled=9_000), "stored").reason is None


@pytest.mark.parametrize(
    ("wanted", "asked", "left"),
    [
        ("changed", "changed", "changed"),
        ("backfill", "backfill", "backfill"),
        ("manual", "manual", "changed"),
        ("discovered", "discovered", "changed"),
        ("manual", "changed", "manual"),
        ("retired", "manual", "retired"),
    ],
)
def test_an_answer_too_old_for_the_want_leaves_it(wanted: str, asked: str, left: str) -> None:
    row = known(reason=wanted, due=1, since=9_001)
    assert answer(row, "stored", asked)[3:6] == (1, left, 9_001)


def test_a_stored_record_that_is_missing_is_asked_for_again_a_day_later() -> None:
    first = answer(known(reason="changed", due=1, since=1), "gone", status=404)
    assert first == known(
        crawled=9_000, status=404, misses=1, reason="confirm", due=9_000 + DAY_S, since=9_001
    )
    assert first.stored
    second = answer(first, "gone", "confirm", status=404, fetched=first.due)
    assert second == known(
        crawled=first.due, status=404, misses=2, removed=first.due, reason=None, due=None
    )
    assert not second.stored


def test_asking_by_hand_does_not_put_off_the_confirmation() -> None:
    waits = known(misses=1, crawled=8_000, reason="confirm", due=8_000 + DAY_S, since=8_001)
    again = answer(waits, "gone", "manual")
    assert (again.reason, again.due, again.since) == ("confirm", 8_000 + DAY_S, 9_001)
    by_hand = waits._replace(reason="manual", due=9_500, since=9_500)
    assert answer(by_hand, "gone", "confirm")[3:6] == (9_500, "manual", 9_500)


def test_a_confirmation_that_waits_for_a_newer_dump_asks_for_that() -> None:
    late = known(reason="changed", due=1, since=30_001)
    after = answer(late, "gone")
    assert (after.reason, after.since) == ("confirm", 30_001)


def test_an_unused_number_is_asked_three_times_in_a_month() -> None:
    row = Row(7, reason="discovered", due=1, since=1)
    dues = []
    for _ in range(3):
        row = answer(row, "gone", "discovered", fetched=(row.due or 0) + 100, status=404)
        dues.append(row.due)
    assert dues == [101 + 7 * DAY_S, 201 + 30 * DAY_S, None]
    assert row.misses == 3
    in_a_dump = Row(7, hash=OLD, reason="discovered", due=1, since=1)
    assert answer(in_a_dump, "gone", "discovered").reason is None


@pytest.mark.parametrize("asked", ["backfill", "discovered", "retired"])
def test_what_an_import_may_have_stored_is_asked_for_twice(asked: str) -> None:
    row = Row(7, hash=OLD, reason=asked, due=1, since=1)
    missing = after_result(row, Result(7, asked, "gone", 404, NOW), NOW, import_failed=True)
    assert (missing.reason, missing.due) == ("confirm", NOW + DAY_S)
    later = Result(7, "confirm", "gone", 404, NOW + DAY_S)
    assert after_result(missing, later, NOW + DAY_S, import_failed=True).reason is None
    assert answer(Row(7, reason="manual", due=1, since=1), "gone", "manual").reason is None


def test_a_merged_record_has_a_successor_until_it_is_stored_again() -> None:
    merged = answer(known(), "merged", successor=9, status=301)
    assert (merged.successor, merged.misses, merged.reason) == (9, 1, "confirm")
    assert answer(merged, "gone", fetched=9_001).successor is None
    assert answer(merged, "stored", fetched=9_001).successor is None


def test_a_dead_letter_keeps_its_want_for_another_month() -> None:
    wanted = known(reason="manual", due=1, since=4_000)
    dead = answer(wanted, "dead", "manual", status=502, failure="HTTP 502")
    assert dead == wanted._replace(status=502, failure="HTTP 502", due=9_000 + 30 * DAY_S)
    newer = wanted._replace(due=9_500, since=9_500)
    assert answer(newer, "dead", "manual").due == 9_500, "wanted while it was asked for"
    unasked = answer(known(), "dead", "refresh", status=0)
    assert (unasked.failure, unasked.reason, unasked.since) == ("unknown", "refresh", 9_000)


@pytest.mark.parametrize(
    ("before", "reason", "after"),
    [
        ("refresh", "changed", "changed"),
        ("changed", "refresh", "changed"),
        ("changed", "manual", "manual"),
        ("backfill", "changed", "backfill"),
        ("backfill", "retired", "backfill"),
        ("backfill", "manual", "manual"),
        ("backfill", "discovered", "discovered"),
    ],
)
def test_two_wants_are_one(before: str, reason: str, after: str) -> None:
    row = known(reason=before, due=100, since=100)
    assert want(row, reason, 50, 150)[3:6] == (50, after, 150)
    assert want(row, reason, 150, 50)[3:6] == (100, after, 100)


def test_the_rules_need_no_database() -> None:
    program = (
        "import sys\nimport discogs_crawler.seeding.want_rules\n"
        "print(sorted({'sqlite3', 'sqlite_utils', 'redis'} & {*sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
