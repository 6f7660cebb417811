"""What stats.py says of a ledger, and that looking changes nothing."""

import json
import shutil
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from discogs_crawler import clock
from discogs_crawler.broker.messages import CLASSES, Result
from discogs_crawler.broker.queue import Queue
from discogs_crawler.clock import DAY_S
from discogs_crawler.config import Settings
from discogs_crawler.errors import NothingYet
from discogs_crawler.ledger import database
from discogs_crawler.seeding import dump_lookup
from discogs_crawler.stats import collect, html, ledger_queries, terminal
from discogs_crawler.stats.collect import etas
from discogs_crawler.stats.snapshot import Snapshot, plain
from tests.conftest import Run
from tests.invented_ledger import invent

ROWS = 30_000


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("invented") / "crawler.db"
    invent(path, ROWS, int(clock.now()))
    return path


@pytest.fixture
def crawler(invented: Path, settings: Settings) -> Settings:
    """A crawler with an invented ledger, which the test may change."""
    settings.state_dir.mkdir(parents=True)
    with sqlite3.connect(invented) as source, sqlite3.connect(settings.database) as target:
        source.backup(target)
    return settings


@pytest.fixture
def queue(settings: Settings, redis_client: redis.Redis) -> Queue:
    return Queue(redis_client, "releases", prefix=settings.redis_prefix, lease_s=600)


def _one(settings: Settings, sql: str) -> int:
    with sqlite3.connect(settings.database) as connection:
        return int(connection.execute(sql).fetchone()[0])


def test_coverage_equals_a_count_of_the_rows(crawler: Settings) -> None:
    [kind] = collect.take(crawler).kinds
    rows = "SELECT count(*) FROM releases WHERE "
    assert kind.coverage._asdict() == {
        "in_dump": _one(crawler, rows + "dump IS NOT NULL"),
        "stored": _one(crawler, rows + "state = 'stored'"),
        "stored_in_dump": _one(crawler, rows + "state = 'stored' AND dump IS NOT NULL"),
        "imported": _one(crawler, rows + "state = 'imported'"),
        "missing": _one(crawler, rows + "state IN ('dead', 'unfetched') AND dump IS NOT NULL"),
        "gone": _one(crawler, rows + "state = 'gone'"),
        "dead": _one(crawler, rows + "state = 'dead'"),
        "wanted": _one(crawler, rows + "reason IS NOT NULL"),
    }


def test_segments_add_up_to_the_whole(crawler: Settings) -> None:
    with database.open(crawler.database) as opened, opened.transaction() as connection:
        connection.execute("INSERT INTO releases (id, dump) VALUES (37000001, 1)")
    [kind] = collect.take(crawler).kinds
    assert [segment.segment for segment in kind.segments] == [0, 37]
    sums = [sum(numbers) for numbers in zip(*(s.coverage for s in kind.segments), strict=True)]
    assert sums == list(kind.coverage)


@pytest.mark.parametrize(("share", "field"), [(0.5, "median_s"), (0.9, "p90_s")])
def test_ages_equal_those_of_the_sorted_rows(crawler: Settings, share: float, field: str) -> None:
    [kind] = collect.take(crawler).kinds
    with sqlite3.connect(crawler.database) as connection:
        days = sorted(
            int(clock.now()) // DAY_S - alive // DAY_S
            for (alive,) in connection.execute("SELECT alive FROM releases WHERE state = 'stored'")
        )
    expected = days[-(-int(len(days) * share * 100) // 100) - 1]
    assert getattr(kind.ages, field) == expected * DAY_S


def test_the_queue_is_shown_by_class(crawler: Settings, queue: Queue) -> None:
    queue.push("changed", range(1, 101))
    queue.push("backfill", range(200, 1_200))
    leases = queue.claim("host:1", 10)
    queue.delay(leases[0], 60, count_attempt=True)
    [kind] = collect.take(crawler).kinds
    rows = {row.reason: row for row in kind.classes}
    assert list(rows) == list(CLASSES)
    assert rows["changed"][3:6] == (90, 9, 1)
    assert rows["backfill"].pending == 1_000
    assert [(worker.owner, worker.leased) for worker in kind.workers] == [("host:1", 9)]


def test_answers_that_the_ledger_has_not_read_count_as_answers(
    crawler: Settings, queue: Queue
) -> None:
    before = collect.take(crawler).kinds[0].rate.answers
    queue.push("changed", [1])
    [lease] = queue.claim("host:1", 1)
    queue.complete([(lease, Result(1, "changed", "stored", 200, int(clock.now())))])
    [kind] = collect.take(crawler).kinds
    assert kind.unread == 1
    assert kind.rate.answers == before + 1


def test_without_redis_the_rest_is_shown_at_once(crawler: Settings, run: Run) -> None:
    started = time.monotonic()
    done = run("stats.py", REDIS_URL="redis://127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert "! the queue is unknown: Redis at 127.0.0.1:1 does not answer" in done.stdout
    assert "in the dump" in done.stdout
    assert time.monotonic() - started < 10


def test_looking_starts_no_private_redis(crawler: Settings, run: Run) -> None:
    done = run("stats.py", REDIS_URL="")
    assert done.returncode == 0, done.stderr
    assert "the queue is unknown" in done.stdout
    assert not (crawler.state_dir / "redis").exists()


def test_looking_leaves_the_ledger_and_redis_as_they_were(
    crawler: Settings, queue: Queue, redis_client: redis.Redis, run: Run
) -> None:
    queue.push("new", range(1, 50))
    ledger_before = crawler.database.read_bytes()
    keys = {key: redis_client.dump(key) for key in redis_client.scan_iter()}
    assert run("stats.py").returncode == 0
    assert crawler.database.read_bytes() == ledger_before
    kept = {key: redis_client.dump(key) for key in keys}
    assert kept == keys


def test_looking_works_while_somebody_writes(crawler: Settings) -> None:
    stop = threading.Event()

    def write() -> None:
        with database.open(crawler.database) as opened:
            number = 1_000_000
            while not stop.is_set():
                with opened.transaction() as connection:
                    number += 1
                    connection.execute("INSERT INTO releases (id, dump) VALUES (?, 1)", (number,))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            [kind] = collect.take(crawler).kinds
            sums = [sum(row) for row in zip(*(s.coverage for s in kind.segments), strict=True)]
            assert sums == list(kind.coverage)
    finally:
        stop.set()
        writer.join()


def test_no_ledger_is_one_line_and_75(settings: Settings, run: Run) -> None:
    done = run("stats.py", "-v")
    assert done.returncode == 75
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    with pytest.raises(NothingYet):
        collect.take(settings)


def test_an_empty_ledger_is_shown_too(settings: Settings, run: Run) -> None:
    database.open(settings.database).close()
    done = run("stats.py", "--html", settings.state_dir / "page.html")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    page = (settings.state_dir / "page.html").read_text()
    told = run("stats.py").stdout
    assert "queue: nothing is wanted" in told
    assert "stored 0   gone 0   dead 0\n" in told
    for text in (told, page):
        assert "within –" not in text
        assert "took –" not in text
        assert "0 of 0" not in text
        assert "assume the whole quota" not in text, "there is nothing to estimate"


def test_a_ledger_that_was_seeded_and_not_crawled_says_so(crawler: Settings, run: Run) -> None:
    with database.open(crawler.database) as opened, opened.transaction() as connection:
        connection.execute("UPDATE releases SET alive = NULL, crawled = NULL, status = NULL")
        connection.execute("DELETE FROM outcomes")
    told = run("stats.py", "--html", crawler.state_dir / "page.html", "--json").stdout
    assert json.loads(told)["kinds"][0]["ages"] == {"median_s": None, "p90_s": None, "days": {}}
    assert "within –" not in (crawler.state_dir / "page.html").read_text()
    told = run("stats.py").stdout
    assert "last seen" not in told
    assert "0.0 %   0 of " in told
    assert "no answers measured\n" in told
    assert "; times assume the whole quota\n" in told


def test_what_was_seen_today_is_not_within_today(crawler: Settings) -> None:
    with database.open(crawler.database) as opened, opened.transaction() as connection:
        connection.execute("UPDATE releases SET alive = ? WHERE alive > 0", (int(clock.now()),))
    snapshot = collect.take(crawler)
    assert "last seen: half today, 90 % today\n" in terminal.render(snapshot)
    assert "Half of the records were seen today, nine of ten today." in html.render(snapshot)


def test_the_size_of_the_ledger_is_that_of_its_log_as_well(crawler: Settings) -> None:
    with database.open(crawler.database) as opened:
        with opened.transaction() as connection:
            connection.execute("UPDATE releases SET misses = misses + 1")
        files = [crawler.database, crawler.database.with_name("crawler.db-wal")]
        assert min(path.stat().st_size for path in files) > 0
        assert collect.take(crawler).database_bytes == sum(path.stat().st_size for path in files)


def test_eighty_columns_hold_everything(crawler: Settings, queue: Queue, run: Run) -> None:
    queue.push("backfill", range(1, 1_000))
    queue.claim("a-machine-with-a-long-name.example.org:123456", 100)
    with database.open(crawler.database) as opened, opened.transaction() as connection:
        connection.execute("UPDATE counts SET records = records * 100000")
        connection.execute("UPDATE releases SET failure = 'a very long cause of it' || zeroblob(0)")
    lines = run("stats.py").stdout.splitlines()
    assert lines
    assert max(map(len, lines)) <= terminal.WIDTH
    assert not any(line.endswith(" ") for line in lines)


def test_a_terminal_without_the_bars_gets_the_rest(crawler: Settings, run: Run) -> None:
    for encoding in ("latin-1", "ascii"):
        done = run("stats.py", PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stderr) == (0, "")
        assert "?? releases ??" in done.stdout


def test_json_has_what_the_snapshot_has(crawler: Settings, run: Run) -> None:
    done = run("stats.py", "--json", "--kind", "releases")
    told = json.loads(done.stdout)
    expected = json.loads(json.dumps(plain(collect.take(crawler, "releases"))))
    assert told["kinds"][0]["coverage"] == expected["kinds"][0]["coverage"]
    assert 0 < told["kinds"][0]["coverage"]["share"] < 1
    assert set(told) == set(Snapshot._fields)


def test_prometheus_reads_the_metrics(crawler: Settings, queue: Queue, run: Run) -> None:
    queue.push("new", range(1, 50))
    with database.open(crawler.database) as opened, opened.transaction() as connection:
        connection.execute("UPDATE releases SET failure = 'a \"\\ b' || char(10) WHERE id = 1")
    target = crawler.state_dir / "discogs.prom"
    assert run("stats.py", "--prometheus", target).stdout == ""
    families = {
        family.name: family.samples for family in text_string_to_metric_families(target.read_text())
    }
    assert all(name.startswith("discogs_crawler_") for name in families)
    [pending] = [
        sample.value
        for sample in families["discogs_crawler_queue_pending"]
        if sample.labels == {"kind": "releases", "reason": "new"}
    ]
    assert pending == 49
    causes = {sample.labels["failure"] for sample in families["discogs_crawler_dead_letters"]}
    assert 'a "\\ b ' in causes
    assert families["discogs_crawler_redis_up"][0].value == 1
    [files] = families["discogs_crawler_consumer_file_sequence"]
    assert (files.labels["consumer"], files.value) == ("weekly-report", 1_234)
    assert files.labels["folder"] == "/srv/www/discogs"


def test_a_file_that_cannot_be_written_is_one_line_and_78(crawler: Settings, run: Run) -> None:
    target = crawler.state_dir / "missing" / "discogs.prom"
    done = run("stats.py", "--prometheus", target)
    assert done.returncode == 78
    assert done.stderr == f"stats.py: {target}: cannot be written: No such file or directory\n"


def test_a_class_waits_for_those_above_it_and_for_what_joins_them() -> None:
    backlog = {"changed": 1_000, "backfill": 10_000}
    alone = etas(CLASSES, backlog, {}, per_day=1_000)
    assert alone["changed"] == DAY_S
    assert alone["backfill"] == 11 * DAY_S
    joined = etas(CLASSES, backlog, {"changed": 500}, per_day=1_000)
    assert joined["changed"] == DAY_S
    assert joined["backfill"] == 22 * DAY_S
    assert joined["manual"] == 0


def test_a_class_that_will_never_be_served_has_no_estimate() -> None:
    assert etas(CLASSES, {"refresh": 5}, {"changed": 90}, per_day=80)["refresh"] is None


def test_nothing_measured_assumes_the_quota_and_says_so(crawler: Settings) -> None:
    with database.open(crawler.database) as opened, opened.transaction() as connection:
        connection.execute("DELETE FROM outcomes")
    snapshot = collect.take(crawler)
    assert snapshot.kinds[0].rate.assumed
    assert snapshot.kinds[0].rate.per_day == snapshot.quota.per_day == 25 * 60 * 24
    assert "times assume the whole quota" in terminal.render(snapshot)
    assert any("does a worker run?" in problem for problem in snapshot.problems)


def test_a_damaged_dump_and_a_failed_run_are_named(crawler: Settings) -> None:
    now = int(clock.now())
    with database.open(crawler.database) as opened, opened.transaction() as connection:
        connection.execute("UPDATE dumps SET not_after = not_after - 86400 * 60")
        connection.execute(
            "INSERT INTO dumps (kind, file, not_before, not_after, records, verdict, damaged, "
            "canonical_version, recorded) VALUES ('releases', 'bad.xml.gz', :now, :now, 1, "
            "'damaged: it is cut off', 0, 1, :now)",
            {"now": now},
        )
        connection.execute(
            "INSERT INTO runs (script, kind, started, ended, exit_code, counts) "
            "VALUES ('seed_queue', 'releases', :now, :now, 65, '{}'), "
            "('seed_queue', 'labels', :now, :now, 1, '{\"withheld_confirm\": 2000}'), "
            "('seed_queue', 'masters', :now, :now, 1, '{}'), "
            "('maintain_store', 'all', :now, :now, 78, '{}')",
            {"now": now},
        )
    problems = collect.take(crawler).problems
    assert "bad.xml.gz: damaged: it is cut off" in problems
    assert "the last whole dump of releases is 69 days old" in problems
    assert "seed_queue of releases ended with exit code 65" in problems
    assert "maintain_store ended with exit code 78" in problems
    assert any("seed_queue of labels withheld 2,000 confirmations" in line for line in problems)
    assert not any("masters" in line for line in problems)
    with database.open(crawler.database) as opened, opened.transaction() as connection:
        connection.execute(
            "UPDATE dumps SET verdict = ? WHERE file = 'bad.xml.gz'",
            (dump_lookup.FOREIGN_VERDICT,),
        )
    assert not any("bad.xml.gz" in line for line in collect.take(crawler).problems)


def test_days_without_the_nightly_job_are_a_problem(crawler: Settings) -> None:
    """It is not run later on a machine that is off at night."""

    def problems(sql: str) -> list[str]:
        with database.open(crawler.database) as opened, opened.transaction() as connection:
            connection.execute(sql)
        return [line for line in collect.take(crawler).problems if "has not ended well" in line]

    begun = "UPDATE runs SET started = started - {0}, ended = ended - {0}"
    assert problems(begun.format(2 * DAY_S)) == []
    [line] = problems(begun.format(DAY_S))
    assert line.startswith("maintain_store.py has not ended well for 3 days: ")
    another = (
        "INSERT INTO runs (script, kind, started, ended, exit_code, counts) "
        "SELECT script, kind, unixepoch(), unixepoch(), {0}, '{{}}' FROM runs "
        "WHERE script = 'maintain_store' LIMIT 1"
    )
    assert problems(another.format(65)) == [line]
    assert problems(another.format(0)) == []
    [line] = problems("DELETE FROM runs WHERE script = 'maintain_store'")
    assert line.startswith("maintain_store.py has not ended well for 153 days: "), "it never did"
    assert problems("DELETE FROM counts") == [], "there is nothing to keep"


def test_who_gets_files_is_shown_with_their_number_and_folder(
    crawler: Settings, queue: Queue, run: Run
) -> None:
    assert "\nweekly-report: file 1,234 in /srv/www/discogs\n" in run("stats.py").stdout
    found = {row["name"]: row for row in json.loads(run("stats.py", "--json").stdout)["consumers"]}
    assert (found["weekly-report"]["sequence"], found["search-index"]["sequence"]) == (1_234, 0)
    assert found["weekly-report"]["folder"] == "/srv/www/discogs"
    page = crawler.state_dir / "stats.html"
    run("stats.py", "--html", page)
    assert "weekly-report: file 1,234 in /srv/www/discogs." in page.read_text()


def test_a_consumer_is_behind_by_the_commits_since_its_revision(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            [*command, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q", "-b", "main")
    git("commit", "-q", "--allow-empty", "-m", "first")
    first = git("rev-parse", "HEAD")
    git("commit", "-q", "--allow-empty", "-m", "second")
    git("commit", "-q", "--allow-empty", "-m", "third")
    assert collect.behind(str(tmp_path / ".git"), first, "main") == 2
    assert collect.behind(str(tmp_path / ".git"), None, "main") == 3
    assert collect.behind(str(tmp_path / ".git"), "0" * 40, "main") is None
    assert collect.behind("https://example.org/discogs.git", first, "main") is None
    shutil.rmtree(tmp_path / ".git")
    assert collect.behind(str(tmp_path / ".git"), first, "main") is None


def test_the_first_dump_is_no_measure_of_what_arrives(crawler: Settings) -> None:
    with database.open(crawler.database) as opened:
        months = ledger_queries.arriving(opened.db.conn, "releases", clock.now())
        assert 0 < months["new"] < ROWS / 30 / 100
        opened.db.execute("DELETE FROM dumps WHERE id > 1")
        assert ledger_queries.arriving(opened.db.conn, "releases", clock.now())["new"] == 0
