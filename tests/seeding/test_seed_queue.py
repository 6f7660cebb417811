"""What seed_queue.py queues and why, told as a user would see it."""

import hashlib
import io
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from discogs_crawler import clock
from discogs_crawler.broker.messages import Result
from discogs_crawler.clock import DAY_S
from discogs_crawler.dumps import hashfile
from discogs_crawler.errors import BadData, UsageError
from discogs_crawler.ledger import database
from discogs_crawler.ledger.rows import Row
from discogs_crawler.seeding import exchange, on_demand
from tests.conftest import Run
from tests.seeding_world import (
    World,
    digest,
    queue_of,
    record_dump,
    row,
    some_contents,
    write_hashes,
)

HUNDRED = {n: f"record {n}" for n in range(1, 201, 2)}


@pytest.fixture
def world(tmp_path: Path, redis_client: redis.Redis) -> Iterator[World]:
    """A copy that is complete and a month old."""
    offset = clock.OFFSET_S
    world = World(tmp_path, redis_client)
    world.upstream = dict(HUNDRED)
    world.seed(world.dump())
    world.pass_time(2 * DAY_S)
    world.crawl_all()
    world.seed()
    world.pass_time(30 * DAY_S)
    yield world
    world.close()
    clock.OFFSET_S = offset


def next_dump(world: World, **request: object) -> dict[str, int]:
    """Seed with a dump of now, two days after it was taken."""
    path = world.dump()
    world.pass_time(2 * DAY_S)
    return world.seed(path, **request).counts


def test_the_first_dump_queues_everything_behind_the_rest(
    tmp_path: Path, redis_client: redis.Redis
) -> None:
    world = World(tmp_path, redis_client)
    world.upstream = dict(HUNDRED)
    counts = world.seed(world.dump(), ids=[7, 4_000_001]).counts
    assert counts["queued_backfill"] == 99
    assert queue_of(redis_client).depths()["backfill"] == 99
    assert world.crawl(2) == [(7, "manual")]
    assert world.crawl(2) == [(4_000_001, "manual")]
    assert world.crawl(3) == [(1, "backfill"), (3, "backfill"), (5, "backfill")]
    world.close()


def test_a_month_queues_what_is_changed_new_and_retired(world: World) -> None:
    world.upstream[5] = "edited"
    world.upstream[202] = "new"
    del world.upstream[9]
    counts = next_dump(world)
    assert (counts["changed"], counts["added"], counts["retired"]) == (1, 1, 1)
    assert sorted(world.crawl_all()) == [(5, "changed"), (9, "retired"), (202, "new")]
    assert len(list(world.folder.glob("*.hashes"))) == 1, "of the last dump alone"
    world.seed()
    assert world.wanted() == {9: "confirm"}


def test_what_was_fetched_after_the_dump_was_taken_is_not_fetched_again(world: World) -> None:
    world.upstream[5] = "edited"
    path = world.dump()
    world.pass_time(2 * DAY_S)
    world.seed(ids=[5])
    assert world.crawl_all() == [(5, "manual")]
    assert "queued_changed" not in world.seed(path).counts
    assert world.wanted() == {}


def test_an_answer_that_is_older_than_the_change_does_not_satisfy_the_want(world: World) -> None:
    """It was asked for before the dump was taken, and reported after that was compared."""
    world.seed(ids=[5])
    leases = world.claim(1)
    results = [world.answer(lease, int(clock.now())) for lease in leases]
    world.upstream[5] = "edited"
    next_dump(world)
    queue_of(world.client).complete(list(zip(leases, results, strict=True)))
    world.seed()
    assert world.wanted() == {5: "changed"}
    assert world.crawl_all() == [], "within its cooldown"
    world.pass_time(7 * DAY_S)
    world.seed()
    assert world.crawl_all() == [(5, "changed")]
    assert world.store[5] == "edited"


def test_a_change_within_the_cooldown_waits_and_is_not_forgotten(world: World) -> None:
    world.seed(ids=[5])
    world.crawl_all()
    world.upstream[5] = "edited"
    counts = next_dump(world)
    assert counts["changed"] == 1
    assert "queued_changed" not in counts
    assert world.wanted() == {5: "changed"}
    world.pass_time(4 * DAY_S)
    assert "queued_changed" not in world.seed().counts
    world.pass_time(2 * DAY_S)
    assert world.seed().counts["queued_changed"] == 1
    assert world.crawl_all() == [(5, "changed")]


def test_a_stored_record_is_removed_only_when_it_is_missing_twice_a_day_apart(
    world: World,
) -> None:
    del world.upstream[9]
    world.seed(ids=[9])
    world.crawl_all()
    assert "queued_confirm" not in world.seed().counts
    assert row(world.ledger, 9).stored
    world.pass_time(DAY_S + 60)
    assert world.seed().counts["queued_confirm"] == 1
    assert world.crawl_all() == [(9, "confirm")]
    assert world.seed().counts["read_removed"] == 1
    assert 9 not in world.store
    assert row(world.ledger, 9).removed
    assert world.wanted() == {}


def test_asking_by_hand_tries_a_dead_letter_again_at_once(world: World) -> None:
    world.seed(ids=[7])
    [lease] = world.claim(1)
    now = int(clock.now())
    dead = Result(7, lease.reason, "dead", 500, now, failure="HTTP 500")
    queue_of(world.client).complete([(lease, dead)])
    world.seed()
    assert world.crawl_all() == []
    world.seed(ids=[7])
    assert world.crawl_all() == [(7, "manual")]


def test_asking_by_hand_in_between_does_not_spare_a_missing_record(world: World) -> None:
    del world.upstream[9]
    for _ in range(2):
        world.seed(ids=[9])
        world.crawl_all()
        world.seed()
    world.pass_time(DAY_S + 60)
    world.seed()
    assert world.crawl_all() == [(9, "confirm")]


def test_a_record_that_comes_back_is_stored_again(world: World) -> None:
    text = world.upstream.pop(9)
    world.seed(ids=[9])
    for _ in range(2):
        world.crawl_all()
        world.seed()
        world.pass_time(DAY_S + 60)
        world.seed()
    assert 9 not in world.store
    world.upstream[9] = text
    next_dump(world)
    world.pass_time(8 * DAY_S)
    world.seed()
    assert world.crawl_all() == [(9, "changed")]
    assert world.store[9] == text


def test_an_outage_that_answers_404_removes_nothing(world: World) -> None:
    upstream, world.upstream = world.upstream, {}
    world.seed(refresh=50)
    assert len(world.crawl_all()) == 50
    world.pass_time(DAY_S + 60)
    report = world.seed()
    assert report.counts["withheld_confirm"] == 50
    assert "queued_confirm" not in report.counts
    last = "SELECT exit_code, counts FROM runs ORDER BY id DESC LIMIT 1"
    code, counts = world.ledger.db.execute(last).fetchone()
    assert (code, json.loads(counts)["withheld_confirm"]) == (1, 50)
    world.upstream = upstream
    assert world.seed(force=True).counts["queued_confirm"] == 50
    world.crawl_all()
    world.seed()
    assert world.store == upstream
    assert world.wanted() == {}


def test_numbers_above_the_highest_are_tried_and_tried_again(world: World) -> None:
    world.upstream[203] = "fresh"
    assert world.seed(discover=6).counts["queued_discovered"] == 6
    assert len(world.crawl_all()) == 6
    assert world.seed(discover=6).counts["wanted_discovered"] == 4  # 203 is the highest now
    world.crawl_all()
    asked_days = []
    for day in range(1, 45):
        world.pass_time(DAY_S)
        world.seed()
        if (205, "discovered") in world.crawl_all():
            asked_days.append(day)
    assert asked_days == [7, 30] or asked_days == [8, 31]
    assert row(world.ledger, 205).misses == 3


def test_a_record_that_waits_to_be_refreshed_is_hurried_when_its_hash_changes(
    world: World,
) -> None:
    world.seed(refresh=100)
    world.upstream[5] = "edited"
    assert next_dump(world)["queued_changed"] == 1
    assert world.crawl(3) == [(5, "changed")]
    assert len(world.crawl_all()) == 99
    world.seed()
    assert world.wanted() == {}


def test_refresh_takes_those_that_were_fetched_longest_ago(world: World) -> None:
    world.seed(ids=[1, 3])
    world.crawl_all()
    world.seed()
    assert world.seed(refresh=3).counts["queued_refresh"] == 3
    assert "queued_refresh" not in world.seed(refresh=3).counts
    assert world.crawl_all() == [(5, "refresh"), (7, "refresh"), (9, "refresh")]


def test_refresh_leaves_alone_what_was_fetched_within_the_cooldown(world: World) -> None:
    world.seed(ids=[1, 3])
    world.crawl_all()
    world.seed()
    world.seed(refresh=200)
    assert set(world.wanted()) == set(HUNDRED) - {1, 3}


def test_refresh_is_not_used_up_by_what_the_first_crawl_is_to_fetch(world: World) -> None:
    now = int(clock.now())
    first = Row(202, hash=b"", dump=1, imported=1, reason="backfill", due=now, since=now)
    with world.ledger.transaction():
        world.ledger.save("releases", [first, first._replace(id=204), Row(206, crawled=1, alive=1)])
    world.seed(refresh=1)
    assert world.wanted()[206] == "refresh"


def test_a_second_404_is_waited_for_whoever_wants_it_again(world: World) -> None:
    due = int(clock.now()) + DAY_S
    with world.ledger.transaction():
        world.ledger.save(
            "releases", [Row(7, alive=1, misses=1, reason="confirm", due=due, since=due - DAY_S)]
        )
    on_demand.want_ids(world.ledger, "releases", [7], "confirm")
    assert world.ledger.rows("releases", [7])[7].due == due


def test_refresh_takes_first_what_was_only_imported(world: World) -> None:
    """Whoever kept the dump alone gets everything from the API at last, a part of it each day."""
    world.upstream |= {n: f"imported {n}" for n in (202, 204, 206, 208)}
    with world.ledger.transaction():
        rows = [Row(n, hash=b"", dump=1, imported=1) for n in (202, 204, 206, 208)]
        rows[3] = rows[3]._replace(crawled=int(clock.now()) - DAY_S, status=500)
        world.ledger.save("releases", rows)
    assert world.seed(refresh=2).counts["queued_refresh"] == 2
    assert "queued_refresh" not in world.seed(refresh=2).counts
    assert world.crawl_all() == [(202, "refresh"), (204, "refresh")]
    world.seed()
    world.seed(refresh=2)
    assert world.crawl_all() == [(1, "refresh"), (206, "refresh")]
    world.seed(refresh=200)
    assert set(world.wanted()) == set(HUNDRED) - {1}, "208 was fetched within the cooldown"


def test_dead_letters_are_tried_again_after_30_days_or_at_once_if_told_so(world: World) -> None:
    world.seed(ids=[5, 7, 9])
    leases = world.claim(3)
    now = int(clock.now())
    queue_of(world.client).complete(
        [(one, Result(one.id, one.reason, "dead", 500, now, failure="HTTP 500")) for one in leases]
    )
    assert world.seed().counts["read_dead"] == 3
    assert world.crawl_all() == []
    assert world.seed(retry_dead=True).counts["wanted_dead"] == 3
    assert world.wanted() == dict.fromkeys([5, 7, 9], "manual")
    assert [n for n, _ in world.crawl(1)] == [5]
    world.client.flushall()
    world.pass_time(31 * DAY_S)
    world.seed()
    assert [n for n, _ in world.crawl_all()] == [5, 7, 9]
    world.seed()
    assert world.ledger.db.execute("SELECT count(*) FROM dead").fetchone() == (0,)


def test_a_merged_record_names_its_successor(world: World) -> None:
    world.seed(ids=[5])
    (lease,) = world.claim(1)
    result = Result(5, "manual", "merged", 301, int(clock.now()), successor=7)
    queue_of(world.client).complete([(lease, result)])
    world.seed()
    assert world.ledger.db.execute("SELECT id, successor FROM gone").fetchall() == [(5, 7)]
    assert world.wanted() == {5: "confirm"}


def test_after_a_flushall_everything_unfinished_is_queued_again(world: World) -> None:
    for n in (1, 3, 5):
        world.upstream[n] = "edited"
    next_dump(world)
    assert world.crawl(1) == [(1, "changed")]
    world.client.flushall()
    assert world.seed().counts == {"queued_changed": 3}
    assert [n for n, _ in world.crawl_all()] == [1, 3, 5]


def test_results_of_a_new_life_of_redis_are_not_taken_for_read(world: World) -> None:
    """Its stream ids may be lower than the last one that was read."""
    cursor = world.ledger.db.execute("SELECT generation, stream_id FROM results_cursor").fetchone()
    world.client.flushall()
    world.seed(ids=[5])
    world.crawl_all()
    generation, entries = queue_of(world.client).results("0", 10)
    assert generation != cursor[0]
    with world.ledger.transaction() as connection:
        connection.execute("UPDATE results_cursor SET stream_id = '99999999999999-0'")
    assert len(entries) == 1
    assert exchange.drain(world.ledger, queue_of(world.client)) == {"unchanged": 1}


def test_redis_from_an_older_copy_is_told_from_a_reader_that_was_killed(world: World) -> None:
    world.upstream = dict.fromkeys(range(1, 9), "x")
    world.seed(ids=range(1, 7))
    early = world.claim(1)
    world.crawl(1)
    world.seed()
    copy = {key: world.client.dump(key) for key in world.client.scan_iter()}
    world.crawl_all()
    queue = queue_of(world.client)
    generation, _ = queue.results("0", 10)
    assert exchange.read_results(world.ledger, queue, keep=True) == {"changed": 4}
    world.seed()
    assert queue.results("0", 10) == (generation, []), "nothing was dropped twice"

    world.client.flushall()
    for key, value in copy.items():
        world.client.restore(key, 0, value)
    world.crawl(1)
    assert queue.unread() == 1
    world.pass_time(1)
    assert world.seed(ids=[8]).counts == {
        "read_unchanged": 1,
        "wanted_manual": 1,
        "queued_manual": 2,
    }
    assert queue.renew(early) == set()
    assert queue.complete([(early[0], world.answer(early[0], int(clock.now())))]) == set()
    assert world.crawl_all() == [(1, "manual"), (8, "manual")]
    world.seed()
    assert world.wanted() == {}


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda new: [new.pop(n) for n in (1, 3, 5)], "it has 97 records instead of 100"),
        (
            lambda new: [new.pop(n) for n in (1, 3, 5)] + [new.update({2: "", 4: "", 6: ""})],
            "it lacks 3 of 100 records",
        ),
        (
            lambda new: new.update(dict.fromkeys(range(1, 121, 2), "other")),
            "60 of 100 records have another hash",
        ),
    ],
)
def test_a_dump_that_can_hardly_be_right_changes_nothing(
    world: World, edit: object, complaint: str
) -> None:
    edit(world.upstream)  # type: ignore[operator]
    path = world.dump()
    world.pass_time(2 * DAY_S)
    before = world.ledger.db.execute("SELECT * FROM releases").fetchall()
    with pytest.raises(BadData, match=complaint):
        world.seed(path)
    assert world.ledger.db.execute("SELECT * FROM releases").fetchall() == before
    assert queue_of(world.client).depths().keys() and not sum(
        queue_of(world.client).depths().values()
    )
    assert world.seed(path, force=True).counts


def test_adopt_takes_other_hashes_and_asks_only_for_new_and_retired_records(world: World) -> None:
    for n in world.upstream:
        world.upstream[n] += ", serialised in another way"
    world.upstream[202] = "new"
    del world.upstream[9]
    counts = next_dump(world, adopt=True)
    assert counts["changed"] == 99
    assert sorted(world.crawl_all()) == [(9, "retired"), (202, "new")]
    assert next_dump(world)["changed"] == 0


def test_hashes_by_other_rules_are_refused_until_the_last_dump_was_split_by_them(
    world: World, tmp_path: Path
) -> None:
    last = world.ledger.last_accepted("releases")
    assert last is not None
    path = write_hashes(tmp_path / "new.txt", {n: f"v2 {t}" for n, t in HUNDRED.items()})
    record_dump(world.ledger, path, canonical_version=2)
    with pytest.raises(BadData, match=f"first split {last.file} by those rules too and seed"):
        world.seed(path)
    again = {n: f"v2 {t}" for n, t in HUNDRED.items()} | {1: "v2 before"}
    same = write_hashes(tmp_path / "again.txt", again)
    as_last = {"sha256": last.sha256, "not_before": last.not_before}
    record_dump(world.ledger, same, canonical_version=2, **as_last)
    assert world.seed(same).counts["changed"] == 100
    assert world.wanted() == {}
    world.pass_time(2 * DAY_S)
    assert world.seed(path).counts["queued_changed"] == 1


def test_hashes_by_older_rules_are_taken_only_if_told_so(world: World, tmp_path: Path) -> None:
    """Else the ledger would refuse every dump that comes after."""
    last = world.ledger.last_accepted("releases")
    assert last is not None
    raw = write_hashes(tmp_path / "raw.txt", {n: f"raw {t}" for n, t in HUNDRED.items()})
    record_dump(world.ledger, raw, canonical_version=0, sha256=last.sha256, file=last.file)
    with pytest.raises(BadData, match=r"hashed with --raw.* split .* again without --raw, or --ad"):
        world.seed(raw)
    assert world.seed(raw, adopt=True).counts["changed"] == 100
    assert world.wanted() == {}
    world.upstream[5] = "edited"
    path = world.dump()
    world.pass_time(2 * DAY_S)
    with pytest.raises(BadData, match=rf"first split {last.file} by those rules too"):
        world.seed(path)
    world.seed(path, adopt=True)
    world.upstream[7] = "edited"
    assert next_dump(world)["queued_changed"] == 1


def test_a_dump_from_standard_input_is_that_of_its_name(world: World, tmp_path: Path) -> None:
    """Seeded first without a name or only with it, in either order."""
    world.upstream[5] = "edited"
    path = world.dump()
    named = world.ledger.dump_of_result(hashfile.check(path).sha256)
    assert named is not None
    now = int(clock.now()) + 5 * DAY_S
    nameless = {"file": "-", "not_before": now, "not_after": now}
    for sha256 in (named.sha256, hashlib.sha256(b"unpacked").digest()):
        record_dump(world.ledger, path, sha256=sha256, **nameless)
        assert world.ledger.dump_of_result(hashfile.check(path).sha256) == named
    world.pass_time(6 * DAY_S)
    world.upstream[7] = "edited"
    other = write_hashes(tmp_path / "other.txt", world.upstream)
    record_dump(world.ledger, other, **nameless)
    assert world.seed(other).counts["changed"] == 2
    record_dump(world.ledger, other, sha256=b"2" * 32, not_before=named.not_after)
    assert world.seed(other).counts["changed"] == 0
    accepted = world.ledger.last_accepted("releases")
    assert accepted is not None and accepted.file == "other.xml.gz"


@pytest.mark.parametrize("batch", [database.BATCH, 7])
def test_without_the_last_file_the_ledger_itself_is_compared_with(
    world: World, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(database, "BATCH", batch)
    for kept in world.folder.glob("*.hashes"):
        kept.write_text("1\tdamaged\n")
    world.upstream[5] = "edited"
    del world.upstream[9]
    counts = next_dump(world)
    assert (counts["changed"], counts["added"], counts["retired"]) == (1, 0, 1)
    assert world.wanted() == {5: "changed", 9: "retired"}


def test_a_refused_file_from_elsewhere_leaves_no_trace(world: World, tmp_path: Path) -> None:
    before = world.ledger.db.execute("SELECT * FROM dumps").fetchall()
    with pytest.raises(
        BadData, match=r"it has 10 records instead of 100.*--force accepts it anyway"
    ):
        world.seed(write_hashes(tmp_path / "cut.txt", dict.fromkeys(range(1, 11), "cut")))
    assert world.ledger.db.execute("SELECT * FROM dumps").fetchall() == before


def test_a_dump_as_odd_as_may_be_is_believed(world: World) -> None:
    for n in (1, 3):
        del world.upstream[n]
    world.upstream |= dict.fromkeys(range(5, 103, 2), "edited")
    counts = next_dump(world)
    assert (counts["retired"], counts["changed"]) == (2, 49), "2 % and half of what is left"


def test_what_the_api_had_not_and_the_next_dump_still_has_is_asked_for_again(world: World) -> None:
    """Nothing differs between the dumps, so only the ledger can tell."""
    text = world.upstream.pop(9)
    world.seed(ids=[9])
    world.crawl_all()
    world.seed()
    with world.ledger.transaction() as connection:
        connection.execute("UPDATE releases SET due = NULL, reason = NULL, since = NULL")
    world.upstream[9] = text
    world.pass_time(DAY_S)
    assert row(world.ledger, 9).misses == 1
    assert next_dump(world)["changed"] == 0
    assert world.wanted() == {9: "changed"}


def test_dumps_of_one_second_are_accepted_in_their_order(world: World) -> None:
    began = int(clock.now())
    for text in ("b", "c", "d"):
        world.upstream[5] = text
        path = write_hashes(world.folder / f"{text}.txt", world.upstream)
        record_dump(world.ledger, path)
        assert world.seed(path).counts["changed"] == 1
    rows = world.ledger.db.execute("SELECT file, accepted FROM dumps ORDER BY accepted").fetchall()
    assert [file for file, _ in rows[1:]] == ["b.xml.gz", "c.xml.gz", "d.xml.gz"]
    assert began <= rows[1][1] < rows[2][1] < rows[3][1] <= clock.now() + 3


def test_the_numbers_by_segment_are_those_of_the_rows(
    tmp_path: Path, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first crawl counts its rows itself; triggers count all that comes later."""
    monkeypatch.setattr(clock, "OFFSET_S", clock.OFFSET_S)
    world = World(tmp_path, redis_client)
    ends = [1, 2, 999_999, 1_000_000, 1_000_001, 1_999_999, 3_000_000, 4_000_000, 4_000_001]
    world.upstream = {n: f"record {n}" for n in ends}

    def compare() -> None:
        told = world.ledger.db.execute(
            "SELECT segment, in_dump, state, reason, records FROM counts"
        )
        really = world.ledger.db.execute(
            "SELECT id / 1000000, dump IS NOT NULL, state, ifnull(reason, ''), count(*)"
            " FROM releases GROUP BY 1, 2, 3, 4"
        )
        assert {r for r in told.fetchall() if r[4]} == {*really.fetchall()}

    world.seed(ids=[2, 5_000_000])
    compare()
    world.seed(world.dump())
    compare()
    del world.upstream[1], world.upstream[4_000_000]
    world.crawl_all()
    world.seed()
    compare()
    world.pass_time(30 * DAY_S)
    world.upstream[2_000_000] = "new"
    world.seed(world.dump(), force=True)
    compare()
    world.close()


def test_the_same_dump_again_changes_nothing(world: World) -> None:
    world.upstream[5] = "edited"
    path = world.dump()
    world.pass_time(2 * DAY_S)
    assert world.seed(path).counts["queued_changed"] == 1
    assert world.seed(path).counts == {}


def test_with_old_only_what_differs_from_it_is_queued(
    tmp_path: Path, redis_client: redis.Redis
) -> None:
    """As the original tool did, with a ledger that knows nothing."""
    world = World(tmp_path, redis_client)
    old = write_hashes(tmp_path / "old_20260901.txt", HUNDRED)
    new = write_hashes(tmp_path / "new_20261001.txt", HUNDRED | {5: "edited", 202: "new"})
    world.seed(new, old=old)
    assert sorted(world.crawl_all()) == [(5, "changed"), (202, "new")]
    assert world.ledger.db.execute("SELECT in_dump FROM progress").fetchone() == (101,)
    world.close()


def test_ids_come_from_lists_files_and_standard_input(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("7\n8, 9\n\n")
    words = ["1-1", "2,3-4", str(path), "-"]
    found = list(on_demand.parse_ids(words, io.StringIO("10-11,12\n13\n")))
    assert found == [1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 13]
    path.write_text("7\n8x\n")
    with pytest.raises(BadData, match=r"ids.txt, line 2: not an id between .*: '8x'"):
        list(on_demand.parse_ids([str(path)], io.StringIO()))
    with pytest.raises(UsageError, match="neither ids nor a readable file"):
        list(on_demand.parse_ids([str(tmp_path / "nowhere")], io.StringIO()))
    with pytest.raises(BadData, match="a range has 1,000,000 ids at most"):
        list(on_demand.parse_ids(["1-1000001"], io.StringIO()))


def test_a_dry_run_prints_the_same_numbers_and_changes_nothing(world: World) -> None:
    world.upstream[5] = "edited"
    world.upstream[202] = "new"
    del world.upstream[9]
    world.seed(ids=[11, 13])
    world.crawl(1)
    path = world.dump()
    world.pass_time(2 * DAY_S)
    before = sorted(world.client.keys()), list(world.ledger.db.conn.iterdump())
    request = {"discover": 4, "refresh": 3, "ids": [15]}
    planned = world.seed(path, dry_run=True, **request)
    assert (sorted(world.client.keys()), list(world.ledger.db.conn.iterdump())) == before
    assert world.seed(path, **request) == planned


def test_the_script_is_silent_and_says_what_it_would_do(run: Run, tmp_path: Path) -> None:
    path = write_hashes(tmp_path / "discogs_20261001_releases.txt", some_contents(50))
    number = len(some_contents(50))
    planned = run("seed_queue.py", "-n", path, "--dry-run")
    assert planned.returncode == 0
    assert f"releases: queued backfill: {number}" in planned.stdout.splitlines()
    done = run("seed_queue.py", "-n", path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert run("seed_queue.py", "--dead").stdout == ""
    with sqlite3.connect(tmp_path / "state" / "crawler.db") as ledger:
        assert ledger.execute("SELECT wanted FROM progress").fetchone() == (number,)


def test_days_without_the_nightly_job_come_in_the_mail(run: Run, tmp_path: Path) -> None:
    path = write_hashes(tmp_path / "discogs_20261001_releases.txt", some_contents(50))
    assert run("seed_queue.py", "-n", path).stderr == ""
    with sqlite3.connect(tmp_path / "state" / "crawler.db") as ledger:
        ledger.execute("UPDATE runs SET started = started - ?", [4 * DAY_S])
    assert run("seed_queue.py").stderr == "", "there is nothing to pack yet"
    with sqlite3.connect(tmp_path / "state" / "crawler.db") as ledger:
        ledger.execute("UPDATE releases SET imported = 1 WHERE id < 9")
    assert "seed_queue.py: maintain_store.py has not ended well for 4 days: " in (
        run("seed_queue.py").stderr
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-n", "nowhere.txt"], 64, "nowhere.txt: cannot be read: No such file"),
        (["-o", "old.txt"], 64, "-o OLD is compared with -n NEW: give both"),
        (["--ids", "0"], 65, "not an id between 1 and 999999999: '0'"),
        (["--ids", "5010-5000"], 65, "a range must ascend: 5000-5010, not 5010-5000"),
        (["--ids", "1-1000001"], 65, "1-1000001: a range has 1,000,000 ids at most"),
        (["--ids", "5-10-20"], 65, "not an id between 1 and 999999999: '10-20'"),
        (["--ids", "nowhere.txt"], 64, "neither ids nor a readable file"),
        (["--discover", "-3"], 64, "argument --discover: it must be at least 1"),
        (["--dump-date", "yesterday", "-n", "x"], 64, "not a date such as 20261101"),
        (["--dead"], 78, "there is no ledger yet"),
        (["--kind", "videos"], 64, "invalid choice: 'videos'"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: list[str], code: int, message: str) -> None:
    failed = run("seed_queue.py", *arguments)
    assert (failed.returncode, failed.stdout) == (code, "")
    assert message in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_bad_hashes_are_exit_65_and_leave_no_trace(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "hashes.txt"
    path.write_text(f"1\t{digest('a')}\n2\tabc\n")
    failed = run("seed_queue.py", "-n", path)
    assert failed.returncode == 65
    assert failed.stderr == (
        f"seed_queue.py: {path}, line 2: the hash has 3 characters, not 40: '2\\tabc'\n"
    )
    with sqlite3.connect(tmp_path / "state" / "crawler.db") as ledger:
        assert ledger.execute("SELECT count(*) FROM dumps").fetchone() == (0,)
        assert ledger.execute("SELECT count(*) FROM releases").fetchone() == (0,)


def test_an_unsorted_file_is_taken_as_if_it_were_sorted(run: Run, tmp_path: Path) -> None:
    lines = [f"{n}\t{digest(str(n))}\n" for n in (30, 7, 2_000_000, 1)]
    path = tmp_path / "hashes.txt"
    path.write_text("".join(lines))
    done = run("seed_queue.py", "-n", path)
    assert (done.returncode, done.stderr) == (0, "")
    state = tmp_path / "state"
    with sqlite3.connect(state / "crawler.db") as ledger:
        assert ledger.execute("SELECT id FROM releases").fetchall() == [
            (1,),
            (7,),
            (30,),
            (2_000_000,),
        ]
    assert not list(state.glob("*.sorted"))


def test_hashes_of_another_kind_are_not_taken_for_releases(world: World, tmp_path: Path) -> None:
    path = write_hashes(tmp_path / "labels.txt", {1: "label"})
    record_dump(world.ledger, path, kind="labels", sha256=hashlib.sha256(b"l").digest())
    assert world.seed(path).kind == "labels"
    assert queue_of(world.client, "labels").depths()["backfill"] == 1
    assert world.ledger.db.execute("SELECT count(*) FROM releases").fetchone() == (100,)


def test_a_lost_ledger_is_made_again_from_the_store_and_the_last_hashes(
    world: World, tmp_path: Path, redis_client: redis.Redis
) -> None:
    world.close()
    for name in ("crawler.db", "crawler.db-wal", "crawler.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    redis_client.flushall()
    again = World(tmp_path, redis_client)
    stored = [n for n in sorted(world.store) if n != 5] + [900]
    again.seed(stored=lambda kind: ((i, False) for i in stored), adopt=True)
    assert again.wanted() == {5: "backfill"}
    assert again.ledger.db.execute("SELECT stored, in_dump FROM progress").fetchone() == (100, 100)
    again.store, again.upstream = world.store, dict(HUNDRED)
    assert again.crawl_all() == [(5, "backfill")]
    again.upstream[7] = "edited"
    again.pass_time(9 * DAY_S)
    next_dump(again)
    assert sorted(again.crawl_all()) == [(7, "changed"), (900, "retired")]
    again.close()
