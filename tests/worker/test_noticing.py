"""Discogs changes, and the crawler notices: fields that are new, missing, or volatile."""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import redis

from discogs_crawler import clock
from discogs_crawler.broker.connect import connect
from discogs_crawler.broker.queue import Queue
from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.config import Settings
from discogs_crawler.ledger import database, drift
from discogs_crawler.observed import Observation, Tally
from discogs_crawler.seeding import exchange
from discogs_crawler.stats import collect
from discogs_crawler.worker import crawler
from discogs_crawler.worker.crawler import CrawlTask
from discogs_crawler.worker.noticing import differing_fields
from tests.conftest import Run
from tests.discogs.api import Api
from tests.discogs.quota import Quota
from tests.discogs.world import World, invented

UNTIL_EMPTY = CrawlTask("releases", until_empty=True)


def queue_of(settings: Settings) -> Queue:
    client = connect(settings)
    return Queue(client, "releases", prefix=settings.redis_prefix, lease_s=600)


def crawl(settings: Settings, ids: list[int]) -> None:
    """Fetch the ids, and let the ledger know."""
    queue = queue_of(settings)
    queue.push("manual", ids)
    assert crawler.crawl(settings, UNTIL_EMPTY, Stop(60)).empty
    with database.open(settings.database) as ledger:
        exchange.drain(ledger, queue, wait=True)


@pytest.fixture
def at(settings: Settings) -> Iterator[Callable[[Api], Settings]]:
    yield lambda api: dataclasses.replace(
        settings, discogs_api=api.url, rate_window_s=1, commit_seconds=0.2, commit_every=10
    )


def drifts(settings: Settings) -> dict[str, tuple[str, int, str, str]]:
    """By path what it is, how often, and the years in which it was first and last seen."""

    def year(epoch: int) -> str:
        return str(datetime.fromtimestamp(epoch, UTC).year)

    with database.open(settings.database, read_only=True) as ledger:
        rows = drift.drifts(ledger.db.conn, "releases")
    return {
        row.path: (row.what, row.records, year(row.first_seen), year(row.last_seen)) for row in rows
    }


def test_ten_years_of_real_answers_show_what_was_added_and_removed_and_when(
    samples: Path,
    tmp_path: Path,
    at: Callable[[Api], Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = []
    for path in (samples / "releases").glob("*.json"):
        document = json.loads(path.read_bytes())
        answers.append((int(document.get("date_changed", "2011")[:4]), document))
    # The newest once more, as if Discogs had taken a field away and added one.
    later = dict(max(answers, key=lambda item: str(item[1].get("date_changed", "")))[1])
    del later["format_quantity"]
    later["labels"] = [label | {"country": "US"} for label in later["labels"]]
    answers.append((2026, later))
    with Api(World(), Quota(50_000, 50_000, 1), captures=tmp_path) as api:
        settings = at(api)
        for year, group in groupby(sorted(answers, key=lambda item: item[0]), lambda item: item[0]):
            shutil.rmtree(tmp_path / "releases", ignore_errors=True)
            (tmp_path / "releases").mkdir()
            ids = []
            for _, document in group:
                ids.append(document["id"])
                capture = tmp_path / "releases" / f"{document['id']}.json"
                capture.write_text(json.dumps(document))
            real_now = clock.now() - clock.OFFSET_S
            then = datetime(year, 6, 1, tzinfo=UTC).timestamp()
            monkeypatch.setattr(clock, "OFFSET_S", then - real_now)
            crawl(settings, ids)
        found = drifts(settings)
    assert found["labels[].entity_type_name"][::3] == ("missing", "2013"), "added after 2013"
    assert found["date_changed"] == ("missing", 1, "2011", "2011")
    assert found["artists_sort"][::3] == ("missing", "2017")
    assert found["is_offensive"][::3] == ("missing", "2024")
    assert found["format_quantity"] == ("missing", 1, "2026", "2026"), "removed in 2026"
    assert found["labels[].country"] == ("unknown", 1, "2026", "2026"), "added in 2026"
    assert not [path for path, row in found.items() if row[0] == "unknown" and row[2] < "2026"]


def test_a_field_that_becomes_volatile_is_named_until_it_is_removed(
    at: Callable[[Api], Settings], run: Run, redis_client: redis.Redis
) -> None:
    with Api(invented(40), Quota(50_000, 50_000, 1)) as api:
        settings = at(api)
        ids = sorted(api.world.alive["releases"])
        crawl(settings, ids)
        assert collect.take(settings).kinds[0].drift == []
        api.grown = lambda moment: {"heat": {"now": random.Random(moment).random()}, "gone": False}
        for _ in range(9):
            crawl(settings, ids)
            (kind,) = collect.take(settings).kinds
            if any(row.volatile for row in kind.churn):
                break
        assert kind.churn[0].refetched >= drift.FEWEST
        assert [(row.what, row.path) for row in kind.drift] == [
            ("unknown", "gone"),
            ("unknown", "heat"),
        ]
        assert [row.field for row in kind.churn] == ["heat"]
        said = run("stats.py").stdout
        assert "new at Discogs since" in said
        assert "not known: gone, heat" in said
        assert "REMOVE_FIELDS=heat" in "".join(said.split("\n  "))
        page = Path(settings.state_dir) / "page.html"
        metrics = Path(settings.state_dir) / "metrics"
        assert run("stats.py", "--html", page, "--prometheus", metrics).returncode == 0
        assert "What changes at every fetch" in page.read_text()
        assert 'discogs_crawler_churn_share{kind="releases",field="heat"}' in metrics.read_text()
        assert 'what="unknown",path="heat"} ' in metrics.read_text()

        done = run("maintain_store.py", "--reclean", REMOVE_FIELDS="heat")
        assert done.returncode == 0, done.stderr
        settings = dataclasses.replace(settings, remove_fields=("heat",))
        crawl(settings, ids)
        assert "REMOVE_FIELDS" not in run("stats.py").stdout
        assert collect.take(settings).kinds[0].churn == []


def test_a_new_field_that_stays_as_it_is_is_not_volatile(at: Callable[[Api], Settings]) -> None:
    with Api(invented(20), Quota(50_000, 50_000, 1)) as api:
        settings = at(api)
        ids = sorted(api.world.alive["releases"])
        crawl(settings, ids)
        api.grown = lambda moment: {"new": [1]}
        crawl(settings, ids)
        crawl(settings, ids)
        assert collect.take(settings).kinds[0].churn == []
        with database.open(settings.database, read_only=True) as ledger:
            rows = ledger.db.execute("SELECT field, records > 10 FROM churn").fetchall()
        assert rows == [("", 1)], "they were compared"


@pytest.mark.parametrize("junk", ["a string", "foreign fields"])
def test_nothing_stops_for_what_was_noticed(
    junk: str, at: Callable[[Api], Settings], redis_client: redis.Redis
) -> None:
    key = "{discogs}:releases:noticed"
    with Api(invented(3), Quota(50_000, 50_000, 1)) as api:
        settings = at(api)
        api.grown = lambda moment: {"new\n\u202e\0": 1}
        if junk == "a string":
            redis_client.set(key, "junk")
        else:
            redis_client.hset(key, mapping={"records unknown x": "many", "\xff": "1", "records": 2})
        crawl(settings, sorted(api.world.alive["releases"]))
        seen = [row.path for row in collect.take(settings).kinds[0].drift]
        assert seen == ([] if junk == "a string" else ["new???"])


def test_what_was_noticed_is_read_once_and_again_only_after_a_crash(
    settings: Settings, redis_client: redis.Redis
) -> None:
    observations = queue_of(settings).observations
    tally = Tally()
    tally.note("unknown", "a b[].c", 7, when=100)
    tally.note("unknown", "a b[].c", 8, when=50)
    tally.note("changed", "d", 9, when=60)
    first = tally.take()
    assert tally.take() == []
    observations.add(first)
    observations.add([Observation("unknown", "a b[].c", 3, 40, 200, 5)])
    seen = observations.take()
    assert sorted(seen) == [
        Observation("changed", "d", 1, 60, 60, 9),
        Observation("unknown", "a b[].c", 5, 50, 200, 7),
    ]
    observations.add(first)
    assert observations.take() == seen, "what was not forgotten, and nothing besides"
    observations.forget()
    assert sorted(observations.take()) == sorted(first)


def test_a_place_can_be_written_anywhere() -> None:
    tally = Tally()
    tally.note("unknown", "a\ud800\n\u202e\x00é", 1)
    assert [seen.path for seen in tally.take()] == ["a????é"]


def test_the_number_of_places_is_bounded(settings: Settings, redis_client: redis.Redis) -> None:
    tally = Tally()
    for number in range(1_000):
        tally.note("unknown", f"{number} {'x' * 1_000}", number)
    seen = tally.take()
    assert len(seen) == 200
    assert max(len(each.path) for each in seen) == 200
    observations = queue_of(settings).observations
    for number in range(60):
        observations.add([each._replace(path=f"{number} {each.path}") for each in seen])
    with database.open(settings.database) as ledger:
        kept = observations.take()
        assert len(kept) < 2_000
        for number in range(3):
            with ledger.transaction() as connection:
                more = [each._replace(path=f"{number} {each.path}") for each in kept]
                drift.record(connection, "releases", "api", more)
        assert len(drift.drifts(ledger.db.conn, "releases")) == drift.MOST


def stored(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def test_fields_that_differ_are_told_from_the_stored_bytes() -> None:
    before = {"a": 1, "b": [{"c": 'x\n  "d": 2'}], "e": {"f": {}}, "only before": 1, "z": 1}
    after = {"a": 1, "b": [{"c": 'y\n  "d": 2'}], "e": {"f": {}}, "only after": 1, "z": 2}
    assert differing_fields(stored(before), stored(after)) == ["b", "z"]
    assert differing_fields(stored(before), stored(before)) == []
    assert differing_fields(stored({"z": 1}), stored({"y": 0, "z": 1, "zz": 0})) == []
