"""The ledger's file: made, upgraded, refused, explained, and shared by many processes."""

import hashlib
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
import sqlite_utils

from discogs_crawler import clock
from discogs_crawler.broker.messages import Result
from discogs_crawler.clock import DAY_S
from discogs_crawler.errors import BadData, ConfigurationError, Unavailable
from discogs_crawler.ledger import database
from discogs_crawler.ledger.rows import DumpRow, Row
from discogs_crawler.ledger.schema import MIGRATIONS
from discogs_crawler.ledger_here import ledger_is_here
from discogs_crawler.records import KINDS
from discogs_crawler.seeding import on_demand
from tests.seeding_world import ROOT, World, queue_of, record_dump, some_contents, write_hashes


def test_every_column_of_the_schema_has_a_comment(tmp_path: Path) -> None:
    with database.open(tmp_path / "crawler.db") as ledger:
        tables = ledger.db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
        for name, sql in tables.fetchall():
            if name.startswith(("_sqlite", "sqlite_")):
                continue
            for (column,) in ledger.db.execute("SELECT name FROM pragma_table_info(?)", [name]):
                assert re.search(rf"\n *{column} [^\n]*-- \S", sql), f"{name}.{column}"
        for name, sql in ledger.db.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'view'"
        ):
            assert re.search(r"AS  -- [A-Z].*\?\n", sql), name


def test_an_older_ledger_is_upgraded_in_place(tmp_path: Path) -> None:
    path = tmp_path / "crawler.db"
    older = sqlite_utils.Database(path, strict=True)
    MIGRATIONS.apply(older, stop_before="create_views")
    older.execute("INSERT INTO releases (id, misses) VALUES (7, 1)")
    older.close()
    with pytest.raises(ConfigurationError, match="it is of an older version; run seed_queue"):
        database.open(path, read_only=True)
    with database.open(path) as ledger:
        assert ledger.db.execute("SELECT kind, id FROM gone").fetchall() == [("releases", 7)]
    with database.open(path, read_only=True) as ledger:
        assert ledger.db.execute("SELECT gone FROM progress").fetchall() == [(1,)]


def test_a_newer_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "crawler.db"
    with database.open(path) as ledger:
        ledger.db.table("_sqlite_migrations").insert(
            {"migration_set": MIGRATIONS.name, "name": "divide_by_zero", "applied_at": "2030"}
        )
    with pytest.raises(ConfigurationError, match=r"a newer version .* made it \(divide_by_zero\)"):
        database.open(path)


def test_what_is_not_a_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "crawler.db"
    with pytest.raises(ConfigurationError, match="there is no ledger yet"):
        database.open(path, read_only=True)
    path.write_bytes(b"id,title\n" * 200)
    damaged = (
        r"crawler.db: the ledger is damaged \(file is not a database\): .*crawler.db-wal .*"
        "directly afterwards.* backups.*--rebuild-"
    )
    with pytest.raises(BadData, match=damaged):
        database.open(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigurationError, match="it is empty; seed_queue"):
        database.open(path, read_only=True)
    with pytest.raises(ConfigurationError, match="cannot be used as the ledger"):
        database.open(tmp_path / "crawler.db" / "below")


def test_a_run_is_remembered_with_its_counts_and_its_exit_code(tmp_path: Path) -> None:
    with database.open(tmp_path / "crawler.db") as ledger:
        with ledger.run("seed_queue", "releases") as run:
            run.counts["added"] = 3
        with ledger.run("maintain_store", "all") as run:
            run.exit_code = 65
        for error in (BadData("no"), KeyboardInterrupt(), ValueError("a bug")):
            with pytest.raises(type(error)), ledger.run("seed_queue", "labels"):
                raise error
        rows = ledger.db.execute("SELECT script, kind, exit_code, counts FROM runs").fetchall()
        ended = ledger.db.execute("SELECT count(*) FROM runs WHERE ended >= started").fetchone()
    assert rows == [
        ("seed_queue", "releases", 0, '{"added": 3}'),
        ("maintain_store", "all", 65, "{}"),
        ("seed_queue", "labels", 65, "{}"),
        ("seed_queue", "labels", 1, "{}"),
        ("seed_queue", "labels", 70, "{}"),
    ]
    assert ended == (5,)


def test_splitting_a_dump_again_does_not_make_it_another(tmp_path: Path) -> None:
    path = write_hashes(tmp_path / "hashes.txt", {1: "a", 2: "b"})
    with database.open(tmp_path / "crawler.db") as ledger:
        for verdict in ("whole", "damaged: it ends too early", "whole"):
            record_dump(ledger, path, verdict=verdict)
        assert ledger.db.execute("SELECT verdict FROM dumps").fetchall() == [("whole",)]


def test_a_dump_is_found_by_its_bytes_its_hashes_and_its_book(tmp_path: Path) -> None:
    path = write_hashes(tmp_path / "hashes.txt", {1: "a", 2: "b"})
    result = hashlib.sha256(path.read_bytes()).digest()
    whole = {"result_sha256": result, "hash_cache_sha256": b"B" * 32}
    with database.open(tmp_path / "crawler.db") as ledger:
        assert not ledger.knows_something()
        record_dump(ledger, path, sha256=b"1" * 32, file="first", not_before=2_000, **whole)
        record_dump(ledger, path, sha256=b"2" * 32, file="older", not_before=1_000, **whole)
        record_dump(ledger, path, sha256=b"3" * 32, file="cut", verdict="damaged: cut off")
        record_dump(ledger, path, "labels", sha256=b"1" * 32, file="labels", not_before=3_000)

        def name(found: DumpRow | None) -> str | None:
            return found and found.file

        assert name(ledger.dump_of_result(result)) == "cut", "the latest of all"
        assert name(ledger.dump_of_result(result, "labels")) == "labels"
        assert ledger.dump_of_result(b"?" * 32) is None
        assert name(ledger.dump_of_file(b"2" * 32)) == "older"
        assert ledger.dump_of_file(b"3" * 32) is None
        assert ledger.hash_cache_of("releases", 1) == b"B" * 32
        assert ledger.hash_cache_of("releases", 2) is None
        assert ledger.hash_cache_of("labels", 1) is None


def test_a_ledger_is_here_if_any_id_was_ever_in_it(tmp_path: Path) -> None:
    path = tmp_path / "crawler.db"
    assert not ledger_is_here(path)
    assert not path.exists()
    path.touch()
    assert not ledger_is_here(path)
    with database.open(path) as ledger:
        assert not ledger_is_here(path)
        on_demand.want_ids(ledger, "labels", [5])
        assert ledger_is_here(path)
    assert ledger_is_here(path)
    for damaged in (tmp_path, tmp_path / "garbage"):
        if not damaged.exists():
            damaged.write_bytes(b"x" * 5_000)
        assert ledger_is_here(damaged), "whoever opens it must hear of it"


def test_a_part_of_a_transaction_that_fails_undoes_that_part_alone(tmp_path: Path) -> None:
    with database.open(tmp_path / "crawler.db") as ledger:
        with ledger.transaction():
            assert not ledger.rehearsing, "what a transaction writes is to stay"
            ledger.save("releases", [Row(1)])
            with pytest.raises(BadData), ledger.transaction():
                ledger.save("releases", [Row(2)])
                raise BadData("no")
        with pytest.raises(BadData), ledger.transaction():
            ledger.save("releases", [Row(3)])
            raise BadData("no")
        with ledger.rehearsal():
            assert ledger.rehearsing
            with ledger.transaction():
                ledger.save("releases", [Row(4)])
        assert not ledger.rehearsing
        assert ledger.knows_something()
        assert ledger.db.execute("SELECT id FROM releases").fetchall() == [(1,)]


def test_eight_processes_may_make_a_ledger_at_once(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\nfrom discogs_crawler.ledger import database\n"
        "ledger = database.open(pathlib.Path(sys.argv[1]))\n"
        "with ledger.run('test', 'releases') as counts: pass\n"
    )
    path = tmp_path / "crawler.db"
    command = [sys.executable, "-c", program, str(path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(8)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, errors
    with database.open(path) as ledger:
        assert ledger.db.execute("SELECT count(*) FROM runs").fetchone() == (8,)


def test_seeders_workers_and_readers_at_once_agree_on_every_number(
    tmp_path: Path, redis_client: redis.Redis, environment: dict[str, str]
) -> None:
    """Nobody meets a locked database, and each answer is counted once."""
    (tmp_path / "state").mkdir(mode=0o700)
    world = World(tmp_path / "state", redis_client)
    world.upstream = some_contents(1_500)
    world.seed(world.dump())
    seeder = [sys.executable, str(ROOT / "bin" / "seed_queue.py")]
    worker = (
        "import sys, time, pathlib, redis\n"
        "from discogs_crawler.seeding import exchange as handover\n"
        "from discogs_crawler.ledger import database\n"
        "from discogs_crawler.broker.messages import Result\n"
        "from discogs_crawler.broker.queue import Queue\n"
        "client = redis.Redis(unix_socket_path=sys.argv[2])\n"
        "queue = Queue(client, 'releases', prefix='discogs', lease_s=600)\n"
        "ledger = database.open(pathlib.Path(sys.argv[1]))\n"
        "while leases := queue.claim(sys.argv[3], 50):\n"
        "    now = int(time.time())\n"
        "    queue.complete([(l, Result(l.id, l.reason, 'stored', 200, now)) for l in leases])\n"
        "    handover.drain(ledger, queue)\n"
    )
    socket = environment["REDIS_URL"].removeprefix("unix://")
    path = str(world.ledger.path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", worker, path, socket, f"test:{n}"], stderr=subprocess.PIPE
        )
        for n in range(3)
    ]
    processes += [
        subprocess.Popen(seeder, env=environment, stderr=subprocess.PIPE) for _ in range(3)
    ]
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0)
    deadline = time.monotonic() + 60
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        assert reader.execute("SELECT in_dump FROM progress").fetchone() == (len(world.upstream),)
    reader.close()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (0, 75), errors
        assert b"locked" not in errors
        assert b"Traceback" not in errors
    world.seed()
    answered = world.ledger.db.execute("SELECT sum(records) FROM outcomes").fetchone()
    stored = world.ledger.db.execute("SELECT stored, wanted FROM progress").fetchone()
    assert answered == (len(world.upstream),)
    assert stored == (len(world.upstream), 0)
    assert queue_of(redis_client).unread() == 0
    world.close()


def test_all_kinds_have_their_table_and_their_view_of_stale_records(tmp_path: Path) -> None:
    with database.open(tmp_path / "crawler.db") as ledger:
        for kind in KINDS:
            assert ledger.db.table(kind).strict
            assert ledger.db.execute(f"SELECT count(*) FROM stale_{kind}").fetchone() == (0,)


def test_the_views_answer_their_questions(tmp_path: Path, redis_client: redis.Redis) -> None:
    world = World(tmp_path, redis_client)
    world.upstream = {n: f"record {n}" for n in range(1, 11)}
    world.seed(world.dump())
    del world.upstream[3]
    leases = world.claim(5)
    now = int(clock.now())
    results = [world.answer(lease, now) for lease in leases]
    results[3] = Result(4, "backfill", "dead", 500, now, failure="HTTP 500 five times")
    queue_of(redis_client).complete(list(zip(leases, results, strict=True)))
    world.seed(ids=[5])

    def ask(sql: str) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = world.ledger.db.execute(sql).fetchall()
        return rows

    assert ask("SELECT kind, in_dump, stored, percent, gone, dead, wanted FROM progress") == [
        ("releases", 10, 3, 30.0, 1, 1, 7)
    ]
    today = f"date({now}, 'unixepoch')"
    assert ask(f"SELECT outcome, records FROM outcomes_daily WHERE day = {today}") == [
        ("changed", 3),
        ("dead", 1),
        ("gone", 1),
    ]
    assert ask("SELECT id, status, misses FROM gone") == [(3, 404, 1)]
    assert ask("SELECT id, failure FROM dead") == [(4, "HTTP 500 five times")]
    assert ask("SELECT reason, records FROM waiting") == [("backfill", 6), ("manual", 1)]
    assert ask("SELECT id, reason FROM wants") == [(5, "manual")]
    # Its today is that of SQLite's clock, which no test moves.
    days = f"(strftime('%s', 'now') / 86400 - {now // DAY_S})"
    freshness = f"SELECT stored, median_days - {days}, oldest_days - {days} FROM freshness"
    assert ask(freshness) == [(3, 0, 0)]
    assert ask("SELECT id FROM stale_releases") == []
    world.close()


def test_a_full_disk_is_one_line_and_changes_nothing(tmp_path: Path) -> None:
    with database.open(tmp_path / "crawler.db") as ledger:
        (pages,) = ledger.db.execute("PRAGMA page_count").fetchone()
        ledger.db.execute(f"PRAGMA max_page_count = {pages + 3}")
        rows = [Row(n, hash=b"x" * 20) for n in range(1, 5_000)]
        with pytest.raises(Unavailable, match="nothing was written: database or disk is full"):
            with ledger.transaction():
                ledger.save("releases", rows)
        assert ledger.db.execute("SELECT count(*) FROM releases").fetchone() == (0,)
