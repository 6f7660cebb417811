"""The worker in this process, against the stand-in: what becomes of every id."""

import dataclasses
import itertools
import json
import logging
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from discogs_crawler import clock
from discogs_crawler.api import cleaning
from discogs_crawler.api.client import Client
from discogs_crawler.broker.connect import connect, limiter_of
from discogs_crawler.broker.limiter import Limiter
from discogs_crawler.broker.messages import Lease, Result
from discogs_crawler.broker.queue import Queue
from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.config import Secret, Settings
from discogs_crawler.errors import ConfigurationError, Unavailable
from discogs_crawler.ledger import database
from discogs_crawler.seeding import on_demand
from discogs_crawler.store.layouts import Committed, Edit, SingleStore, open_store
from discogs_crawler.worker import crawler, patience
from discogs_crawler.worker.batch import Batch, Item
from discogs_crawler.worker.crawler import CrawlOutcome, CrawlTask
from discogs_crawler.worker.fetchers import Fetchers
from discogs_crawler.worker.lease_keeper import Leases
from tests.discogs.api import Api
from tests.discogs.quota import Quota
from tests.discogs.world import invented

UNTIL_EMPTY = CrawlTask("releases", until_empty=True)


@pytest.fixture
def api() -> Iterator[Api]:
    with Api(invented(60), Quota(50_000, 50_000, 1)) as server:
        yield server


@pytest.fixture
def settings(settings: Settings, api: Api) -> Settings:
    return dataclasses.replace(
        settings,
        discogs_api=api.url,
        discogs_token=Secret("kzQmXvWpLrTsYb"),
        rate_window_s=2,
        commit_seconds=0.5,
        retry_delays=(0, 0, 0),
    )


@pytest.fixture
def queue(settings: Settings) -> Queue:
    return Queue(connect(settings), "releases", prefix="discogs", lease_s=600)


@pytest.fixture
def ids(api: Api) -> list[int]:
    return sorted(api.world.alive["releases"])


Work = Callable[..., CrawlOutcome]


@pytest.fixture
def work(settings: Settings) -> Work:
    """Let a worker run to its end; it is an error if that takes long."""

    def call(task: CrawlTask = UNTIL_EMPTY, **changes: Any) -> CrawlOutcome:
        return crawler.crawl(dataclasses.replace(settings, **changes), task, Stop(30))

    return call


def results(queue: Queue) -> list[Result]:
    return [result for _, result in queue.results("0", 10_000)[1]]


def outcomes(queue: Queue) -> Counter[str]:
    return Counter(result.outcome for result in results(queue))


def stored(settings: Settings) -> set[int]:
    return set(open_store(settings).ids("releases"))


def commits(settings: Settings, form: str = "%B") -> list[str]:
    repository = open_store(settings).repository
    return repository.run("log", f"--format={form}%x00", "main").decode().split("\0\n")[:-1]


def test_every_id_is_asked_for_once_and_committed_clean(
    settings: Settings, api: Api, queue: Queue, ids: list[int], work: Work
) -> None:
    queue.push("new", ids[:30])
    queue.push("changed", ids[30:40])
    before = int(clock.now())
    outcome = work()
    assert outcome.empty
    assert sorted(api.journal.asked()) == ids[:40]
    assert stored(settings) == set(ids[:40])
    data = open_store(settings).read("releases", [ids[7]])[ids[7]]
    record = json.loads(data)
    assert record["id"] == ids[7]
    assert not {"videos", "num_for_sale", "lowest_price", "thumb"} & record.keys()
    found = results(queue)
    assert {result.outcome for result in found} == {"stored"}
    assert {result.changed for result in found} == {True}
    assert {result.commit for result in found} <= set(commits(settings, "%H"))
    assert all(before - 1 <= result.fetched <= clock.now() for result in found)
    assert Counter(result.reason for result in found) == {"new": 30, "changed": 10}


def test_a_commit_says_what_why_and_by_which_rules(
    settings: Settings, queue: Queue, ids: list[int], work: Work
) -> None:
    queue.push("new", ids[:3])
    work(commit_seconds=60)
    (message,) = commits(settings)
    lines = message.strip().splitlines()
    assert lines[:5] == [
        "releases: 3 added",
        "",
        "Source: api",
        "Reason: new 3",
        f"Cleaner: {cleaning.CLEANER_VERSION}",
    ]
    assert lines[5].startswith("Worker: ")


def test_fetching_again_without_a_change_upstream_commits_nothing(
    settings: Settings, api: Api, queue: Queue, ids: list[int], work: Work
) -> None:
    queue.push("new", ids)
    work()
    tip = open_store(settings).tip()
    generation, entries = queue.results("0", 1_000)
    queue.forget(generation, entries[-1][0])
    api.world.edit_videos("releases", ids[:20])
    queue.push("refresh", ids)
    work()
    assert open_store(settings).tip() == tip
    again = results(queue)
    assert len(again) == len(ids)
    assert not any(result.changed for result in again)


def test_failures_are_tried_again_and_then_forgotten(
    settings: Settings, api: Api, queue: Queue, ids: list[int], work: Work
) -> None:
    faults = ["500", "503-html", "cut", "not-gzip", "empty", "html", "reset", "404-html"]
    for record_id, fault in zip(ids[::4], faults, strict=False):
        api.faults.plan("releases", record_id, fault, fault)
    queue.push("new", ids)
    work()
    assert stored(settings) == set(ids)
    assert outcomes(queue) == {"stored": len(ids)}
    asked = Counter(api.journal.asked())
    assert [asked[record_id] for record_id in ids[::4][: len(faults)]] == [3] * len(faults)


def test_an_id_that_never_gets_an_answer_is_dead_and_says_why(
    api: Api, queue: Queue, ids: list[int], work: Work
) -> None:
    api.faults.plan("releases", ids[3], *["cut-json"] * 9)
    queue.push("new", ids)
    work(retry_delays=(0, 0))
    (dead,) = [result for result in results(queue) if result.outcome == "dead"]
    assert dead.id == ids[3]
    assert dead.status == 200
    assert dead.failure.startswith("HTTP 200 with a body of ")
    assert api.journal.asked().count(ids[3]) == 3


def test_a_404_is_reported_and_removes_what_is_stored_only_when_it_confirms_another(
    settings: Settings, api: Api, queue: Queue, ids: list[int], work: Work
) -> None:
    queue.push("new", ids)
    work()
    generation, entries = queue.results("0", 1_000)
    queue.forget(generation, entries[-1][0])
    api.world.remove("releases", ids[:2])
    queue.push("changed", [ids[0], 77_777_777])
    queue.push("confirm", [ids[1]])
    work()
    found = {result.id: result for result in results(queue)}
    assert {result.outcome for result in found.values()} == {"gone"}
    assert [found[i].changed for i in (ids[0], 77_777_777, ids[1])] == [False, False, True]
    assert stored(settings) == set(ids) - {ids[1]}
    assert commits(settings, "%s")[0] == "releases: 1 removed"


def test_a_record_that_comes_back_is_stored_again(
    settings: Settings, api: Api, queue: Queue, ids: list[int], work: Work
) -> None:
    queue.push("new", ids[:5])
    work()
    api.world.remove("releases", [ids[0]])
    connect(settings).flushall()
    queue.push("confirm", [ids[0]])
    work()
    assert ids[0] not in stored(settings)
    api.world.add("releases", [ids[0]])
    connect(settings).flushall()
    queue.push("retired", [ids[0]])
    work()
    assert ids[0] in stored(settings)


def test_an_api_that_has_lost_everything_removes_nothing_and_is_asked_again_later(
    settings: Settings, api: Api, queue: Queue, ids: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    queue.push("new", ids)
    work_in_thread(settings, UNTIL_EMPTY).join()
    connect(settings).flushall()
    api.faults.set_everywhere("404")
    queue.push("confirm", ids)
    settings = dataclasses.replace(settings, rate_window_s=0.5)
    worker = work_in_thread(settings, UNTIL_EMPTY)
    until(lambda: caplog.text.count("the API answers 404 for records that exist") >= 2)
    assert outcomes(queue)["gone"] <= 25, "what came before we could know"
    api.faults.set_everywhere("")
    worker.join()
    assert outcomes(queue) == {"gone": 25, "stored": len(ids) - 25}
    assert len(stored(settings)) == len(ids) - 25


def test_many_true_404s_in_a_row_are_believed(
    api: Api, queue: Queue, ids: list[int], work: Work
) -> None:
    queue.push("new", ids[:5])
    work()
    unused = range(50_000_000, 50_000_120)
    queue.push("discovered", unused)
    work()
    assert outcomes(queue) == {"stored": 5, "gone": 120}
    assert len(api.journal.asked()) <= 5 + 120 + 6, "one request in 25 makes sure"


def test_404s_are_believed_where_nothing_is_known_to_exist(queue: Queue, work: Work) -> None:
    queue.push("discovered", range(50_000_000, 50_000_060))
    work()
    assert outcomes(queue) == {"gone": 60}


def test_a_merger_is_recorded_with_the_successor(
    settings: Settings, api: Api, queue: Queue, ids: list[int], work: Work
) -> None:
    queue.push("new", ids[:2])
    work()
    connect(settings).flushall()
    api.faults.plan("releases", ids[0], "moved")
    api.faults.plan("releases", ids[1], "moved")
    queue.push("changed", [ids[0]])
    queue.push("confirm", [ids[1]])
    work()
    assert {(r.id, r.outcome, r.successor, r.status) for r in results(queue)} == {
        (ids[0], "merged", ids[0] + 1, 301),
        (ids[1], "merged", ids[1] + 1, 301),
    }
    assert stored(settings) == {ids[0]}, "as with a 404, only the second time removes"


def test_a_refused_token_stops_the_worker_at_once_and_loses_nothing(
    settings: Settings, api: Api, queue: Queue, ids: list[int], work: Work
) -> None:
    api.faults.plan("releases", ids[20], "401")
    queue.push("new", ids)
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"the API refuses us, check DISCOGS_TOKEN"):
        work(commit_seconds=60)
    assert time.monotonic() - began < 10
    assert stored(settings) == {result.id for result in results(queue)}
    assert len(stored(settings)) >= 18, "what was fetched is committed"
    assert queue.leased() == []
    assert len(results(queue)) + sum(queue.depths().values()) == len(ids)


@pytest.mark.parametrize("is_any_stored", [True, False])
def test_a_403_for_all_ends_the_worker(
    api: Api, queue: Queue, ids: list[int], work: Work, is_any_stored: bool
) -> None:
    if is_any_stored:
        queue.push("new", ids[20:])
        work()
    api.faults.set_everywhere("403-json")
    queue.push("new", ids[:20])
    api.journal.clear()
    with pytest.raises(ConfigurationError, match=r"the API refuses us.*HTTP 403: You don't have"):
        work(retry_delays=())
    assert len(api.journal.asked()) <= 10
    assert queue.depths()["new"] + len(queue.delayed()) == 20
    assert "dead" not in outcomes(queue)


def test_a_403_for_one_id_is_a_failure_of_that_id(
    api: Api, queue: Queue, ids: list[int], work: Work
) -> None:
    api.faults.plan("releases", ids[0], *["403-json"] * 9)
    queue.push("new", ids)
    assert work(retry_delays=(0, 0)).empty
    assert outcomes(queue) == {"stored": len(ids) - 1, "dead": 1}
    assert api.journal.asked().count(ids[0]) == 3
    assert len(api.journal.asked()) <= len(ids) - 1 + 3 + 3, "one witness for each"


def test_a_403_for_what_is_stored_is_no_witness_against_the_token(
    api: Api, queue: Queue, ids: list[int], work: Work
) -> None:
    queue.push("new", ids[:2])
    work()
    generation, entries = queue.results("0", 10)
    queue.forget(generation, entries[-1][0])
    for record_id in ids[:2]:
        api.faults.plan("releases", record_id, *["403-json"] * 20)
    queue.push("refresh", ids[:2])
    assert work(retry_delays=(0, 0)).empty
    assert outcomes(queue) == {"dead": 2}


@pytest.mark.parametrize(
    "fault", ["429", pytest.param("429-empty", marks=pytest.mark.long), "403-html"]
)
def test_being_told_to_go_away_is_no_attempt(
    api: Api, queue: Queue, ids: list[int], work: Work, fault: str
) -> None:
    api.faults.plan("releases", ids[5], fault, fault)
    queue.push("new", ids[:20])
    work(retry_delays=(), rate_window_s=0.5)
    assert outcomes(queue) == {"stored": 20}
    assert api.journal.asked().count(ids[5]) == 3


def test_ten_failures_in_a_row_speak_against_the_service(
    settings: Settings, api: Api, queue: Queue, ids: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    api.faults.set_everywhere("500")
    queue.push("new", ids)
    settings = dataclasses.replace(settings, retry_delays=(), rate_window_s=0.5)
    worker = work_in_thread(settings, UNTIL_EMPTY)
    until(lambda: caplog.text.count("no requests for") >= 2)
    pauses, asked = caplog.text.count("no requests for"), len(api.journal.asked())
    # A busy machine may send a few more before it has read ten answers.
    assert asked <= 10 + pauses + 10, "after each pause one request tells whether to go on"
    assert re.search(r"1\d ids in a row, then another: HTTP 500", caplog.text)
    api.faults.set_everywhere("")
    worker.join()
    assert "the API answers again" in caplog.text
    assert outcomes(queue) == {"stored": len(ids)}, "no attempt was counted"


def test_the_last_ids_in_the_queue_are_not_blamed_for_an_outage(
    settings: Settings, api: Api, queue: Queue, ids: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """They were dead letters after six attempts although nothing had an answer."""
    settings = dataclasses.replace(settings, retry_delays=(), rate_window_s=0.5)
    api.faults.set_everywhere("500")
    queue.push("changed", ids[:3])
    worker = work_in_thread(settings, UNTIL_EMPTY)
    until(lambda: "no requests for" in caplog.text)
    api.faults.set_everywhere("")
    worker.join()
    assert outcomes(queue) == {"stored": 3}


@pytest.mark.parametrize("is_any_stored", [True, False])
def test_bad_ids_that_come_first_do_not_stop_the_others(
    api: Api, queue: Queue, ids: list[int], work: Work, is_any_stored: bool
) -> None:
    if is_any_stored:
        queue.push("new", ids[40:])
        work()
    bad, good = ids[:25], ids[25:40]
    for record_id in bad:
        api.faults.plan("releases", record_id, *["500"] * 1_000)
    queue.push("changed", bad)
    queue.push("backfill", good)
    api.journal.clear()
    assert work(retry_delays=(0, 0)).empty
    asked = Counter(api.journal.asked())
    assert {asked[record_id] for record_id in bad} == {3}
    assert set(good) <= set(asked)
    assert asked.total() <= 3 * 25 + 15 + 16, "one request for some failures tells who is at fault"


def test_bad_ids_are_not_asked_without_end_while_others_show_that_the_service_works(
    settings: Settings, api: Api, queue: Queue, ids: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """A worker of another kind may be the first to hear that an outage is over."""
    settings = dataclasses.replace(settings, retry_delays=(0, 0), rate_window_s=0.5)
    bad = ids[:12]
    api.faults.set_everywhere("500")
    queue.push("changed", bad)
    worker = work_in_thread(settings, UNTIL_EMPTY)
    until(lambda: "no requests for" in caplog.text)
    for record_id in bad:
        api.faults.plan("releases", record_id, *["500"] * 1_000)
    limiter = limiter_of(connect(settings), settings)
    permit = limiter.lend(20)
    assert permit is not None
    api.faults.set_everywhere("")
    limiter.answered(permit, 50_000, 49_000, "good")
    api.journal.clear()
    worker.join()
    assert outcomes(queue) == {"dead": 12}
    assert max(Counter(api.journal.asked()).values()) == 3


def test_an_outage_of_twelve_hours_makes_no_dead_letters(
    settings: Settings, api: Api, queue: Queue, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    api.faults.set_everywhere("503-html")
    queue.push("new", ids)
    settings = dataclasses.replace(
        settings, retry_delays=(60, 300, 1_800, 10_800), rate_window_s=0.2, lease_s=10**6
    )
    worker = work_in_thread(settings, UNTIL_EMPTY)
    for _ in range(12 * 6):
        monkeypatch.setattr(clock, "OFFSET_S", clock.OFFSET_S + 600)
        time.sleep(0.03)
    api.faults.set_everywhere("")
    while worker.is_alive():
        monkeypatch.setattr(clock, "OFFSET_S", clock.OFFSET_S + 60)
        worker.join(0.05)
    assert outcomes(queue) == {"stored": len(ids)}


def test_leases_live_on_while_the_quota_makes_us_wait(
    settings: Settings, api: Api, queue: Queue, ids: list[int]
) -> None:
    api.quota.limit, api.quota.window_s = 4, 1.5
    queue.push("new", ids[:8])
    settings = dataclasses.replace(
        settings, rate_window_s=1.5, lease_s=1, worker_threads=4, commit_seconds=60
    )
    worker = work_in_thread(settings, UNTIL_EMPTY)
    worker.join()
    assert sorted(api.journal.asked()) == ids[:8]
    assert outcomes(queue) == {"stored": 8}


def test_an_answer_that_comes_after_its_lease_lapsed_leaves_our_newer_lease_alone(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = Leases(queue, "host:1", 600, None, "")
    queue.push("new", [7])
    [old] = leases.claim(1)
    monkeypatch.setattr(clock, "OFFSET_S", clock.OFFSET_S + 700)
    [new] = leases.claim(1)
    assert new.token != old.token
    assert leases.complete([(old, Result(7, "new", "stored"))]) == set()
    assert leases.ours_of([old, new]) == [new]
    assert leases.give_back_all() == 1
    assert queue.depths()["new"] == 1


def test_leases_are_renewed_again_after_redis_refused_it(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewals = []

    def renew(self: Queue, held: list[Lease]) -> set[int]:
        renewals.append(held)
        if len(renewals) == 1:
            raise ConfigurationError("Redis is a read-only replica")
        return set()

    monkeypatch.setattr(Queue, "renew", renew)
    leases = Leases(queue, "host:1", 0.05, None, "")
    until(lambda: len(renewals) > 1)
    leases.give_back_all()


def test_the_ledger_hears_of_each_commit_if_it_is_here(
    settings: Settings, queue: Queue, ids: list[int], work: Work
) -> None:
    with database.open(settings.database) as opened:
        on_demand.want_ids(opened, "releases", ids[:10])
    queue.push("new", ids[:10])
    work()
    assert queue.unread() == 0
    with database.open(settings.database) as opened:
        rows = list(opened.select("releases", "alive IS NOT NULL"))
    assert [row.id for row in rows] == ids[:10]
    assert {row.status for row in rows} == {200}


def test_a_worker_says_if_nobody_packs_and_backs_up(
    settings: Settings, queue: Queue, ids: list[int], work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    with database.open(settings.database) as opened:
        on_demand.want_ids(opened, "releases", ids[:10])
    queue.push("new", ids[:10])
    work()
    assert "maintain_store.py" not in caplog.text
    with database.open(settings.database) as opened, opened.transaction() as connection:
        connection.execute(
            "INSERT INTO runs (script, kind, started, counts) VALUES (?, ?, ?, '{}')",
            ("seed_queue", "releases", int(clock.now()) - 4 * clock.DAY_S),
        )
    work()
    assert "maintain_store.py has not ended well for 4 days: " in caplog.text


def test_a_damaged_ledger_costs_no_answer(
    settings: Settings, queue: Queue, ids: list[int], work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    with database.open(settings.database) as opened:
        on_demand.want_ids(opened, "releases", ids[:10])
        asked = "SELECT rootpage, page_size FROM sqlite_master, pragma_page_size"
        page, size = opened.db.execute(f"{asked} WHERE name = 'releases'").fetchone()
        opened.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with settings.database.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    queue.push("manual", ids[:10])
    work()
    assert queue.unread() == 10
    assert "results stay in Redis until the next commit: " in caplog.text


def test_a_worker_that_goes_on_reports_to_the_ledger_that_was_rebuilt_meanwhile(
    settings: Settings, queue: Queue, ids: list[int], tmp_path: Path
) -> None:
    """Otherwise the new one never hears that anything was fetched, and asks for it for ever."""

    def is_told(record_id: int) -> bool:
        with database.open(settings.database) as ledger:
            return ledger.rows("releases", [record_id])[record_id].alive is not None

    def want(record_id: int) -> None:
        with database.open(settings.database) as ledger:
            on_demand.want_ids(ledger, "releases", [record_id])
        queue.push("manual", [record_id])

    want(ids[0])
    job = (
        dataclasses.replace(settings, commit_seconds=0),
        CrawlTask("releases", limit=3),
        Stop(40),
    )
    worker = threading.Thread(target=crawler.crawl, args=job, daemon=True)
    worker.start()
    until(lambda: is_told(ids[0]))
    for path in settings.state_dir.glob("crawler.db*"):
        path.rename(tmp_path / path.name)
    database.open(settings.database).close()
    queue.push("new", [ids[1]])
    until(lambda: stored(settings) == set(ids[:2]))
    with database.open(settings.database) as ledger:
        assert not ledger.knows_something(), "an empty one is nobody's until it is rebuilt"
    want(ids[2])
    worker.join()
    assert all(map(is_told, ids[1:3]))


@pytest.mark.long
def test_flushall_in_the_middle_does_not_hurt_the_worker(
    settings: Settings, api: Api, queue: Queue, ids: list[int], redis_client: redis.Redis
) -> None:
    api.latency_s = 0.05
    queue.push("new", ids)
    worker = work_in_thread(settings, UNTIL_EMPTY)
    until(lambda: len(api.journal.since()) >= 10)
    redis_client.flushall()
    worker.join()
    assert queue.leased() == []
    queue.push("new", ids)
    work_in_thread(settings, UNTIL_EMPTY).join()
    assert stored(settings) == set(ids)


def test_only_the_wanted_segments_are_touched(
    settings: Settings, api: Api, queue: Queue, ids: list[int], work: Work
) -> None:
    api.world.add("releases", [5_000_001, 7_000_001])
    queue.push("new", [*ids[:2], 5_000_001, 7_000_001])
    outcome = work(CrawlTask("releases", frozenset({5, 6}), until_empty=True))
    assert outcome.empty
    assert stored(settings) == {5_000_001}
    assert sum(queue.depths().values()) == 3


def test_a_branch_gets_the_commits_and_its_segment(
    settings: Settings, queue: Queue, ids: list[int], work: Work
) -> None:
    queue.push("new", ids[:5])
    assert work(CrawlTask("releases", branch="a", until_empty=True)).empty
    refs = open_store(settings).repository.refs("refs/heads/")
    assert list(refs) == ["refs/heads/crawl/a"]
    assert queue.branches() == {0: "a"}


def test_what_only_a_branch_may_fetch_is_not_waited_for_without_end(
    queue: Queue, ids: list[int], work: Work, monkeypatch: pytest.MonkeyPatch, api: Api
) -> None:
    """Its worker has ended, and the branch is not merged."""
    monkeypatch.setattr("discogs_crawler.worker.crawler.ABANDONED_S", 0.5)
    api.world.add("releases", [5_000_001])
    queue.push("new", [*ids[:5], 5_000_001])
    queue.give_back(queue.claim("gone", 1, {0}, "a"))
    outcome = work(UNTIL_EMPTY)
    assert (outcome.empty, outcome.counts["stored"]) == (False, 1)
    assert work(CrawlTask("releases", branch="a", until_empty=True)).empty
    assert work(UNTIL_EMPTY).empty


def test_a_limit_is_kept_exactly(api: Api, queue: Queue, ids: list[int], work: Work) -> None:
    queue.push("new", ids)
    outcome = work(CrawlTask("releases", limit=7))
    assert not outcome.empty
    assert len(api.journal.asked()) == 7
    assert outcomes(queue) == {"stored": 7}
    assert queue.leased() == []
    assert sum(queue.depths().values()) == len(ids) - 7


@pytest.mark.parametrize(
    "fault", ["503-html", "429", pytest.param("403-html", marks=pytest.mark.long)]
)
def test_what_goes_back_does_not_use_up_a_limit(
    settings: Settings, api: Api, queue: Queue, ids: list[int], work: Work, fault: str
) -> None:
    api.faults.set_everywhere(fault)
    queue.push("new", ids)
    end = threading.Timer(2, api.faults.set_everywhere)
    end.start()
    work(CrawlTask("releases", limit=15), rate_window_s=0.5)
    assert not end.is_alive(), "it ended before the outage"
    assert outcomes(queue) == {"stored": 15}
    assert queue.leased() == []


def test_an_empty_queue_means_that_nothing_is_delayed_either(
    api: Api, queue: Queue, ids: list[int], work: Work
) -> None:
    api.faults.plan("releases", ids[0], "500")
    queue.push("new", ids[:3])
    assert work(retry_delays=(1,)).empty
    assert outcomes(queue) == {"stored": 3}


def test_what_a_batch_no_longer_owns_is_neither_committed_nor_reported() -> None:
    batch = Batch()
    for number in (3, 1_000_000, 1, 2):
        lease = Lease(number, "new", 0, "token")
        result = Result(number, "new", "stored")
        batch.add(Item(lease, result, Edit(number, b"{}\n") if number != 3 else None))
    reported: list[Result] = []

    def store(changes: list[Edit]) -> Committed:
        assert [change.id for change in changes] == [1, 2, 1_000_000]
        ids = frozenset({2, 1_000_000})
        return Committed("e" * 40, ids, ids, 1, 0, 0, {0: "f" * 40, 1: "e" * 40})

    def report(pairs: Iterable[tuple[Lease, Result]]) -> set[int]:
        reported.extend(result for _, result in pairs)
        return {result.id for result in reported}

    done = batch.commit(store, report)
    assert [(r.id, r.changed, r.commit[:1]) for r in reported] == [
        *((2, True, "f"), (3, False, ""), (1_000_000, True, "e"))
    ]
    assert [lease.id for lease in done.lost] == [1]
    assert len(batch) == 0


def test_a_batch_survives_a_commit_that_fails(
    settings: Settings, queue: Queue, ids: list[int], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, failures = SingleStore.commit, iter([True, False])

    def fails_once(self: SingleStore, *args: Any) -> Committed:
        if next(failures, False):
            raise Unavailable("the disk is full")
        return commit(self, *args)

    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(SingleStore, "commit", fails_once)
    queue.push("new", ids[:5])
    work()
    assert stored(settings) == set(ids[:5])
    assert outcomes(queue) == {"stored": 5}


@pytest.mark.parametrize(
    ("call", "fault"), [("give_back", "403-html"), ("delay", "500"), ("pending", "")]
)
def test_redis_may_be_away_whatever_it_is_asked_next(
    api: Api,
    queue: Queue,
    ids: list[int],
    work: Work,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    fault: str,
) -> None:
    answer, failures = getattr(Queue, call), iter([True])

    def fails_once(self: Queue, *args: Any, **more: Any) -> Any:
        if next(failures, False):
            raise Unavailable("Redis does not answer")
        return answer(self, *args, **more)

    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(Queue, call, fails_once)
    api.faults.plan("releases", ids[0], fault)
    queue.push("new", ids[:1])
    assert work(rate_window_s=0.5).empty
    assert not next(failures, False), "it was asked"
    assert outcomes(queue) == {"stored": 1}


def test_patience_begins_anew_after_each_success(
    queue: Queue, ids: list[int], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, failures = SingleStore.commit, itertools.cycle([True, False])

    def fails_each_time_once(self: SingleStore, *args: Any) -> Committed:
        if next(failures):
            raise Unavailable("the disk is full")
        return commit(self, *args)

    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(patience, "PATIENCE_S", 0)
    monkeypatch.setattr(SingleStore, "commit", fails_each_time_once)
    queue.push("new", ids[:3])
    assert work(commit_every=1).empty
    assert outcomes(queue) == {"stored": 3}


class _Worker(threading.Thread):
    def __init__(self, settings: Settings, task: CrawlTask) -> None:
        super().__init__(daemon=True)
        self._settings, self._task, self.error = settings, task, BaseException()
        self.start()

    def run(self) -> None:
        assert crawler.crawl(self._settings, self._task, Stop(40)).empty


def work_in_thread(settings: Settings, task: CrawlTask) -> threading.Thread:
    return _Worker(settings, task)


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "discogs_crawler")


def test_a_signal_that_outlasts_the_wait_for_answers_does_not_make_it_endless(
    settings: Settings, redis_client: redis.Redis
) -> None:
    """As one does that comes while the worker is stopped by Ctrl-Z, or the machine sleeps."""
    limiter = Limiter(redis_client, "shared", prefix="t", window_s=60)
    fetchers = Fetchers(Client(settings, 1), limiter, "releases", 1)
    handled = []

    def dawdle(number: int, frame: object) -> None:
        handled.append(number)
        if len(handled) > 1:
            raise TimeoutError("it waits for ever")
        time.sleep(0.2)
        signal.setitimer(signal.ITIMER_REAL, 5)

    before = signal.signal(signal.SIGALRM, dawdle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        assert fetchers.answers(0.1) == []
        assert handled
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        fetchers.end()
