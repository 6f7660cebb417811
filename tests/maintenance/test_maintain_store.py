"""`maintain_store.py`: merging, upkeep, checks, changed rules, the other layout, the README."""

import dataclasses
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import redis

from discogs_crawler import config, locks
from discogs_crawler.api import cleaning, exact_json
from discogs_crawler.broker.queue import Queue
from discogs_crawler.config import Settings
from discogs_crawler.errors import EXIT_PARTLY, ConfigurationError
from discogs_crawler.ledger import consumers, database
from discogs_crawler.ledger.rows import Row
from discogs_crawler.maintenance import convert_layout, housekeeping, merge_branches, reclean
from discogs_crawler.maintenance import run as maintenance
from discogs_crawler.records import KINDS, record_path
from discogs_crawler.store import layouts, objects, packs, single
from discogs_crawler.store.fast_import import Entry, Pushed, Reply
from discogs_crawler.store.layouts import Edit, SingleStore
from tests.conftest import ROOT, Run, make_ledger
from tests.machines import Cable, processes_in, served, wait_until
from tests.store.test_store import everything, fsck, put, record
from tests.store.test_store_remote import bare, machine  # noqa: F401


def opened(settings: Settings, branch: str | None = None) -> SingleStore:
    found = layouts.open_store(settings, branch=branch)
    assert isinstance(found, SingleStore)
    return found


def plain_file(target: SingleStore, path: str, data: bytes, mode: str = "100644") -> str:
    """Commit a file behind the crawler's back."""
    made = target.publish(target.tip(), [Entry(path, data, "", mode)], "by hand\n")
    assert isinstance(made, str)
    return made


def know(settings: Settings, ids: Iterable[int]) -> None:
    """Let the ledger say that these releases are stored."""
    with database.open(settings.database) as ledger, ledger.transaction():
        ledger.save("releases", [Row(i, alive=1, crawled=1, status=200) for i in ids])


def last_run(settings: Settings) -> tuple[str, str, int]:
    """Script, kind and exit code of what ran last, as the ledger has them."""
    with sqlite3.connect(settings.database) as ledger:
        found = ledger.execute("SELECT script, kind, exit_code FROM runs ORDER BY id DESC LIMIT 1")
        return found.fetchone()


# Branches -----------------------------------------------------------------------------------------


def queue_of(client: redis.Redis, settings: Settings) -> Queue:
    return Queue(client, "releases", prefix=settings.redis_prefix, lease_s=settings.lease_s)


def test_branches_are_merged_and_brought_up_to_date(
    run: Run, settings: Settings, redis_client: redis.Redis
) -> None:
    main = opened(settings)
    first = put(main, [1]).revision
    queue = queue_of(redis_client, settings)
    queue.push("new", [1_000_001, 2_000_001])
    for name in ("one", "two"):
        (lease,) = queue.claim(name, 1, branch=name)
        put(opened(settings, name), [lease.id])
        queue.give_back([lease])
    second = put(main, [3]).revision
    assert set(queue.branches().values()) == {"one", "two"}
    done = run("maintain_store.py", "--merge")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(main.ids("releases")) == [1, 3, 1_000_001, 2_000_001]
    assert queue.branches() == {}, "their segments are anybody's again"
    parents = main.repository.run("rev-list", "--first-parent", "refs/heads/main").decode().split()
    assert {first, second} <= set(parents), "a consumer's revision was orphaned"
    again = main.tip()
    run("maintain_store.py", "--merge")
    assert main.tip() == again
    fsck(main)


def test_segments_of_a_branch_that_is_gone_are_anybodys_again(
    run: Run, settings: Settings, redis_client: redis.Redis
) -> None:
    main = opened(settings)
    put(main, [1])
    queue = queue_of(redis_client, settings)
    queue.push("new", [1_000_001])
    queue.give_back(queue.claim("somebody", 1, branch="never-committed"))
    assert queue.claim("another", 1) == []
    unreachable = run("maintain_store.py", "--merge", REDIS_URL="redis://127.0.0.1:1")
    assert (unreachable.returncode, unreachable.stderr) == (0, ""), "there is nothing to merge"
    assert run("maintain_store.py", "--merge").returncode == 0
    assert queue.branches() == {}
    assert [lease.id for lease in queue.claim("another", 1)] == [1_000_001]


def test_a_conflict_takes_one_side_and_wants_the_id_again(
    run: Run, settings: Settings, redis_client: redis.Redis
) -> None:
    """Ownership was lost with Redis: both sides changed two records and removed a third."""
    main = opened(settings)
    put(main, [1, 2, 3, 4])
    know(settings, [1, 2, 3, 4])
    other = opened(settings, "one")
    ids = [1, 2, 3, 4]
    other.commit(
        "releases", [*(Edit(i, record(i, "b")) for i in ids[:3]), Edit(4, None)], everything, {}
    )
    main.commit(
        "releases",
        [Edit(1, record(1, "m")), Edit(2, None), Edit(4, record(4, "m"))],
        everything,
        {},
    )
    done = run("maintain_store.py", "--merge")
    assert done.returncode == 0, done.stderr
    assert main.read("releases", ids) == {
        1: record(1, "m"),
        3: record(3, "b"),
        4: record(4, "m"),
    }
    with database.open(settings.database) as ledger:
        wanted = {row.id for row in ledger.select("releases", "due IS NOT NULL")}
    assert wanted == {1, 2, 4}
    assert other.tip() == main.tip()


def test_without_a_ledger_nobody_would_want_a_conflict_again(run: Run, settings: Settings) -> None:
    main = opened(settings)
    put(main, [1])
    other = opened(settings, "one")
    put(other, [1], "b")
    put(main, [1], "m")
    before = main.tip()
    done = run("maintain_store.py")
    assert done.returncode == 78
    assert "there is no ledger, so what two branches changed would never be" in done.stderr
    assert (main.tip(), set(main.branches())) == (before, {"one"})


@pytest.mark.parametrize("committed", [False, True])
def test_a_conflict_is_wanted_again_though_the_merge_ends_early(
    settings: Settings,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    committed: bool,
) -> None:
    """Right after a commit, or at another branch: no later run would find the conflict."""
    main = opened(settings)
    put(main, [1, 2])
    know(settings, [1, 2])
    for number, name in ((1, "one"), (2, "two")):
        put(opened(settings, name), [number], name)
    put(main, [1], "newer")
    publish = SingleStore.publish

    def end(self: SingleStore, *args: object, **more: object) -> str | Pushed:
        if committed or "merge branch two\n" in args:
            if committed:
                publish(self, *args, **more)  # type: ignore[arg-type]
            raise KeyboardInterrupt
        return publish(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(SingleStore, "publish", end)
    with database.open(settings.database) as ledger:
        upkeep = maintenance.Upkeep(settings, print, all_of_it=False)
        with pytest.raises(KeyboardInterrupt):
            maintenance.merge(upkeep, ledger)
        assert [row.id for row in ledger.select("releases", "due IS NOT NULL")] == [1]
    monkeypatch.undo()
    assert main.read("releases", [1]) == {1: record(1, "newer")}


def test_records_that_resemble_each_other_are_not_taken_for_renamed(settings: Settings) -> None:
    main = opened(settings)
    text = "a long text that both have " * 50
    put(main, [1], text)
    other = opened(settings, "one")
    other.commit("releases", [Edit(1, record(1, text + "!"))], everything, {})
    main.commit("releases", [Edit(1, None), Edit(2, record(2, text))], everything, {})
    conflicts: list[tuple[str, int]] = []
    merge_branches.merge(main.parts(), [], conflicts.extend)
    assert conflicts == [("releases", 1)]
    assert main.read("releases", [1, 2]) == {2: record(2, text)}


def test_nothing_is_merged_where_the_history_is_not(
    run: Run,
    settings: Settings,
    tmp_path: Path,
    bare: Path,  # noqa: F811
) -> None:
    """A machine of workers would take all that a branch has for newer: old and removed records."""
    url = f"file://{bare}"
    first = opened(machine(tmp_path, "first", url, ledger=True))
    put(first, [1, 2, 3])
    put(opened(machine(tmp_path, "second", url), "b"), [1], "newer")
    put(first, [2], "newer")
    newest = first.commit("releases", [Edit(3, None)], everything, {}).revision
    workers = opened(dataclasses.replace(settings, store_remote=config.Secret(url)))
    workers.refresh()
    done = run("maintain_store.py", "--merge", STORE_REMOTE=url)
    assert done.returncode == 78
    assert re.fullmatch(r"maintain_store.py: .* on the machine with the ledger\n", done.stderr)
    with pytest.raises(ConfigurationError, match="branch b cannot be merged without its history"):
        merge_branches.merge(workers.parts(), [], list)
    assert first.refresh() == newest
    merge_branches.merge(first.parts(), [], list)
    assert first.read("releases", [1, 2, 3]) == {1: record(1, "newer"), 2: record(2, "newer")}


def test_a_branch_that_is_deleted_or_rewound_meanwhile_harms_nobody(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = opened(settings)
    put(main, [1])
    for name in ("gone", "back"):
        put(opened(settings, name), [2 if name == "gone" else 3])
    put(main, [4])
    git = main.repository.run
    publish = SingleStore.publish

    def meanwhile(self: SingleStore, *args: object, **more: object) -> str:
        for name in ("gone", "back"):
            ref = f"refs/heads/crawl/{name}"
            tip = self.repository.tip(ref)
            if name == "gone" and tip:
                git("update-ref", "-d", ref)
            elif tip:
                git("update-ref", ref, f"{tip}~1")
        return publish(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(SingleStore, "publish", meanwhile)
    merge_branches.merge(main.parts(), [], list)
    monkeypatch.undo()
    merge_branches.merge(main.parts(), [], list)
    assert {1, 4} <= set(main.ids("releases"))
    assert "gone" not in main.branches()
    fsck(main)


# Upkeep -------------------------------------------------------------------------------------------


def test_a_night_joins_packs_backs_up_and_says_nothing(run: Run, settings: Settings) -> None:
    main = opened(settings)
    for number in range(1, 12):
        put(main, [number * 100])
    know(settings, [number * 100 for number in range(1, 12)])
    done = run("maintain_store.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(packs.find(main.repository)) <= 3
    (copy,) = (settings.state_dir / "backups").iterdir()
    with sqlite3.connect(copy) as backup:
        assert backup.execute("SELECT count(*) FROM releases").fetchone() == (11,)
    fsck(main)
    tip = main.tip()
    run("maintain_store.py")
    assert main.tip() == tip, "a second run without news makes no commit"
    assert last_run(settings) == ("maintain_store", "all", 0)


def test_a_night_of_a_machine_of_workers_only_packs(
    run: Run,
    environment: dict[str, str],
    tmp_path: Path,
    bare: Path,  # noqa: F811
) -> None:
    """It has no records: to check one it would fetch it, and keep it as a pack."""
    url = f"file://{bare}"
    whole = layouts.open_store(machine(tmp_path, "whole", url, ledger=True))
    put(whole, range(100, 150))
    main = opened(config.load(environ=environment | {"STORE_REMOTE": url}))
    for number in range(1, 5):
        put(whole, [number])
        put(main, [10 + number])
    tip = main.tip()
    done = run("maintain_store.py", STORE_REMOTE=url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(packs.find(main.repository)) == 2
    missing = main.repository.run("rev-list", "--objects", "--missing=print", "--all")
    assert missing.count(b"?") >= 50, "it has downloaded records"
    assert main.refresh() == tip, "it has committed"


def test_two_backups_are_kept(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    know(settings, [1])
    (settings.state_dir / "backups").mkdir()
    for name in ("before", "old"):
        (settings.state_dir / "backups" / f"crawler-{name}.db").touch()
    for day in range(4):
        monkeypatch.setattr("discogs_crawler.clock.OFFSET_S", day * 86_400)
        housekeeping.back_up(settings)
    kept = sorted(path.name for path in (settings.state_dir / "backups").iterdir())
    assert len(kept) == 4, "what somebody has put there takes no backup's place"
    assert kept[2:] == ["crawler-before.db", "crawler-old.db"]
    del kept[2:]
    shutil.copy(settings.state_dir / "backups" / kept[-1], settings.database)
    with database.open(settings.database) as ledger:
        assert next(ledger.select("releases", "id = 1")).alive == 1


def test_leftovers_of_dead_processes_go_and_young_files_stay(settings: Settings) -> None:
    main = opened(settings)
    put(main, [1])
    folder = main.repository.path
    push = folder / "objects/tmp_objdir-incoming-x"
    old = [folder / "fast_import_crash_7", folder / "objects/pack/tmp_pack_x", folder / "HEAD.lock"]
    young = folder / "objects/pack/tmp_pack_y"
    (push / "pack").mkdir(parents=True)
    for path in (*old, young, push / "pack/tmp_pack_z"):
        path.touch()
    old.append(push)
    for path in old:
        os.utime(path, (1, 1))
    # Without it the fetch of another process would end well, and with half a history.
    fetching = folder / "shallow.lock"
    fetching.touch()
    os.utime(fetching, (time.time() - 600,) * 2)
    housekeeping.tidy(main.repository)
    assert [path for path in old if path.exists()] == []
    assert young.exists()
    assert fetching.exists()


def test_workers_commit_while_maintenance_runs(settings: Settings) -> None:
    main = opened(settings)
    stored: list[int] = []
    waits: list[float] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            number = len(stored) + 1
            started = time.monotonic()
            put(main, [number])
            waits.append(time.monotonic() - started)
            stored.append(number)

    worker = threading.Thread(target=work)
    worker.start()
    deadline = time.monotonic() + 30
    try:
        for _ in range(6):
            before = len(stored)
            while len(stored) < before + 3 and worker.is_alive() and time.monotonic() < deadline:
                time.sleep(0.01)
            housekeeping.tidy(main.repository)
    finally:
        stop.set()
        worker.join()
    assert list(main.ids("releases")) == stored
    assert max(waits) < 5
    fsck(main)


@pytest.mark.parametrize("rounds", [3, pytest.param(60, marks=pytest.mark.long)])
def test_maintenance_can_be_killed_anywhere(
    settings: Settings, environment: dict[str, str], rounds: int
) -> None:
    main = opened(settings)
    know(settings, [])
    for number in range(rounds):
        for turn in range(4):
            put(main, [1 + number * 10 + turn])
        program = [sys.executable, str(ROOT / "bin" / "maintain_store.py")]
        process = subprocess.Popen(program, env=environment, start_new_session=True)
        time.sleep(0.3 + 0.37 * (number % 5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        fsck(main)
        for lock in main.repository.path.rglob("*.lock"):
            os.utime(lock, (1, 1))
    process = subprocess.Popen(program, env=environment)
    assert process.wait(60) == 0
    assert len(list(main.ids("releases"))) == 4 * rounds


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_it_leaves_no_git_behind_that_waits_for_the_remote(
    settings: Settings, environment: dict[str, str], tmp_path: Path, number: int
) -> None:
    opened(settings)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        remote = f"git://127.0.0.1:{silent.getsockname()[1]}/discogs.git"
        program = [sys.executable, str(ROOT / "bin" / "maintain_store.py"), "--merge"]
        process = subprocess.Popen(
            program, env=environment | {"STORE_REMOTE": remote}, stderr=subprocess.DEVNULL
        )
        caller, _ = silent.accept()
        with caller:
            process.send_signal(number)
            assert process.wait(20) == EXIT_PARTLY
            wait_until(lambda: not processes_in(tmp_path), lambda: str(processes_in(tmp_path)), 5)


def test_a_git_that_outlives_a_killed_run_harms_no_later_one(
    settings: Settings, environment: dict[str, str], run: Run, tmp_path: Path
) -> None:
    """Nobody can tell it that its run is gone: it ends when its remote does, or answers."""
    remote = tmp_path / "remotes" / "remote.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", remote], check=True)
    with served(remote.parent) as port:
        cable = Cable(("127.0.0.1", port))
        environment["STORE_REMOTE"] = f"git://127.0.0.1:{cable.port}/remote.git"
        put(opened(settings), [1])
        assert run("maintain_store.py", "--merge").returncode == 0
        cable.cut("silent")
        program = [sys.executable, str(ROOT / "bin" / "maintain_store.py"), "--merge"]
        process = subprocess.Popen(program, env=environment)
        assert cable.felt.wait(60)
        process.kill()
        process.wait()
        assert "fetch" in str(processes_in(settings.store)), "it waits"
        cable.mend()
        main = opened(settings)
        put(main, [2])
        for _ in range(2):
            done = run("maintain_store.py", "--merge")
            assert (done.returncode, done.stdout) == (0, ""), done.stderr
        wait_until(
            lambda: not processes_in(settings.store), lambda: str(processes_in(settings.store)), 30
        )
    tip = subprocess.run(["git", "-C", remote, "rev-parse", "main"], capture_output=True, text=True)
    assert tip.stdout.strip() == main.tip()
    assert list(main.ids("releases")) == [1, 2]
    fsck(main)


def test_a_second_run_at_once_is_sent_away(run: Run, settings: Settings) -> None:
    opened(settings)
    with locks.exclusive(settings.state_dir / "maintain_store.lock", "maintain_store.py"):
        done = run("maintain_store.py")
    assert done.returncode == 75
    assert f"already running as process {os.getpid()}" in done.stderr


def test_without_a_store_there_is_one_line(run: Run) -> None:
    for task in ([], ["--to-submodules"], ["--check"]):
        done = run("maintain_store.py", "-v", *task)
        assert done.returncode == 75
        assert re.fullmatch(r"maintain_store.py: .*there is no store yet.*\n", done.stderr)


def test_a_store_that_is_lost_is_told(run: Run, settings: Settings) -> None:
    """Its disk may not be mounted, which must not be as quiet as before the first day."""
    with database.open(settings.database) as ledger:
        ledger.db.execute("INSERT INTO results_cursor VALUES ('releases', 'a', '1-0')")
    done = run("maintain_store.py")
    assert done.returncode == 78
    assert re.fullmatch(r"maintain_store.py: .*there is no store yet.*\n", done.stderr)
    know(settings, [1, 2])
    for script in (["maintain_store.py"], ["export_changes.py", "--consumer", "x"]):
        done = run(*script)
        assert done.returncode == 78
        assert re.fullmatch(r".*: there is no store, but .* 2 records are in it: .*\n", done.stderr)
    assert last_run(settings) == ("maintain_store", "all", 78)


# Checks -------------------------------------------------------------------------------------------


def test_every_damage_is_named(run: Run, settings: Settings) -> None:
    main = opened(settings)
    put(main, range(1, 9))
    know(settings, [*range(1, 9), 11])
    assert run("maintain_store.py", "--check").stdout.splitlines() == [
        "releases/00/00/00/11.json: missing, the ledger says that it is stored"
    ]
    plain_file(main, record_path("releases", 2), b'{"id": 2}\n')
    plain_file(main, record_path("releases", 3), record(4))
    plain_file(main, record_path("releases", 4), b"{")
    plain_file(main, "releases/05.json", record(5))
    plain_file(main, "notes.txt", b"x")
    plain_file(main, record_path("releases", 6), record(6), "100755")
    plain_file(main, record_path("releases", 20), record(20))
    done = run("maintain_store.py", "--check")
    assert done.returncode == 65
    assert last_run(settings) == ("maintain_store", "all", 65)
    assert sorted(done.stdout.splitlines()) == [
        "notes.txt: not a record, and not ours",
        "releases/00/00/00/11.json: missing, the ledger says that it is stored",
        "releases/00/00/00/2.json: not in canonical form "
        "(keys sorted, indent 2, a line feed at the end)",
        "releases/00/00/00/20.json: stored, the ledger does not know it",
        "releases/00/00/00/3.json: it holds another record's id",
        "releases/00/00/00/4.json: not JSON at character 1 of 1",
        "releases/00/00/00/6.json: not a plain file, its mode is 100755",
        "releases/05.json: not in its place, which is releases/00/00/00/5.json",
    ]


def test_a_check_of_an_older_copy_says_so(run: Run, settings: Settings, tmp_path: Path) -> None:
    """Even if each record is there, in some version."""
    main = opened(settings)
    put(main, [1])
    know(settings, [1])
    copy = shutil.copytree(settings.store, tmp_path / "copy")
    newest = put(main, [1], "newer").revision
    with database.open(settings.database) as ledger:
        ledger.db.execute("INSERT INTO store_revisions VALUES ('releases', ?)", (newest,))
    assert run("maintain_store.py", "--check").returncode == 0
    done = run("maintain_store.py", "--check", "--store", str(copy))
    assert (done.returncode, done.stderr) == (65, "")
    assert f"an older copy: it lacks commit {newest[:12]}" in done.stdout


def test_a_check_beside_a_lost_ledger_can_be_read(run: Run, settings: Settings) -> None:
    main = opened(settings)
    put(main, [*range(1, 24), 2_000_001])
    alone = run("maintain_store.py", "--check")
    assert (alone.returncode, alone.stdout) == (0, "")
    assert f"{settings.database}: there is no ledger" in alone.stderr
    assert "--rebuild-ledger -n HASHES: this requests every record" in alone.stderr
    plain_file(main, "notes.txt", b"x")
    know(settings, [*range(1, 3), *range(31, 43)])
    done = run("maintain_store.py", "--check")
    assert done.returncode == 65
    assert done.stdout.splitlines() == [
        "notes.txt: not a record, and not ours",
        *(f"{record_path('releases', i)}: stored, the ledger does not know it"
          for i in range(3, 13)),
        *(f"{record_path('releases', i)}: missing, the ledger says that it is stored"
          for i in range(31, 41)),
        "... and 12 more: stored, the ledger does not know it",
        "... and 2 more: missing, the ledger says that it is stored",
    ]  # fmt: skip
    assert done.stderr.count("\n") == 1
    assert "run seed_queue.py --rebuild-ledger -n HASHES: this requests every" in done.stderr
    everything_found = run("maintain_store.py", "--check", "-v").stdout.splitlines()
    assert len(everything_found) == 1 + 22 + 12
    assert not [line for line in everything_found if line.startswith("...")]


def test_a_damaged_pack_is_named(run: Run, settings: Settings) -> None:
    main = opened(settings)
    put(main, range(1, 50))
    (pack,) = (main.repository.path / "objects" / "pack").glob("*.pack")
    pack.chmod(0o644)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 0xFF
    pack.write_bytes(data)
    done = run("maintain_store.py", "--check")
    assert done.returncode == 65
    assert str(main.repository.path) in done.stdout
    assert "Traceback" not in done.stderr


def test_a_pack_that_was_not_put_in_place_to_the_end_is_no_damage(
    run: Run, settings: Settings
) -> None:
    """Its index comes last; whoever wrote it has committed nothing."""
    main = opened(settings)
    put(main, [1])
    know(settings, [1])
    [pack] = (main.repository.path / "objects" / "pack").glob("*.pack")
    shutil.copy(pack, pack.with_name(f"pack-{'ab' * 20}.pack"))
    done = run("maintain_store.py", "--check")
    assert (done.returncode, done.stdout) == (0, "")
    pack.with_suffix(".idx").unlink()
    assert run("maintain_store.py", "--check").returncode == 65


def test_the_nightly_check_reads_only_what_is_new(run: Run, settings: Settings) -> None:
    main = opened(settings)
    plain_file(main, record_path("releases", 1), b"old damage")
    main.repository.run("update-ref", housekeeping.CHECKED, main.tip() or "")
    put(main, [2])
    assert run("maintain_store.py").returncode == 0
    plain_file(main, record_path("releases", 3), b"new damage")
    done = run("maintain_store.py")
    assert done.returncode == 65
    assert done.stdout.startswith("releases/00/00/00/3.json: not JSON")
    assert done.stdout.count("\n") == 1


# Changed rules ------------------------------------------------------------------------------------


def with_notes(number: int) -> bytes:
    return exact_json.dumps({"id": exact_json.Number(str(number)), "notes": "x"})


@pytest.mark.parametrize(
    ("layout", "remote"), [("single", False), ("submodules", False), ("submodules", True)]
)
def test_changed_rules_are_applied_in_technical_commits(
    run: Run, environment: dict[str, str], tmp_path: Path, layout: str, remote: bool
) -> None:
    environment["STORE_LAYOUT"] = layout
    if remote:
        (tmp_path / "there").mkdir()
        environment["STORE_REMOTE"] = str(tmp_path / "there")
        make_ledger(config.load(environ=environment).database)
    both = layouts.open_store(config.load(environ=environment))
    ids = [*range(1, 1_500), 2_000_001]
    both.commit("releases", [Edit(i, with_notes(i)) for i in ids], everything, {})
    both.settle()
    done = run("maintain_store.py", "--reclean", REMOVE_FIELDS="notes")
    assert done.returncode == 0, done.stderr
    clean_bytes = b'{\n  "id": %d\n}\n'
    assert both.read("releases", [1, 999, 2_000_001]) == {
        i: clean_bytes % i for i in (1, 999, 2_000_001)
    }
    trailers = "--format=%(trailers:key=Technical,valueonly,separator=%x2C)"
    log = both.repository.run("log", "--first-parent", trailers, both.settle() or "").decode()
    assert log.split() == ["reclean"] * (2 if layout == "single" else 3)
    tip = both.tip()
    run("maintain_store.py", "--reclean", REMOVE_FIELDS="notes")
    assert both.settle() == tip


def test_recleaning_never_overwrites_a_newer_record(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    main = opened(settings)
    main.commit("releases", [Edit(1, with_notes(1))], everything, {})
    rules = config.load(environ=environment | {"REMOVE_FIELDS": "notes"})
    publish = SingleStore.publish
    raced: list[str] = []

    def race(self: SingleStore, *args: object, **more: object) -> str:
        if not raced:
            raced.append("")
            raced[0] = put(main, [1], "newer").revision
        return publish(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(SingleStore, "publish", race)
    of_kind = {kind: cleaning.rules_for(rules, kind) for kind in KINDS}
    reclean.reclean(main, of_kind, settings.state_dir / "reclean.json")
    assert main.read("releases", [1]) == {1: record(1, "newer")}


def test_recleaning_goes_on_where_it_was_interrupted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    main = opened(settings)
    main.commit("releases", [Edit(i, with_notes(i)) for i in range(1, 41)], everything, {})
    rules = config.load(environ=environment | {"REMOVE_FIELDS": "notes"})
    of_kind = {kind: cleaning.rules_for(rules, kind) for kind in KINDS}
    monkeypatch.setattr(reclean, "BATCH", 10)
    rewrite = reclean._rewrite
    seen: list[int] = []

    def stop_at_third(*args: object) -> int:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return rewrite(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(reclean, "_rewrite", stop_at_third)
    place = settings.state_dir / "reclean.json"
    place.write_text("[]")
    with pytest.raises(KeyboardInterrupt):
        reclean.reclean(main, of_kind, place)
    assert reclean.reclean(main, of_kind, place) == 20
    assert len(seen) == 3 + 2
    assert not place.exists()


@pytest.mark.parametrize("layout", ["single", "submodules"])
def test_fields_that_only_fetching_brings_back_are_known(
    environment: dict[str, str], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment["STORE_LAYOUT"] = layout
    settings = config.load(environ=environment)
    both = layouts.open_store(settings)

    def fetched(number: int, rules: str, ago_s: int) -> None:
        monkeypatch.setattr("discogs_crawler.clock.OFFSET_S", -ago_s)
        both.commit("releases", [Edit(number, with_notes(number))], everything, {"Cleaner": rules})
        both.settle()
        monkeypatch.setattr("discogs_crawler.clock.OFFSET_S", 0)

    def of_kind(**changed: str) -> dict[str, cleaning.Rules]:
        loaded = config.load(environ=environment | changed)
        return {kind: cleaning.rules_for(loaded, kind) for kind in KINDS}

    def lost(**rules: str) -> dict[str, int]:
        """How many records lack which field."""
        with database.open(settings.database) as ledger:
            fields = reclean.lost(both, of_kind(**rules), 60).get("releases", {})
            return {name: reclean.count_lost(ledger, "releases", fields[name]) for name in fields}

    def fetch_was(ago_s: int, ids: str) -> None:
        with database.open(settings.database) as ledger, ledger.transaction():
            sql = f"UPDATE releases SET crawled = unixepoch() - {ago_s} WHERE id IN ({ids})"
            ledger.db.execute(sql)

    know(settings, [1, 2, 3])
    fetched(1, "1 -notes -images", ago_s=100)
    assert lost(REMOVE_FIELDS="n*,images,tracklist") == {}, "they only remove more"
    assert lost(REMOVE_FIELDS="images") == {"notes": 3}
    assert lost() == {"images": 3, "notes": 3}
    fetched(4, "1", ago_s=50)
    fetch_was(0, "1")
    fetch_was(70, "2")
    assert lost() == {"images": 1, "notes": 1}, "2 is in the commit of 4"
    fetch_was(0, "3")
    assert lost() == {"images": 0, "notes": 0}, "everything was fetched again"
    place = settings.state_dir / "reclean.json"
    assert reclean.reclean(both, of_kind(REMOVE_FIELDS="notes"), place) == 2
    assert lost() == {"images": 0, "notes": 3}, "recleaning removed them"


def test_recleaning_says_what_it_cannot_bring_back(run: Run, settings: Settings) -> None:
    main = opened(settings)
    main.commit("releases", [Edit(1, record(1))], everything, {"Cleaner": "1 -notes"})
    done = run("maintain_store.py", "--reclean")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == (
        "maintain_store.py: releases: earlier rules removed notes from records; only fetching them "
        "again brings it back: seed_queue.py --kind releases --refresh N --cooldown-days 0 "
        "(or --ids for some)\n"
    )
    know(settings, [1, 2])
    assert "from up to 2 records; " in (said := run("maintain_store.py", "--reclean").stderr)
    assert "--refresh 2 " in said
    with database.open(settings.database) as ledger, ledger.transaction():
        ledger.save("releases", [Row(3, hash=b"", dump=1, imported=1)])
    assert "from up to 2 records; " in (said := run("maintain_store.py", "--reclean").stderr)
    assert "--refresh 3 " in said, "it takes imported records first"


# The other layout ---------------------------------------------------------------------------------


def exported(run: Run, layout: str, name: str) -> list[str]:
    done = run("export_changes.py", "--consumer", name, STORE_LAYOUT=layout)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_conversion_keeps_every_consumers_place(
    run: Run, settings: Settings, environment: dict[str, str]
) -> None:
    main = opened(settings)
    put(main, [1, 2, 1_000_001, 3_000_001])
    know(settings, [1, 2, 1_000_001])
    assert len(exported(run, "single", "early")) == 4
    main.commit("releases", [Edit(3_000_001, None)], lambda: {3_000_001}, {})
    put(main, [2, 3], "x")
    assert len(exported(run, "single", "late")) == 4
    put(main, [1_000_001, 2_000_001], "y")
    done = run("maintain_store.py", "--to-submodules")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("converted; set STORE_LAYOUT=submodules; the old repository is ")
    again = run("maintain_store.py", "--to-submodules")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == (
        f"{settings.store} has that layout already; set STORE_LAYOUT=submodules\n"
    )
    assert run("maintain_store.py").returncode == 78, "the setting is the old one"
    assert exported(run, "submodules", "early") == [
        record_path("releases", i) for i in (2, 3, 1_000_001, 2_000_001, 3_000_001)
    ]
    assert exported(run, "submodules", "late") == [
        record_path("releases", i) for i in (1_000_001, 2_000_001)
    ]
    after = layouts.open_store(config.load(environ=environment | {"STORE_LAYOUT": "submodules"}))
    assert list(after.ids("releases")) == [1, 2, 3, 1_000_001, 2_000_001]
    fsck(after)
    with pytest.raises(ConfigurationError, match="converted meanwhile"):
        put(main, [9])


def test_a_conversion_ends_with_the_tip_and_not_with_a_place_that_history_has_lost(
    settings: Settings, environment: dict[str, str]
) -> None:
    main = opened(settings)
    kept = put(main, [1]).revision
    put(main, [2])
    lost = put(main, [4]).revision
    main.repository.run("update-ref", "refs/heads/main", kept)
    put(opened(settings), [3])
    with database.open(settings.database) as ledger:
        consumers.add(ledger.db.conn, consumers.Consumer("x", "", "all", lost))
        convert_layout.to_submodules(settings, ledger)
        place = consumers.get(ledger.db.conn, "x").revision
    after = layouts.open_store(config.load(environ=environment | {"STORE_LAYOUT": "submodules"}))
    assert list(after.ids("releases")) == [1, 3]
    assert place is not None
    assert objects.contains(after.repository.path, after.tip(), place)


def test_an_interrupted_conversion_is_finished_by_the_next(
    run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = opened(settings)
    revision = put(main, [1]).revision
    with database.open(settings.database) as ledger:
        ledger.db.execute(
            "INSERT INTO consumers (name, repository, kind, revision) VALUES ('x', '', 'all', ?)",
            (revision,),
        )

        def fail(*_: object) -> None:
            raise KeyboardInterrupt

        for step in ("_put_in_place", "_finish", "_move_consumers"):
            with monkeypatch.context() as patch:
                patch.setattr(convert_layout, step, fail)
                with pytest.raises(KeyboardInterrupt):
                    convert_layout.to_submodules(settings, ledger)
        convert_layout.to_submodules(settings, ledger)
        (place,) = ledger.db.execute("SELECT revision FROM consumers").fetchone()
    tip = SingleStore(main.repository, "main", "main", main.author).tip()
    assert place == tip != revision


def test_a_conversion_refuses_to_leave_a_branch_behind(
    run: Run, settings: Settings, environment: dict[str, str]
) -> None:
    put(opened(settings), [1])
    put(opened(settings, "one"), [2])
    done = run("maintain_store.py", "--to-submodules")
    assert done.returncode == 78
    assert "not merged: one: end their workers and run maintain_store.py --merge" in done.stderr
    assert run("maintain_store.py", "--merge").returncode == 0
    assert run("maintain_store.py", "--to-submodules").returncode == 0
    after = layouts.open_store(config.load(environ=environment | {"STORE_LAYOUT": "submodules"}))
    assert list(after.ids("releases")) == [1, 2]


@pytest.mark.parametrize("wrong", [{"STORE_BRANCH": "trunk"}, {"STORE_REMOTE": "file:///x"}])
def test_a_conversion_converts_everything_or_nothing(
    run: Run, settings: Settings, wrong: dict[str, str]
) -> None:
    put(opened(settings), [1])
    assert run("maintain_store.py", "--to-submodules", **wrong).returncode in (69, 78)
    assert not (settings.store / "single.git").exists()
    assert list(opened(settings).ids("releases")) == [1]


def test_a_conversion_waits_for_a_commit_that_is_on_its_way_to_the_remote(
    run: Run, settings: Settings, environment: dict[str, str], tmp_path: Path
) -> None:
    subprocess.run(["git", "init", "-qb", "main", "--bare", tmp_path / "remote.git"], check=True)
    remote = {"STORE_REMOTE": str(tmp_path / "remote.git")}
    make_ledger(settings.database)
    main = opened(config.load(environ=environment | remote))
    put(main, [1])
    pending = f"{single.PENDING}{int(time.time())}-0"
    alone = SingleStore(main.repository, "x", "main", main.author)
    commit = alone.publish(main.tip(), [Entry("x", b"x")], "on its way\n")
    main.repository.run("update-ref", pending, str(commit))
    done = run("maintain_store.py", "--to-submodules", **remote)
    assert (done.returncode, "on its way to the remote: end all" in done.stderr) == (75, True)
    main.repository.run("update-ref", "-d", pending)
    assert run("maintain_store.py", "--to-submodules", **remote).returncode == 0


def test_an_export_and_a_conversion_do_not_meet(
    run: Run, settings: Settings, environment: dict[str, str], tmp_path: Path
) -> None:
    main = opened(settings)
    for number in range(1, 5):
        put(main, [number])
    know(settings, [1, 2, 3, 4])
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    os.mkfifo(begun)
    os.mkfifo(go_on)
    line = f"cat > {tmp_path}/got; echo > {begun}; cat {go_on}"
    export = [sys.executable, str(ROOT / "bin" / "export_changes.py"), "--consumer", "x"]
    # A revision that is neither the tip nor yet known to be a consumer's place.
    with subprocess.Popen([*export, "--limit", "2", "--exec", line], env=environment) as exporting:
        try:
            begun.read_text()
            done = run("maintain_store.py", "--to-submodules")
            assert (done.returncode, "an export is already running" in done.stderr) == (75, True)
            go_on.write_text("")
            assert exporting.wait() == 0
        finally:
            exporting.kill()
    with locks.exclusive(settings.store / "exports.flock", "a conversion"):
        assert run("export_changes.py", "--consumer", "y").returncode == 75
    assert run("maintain_store.py", "--to-submodules").returncode == 0
    assert exported(run, "submodules", "x") == [record_path("releases", i) for i in (3, 4)]


def test_nobody_begins_anew_where_a_conversion_was_interrupted(
    run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(opened(settings), [1])
    know(settings, [1])
    assert exported(run, "single", "x") == [record_path("releases", 1)]

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with database.open(settings.database) as ledger, monkeypatch.context() as patch:
        patch.setattr(convert_layout, "_finish", fail)
        with pytest.raises(KeyboardInterrupt):
            convert_layout.to_submodules(settings, ledger)
    for layout in ("single", "submodules"):
        for command in (
            ["maintain_store.py"],
            ["worker.py", "--until-empty"],
            ["export_changes.py", "--consumer", "x"],
        ):
            done = run(*command, STORE_LAYOUT=layout)
            assert (done.returncode, "--to-submodules again" in done.stderr) == (78, True), command
    assert run("maintain_store.py", "--to-submodules").returncode == 0
    assert exported(run, "submodules", "x") == []


# The README of the repository ---------------------------------------------------------------------


def recipes(text: str) -> list[str]:
    """The commands that the README shows."""
    lines = re.findall(r"^    (git .*?)(?: +#.*)?$", text, re.MULTILINE)
    return [line for line in lines if "OLD NEW" not in line]


@pytest.mark.parametrize("layout", ["single", "submodules"])
def test_a_stranger_finds_a_record_from_the_readme_alone(
    run: Run, environment: dict[str, str], tmp_path: Path, layout: str
) -> None:
    environment["STORE_LAYOUT"] = layout
    both = layouts.open_store(config.load(environ=environment))
    put(both, [1, 13_999_999])
    # One that was lost and is empty now does not say that nothing is stored.
    database.open(config.load(environ=environment).database).close()
    assert run("maintain_store.py").returncode == 0
    text = both.repository.run("show", f"{both.tip()}:README.md").decode()
    assert "| releases | 2 | unknown | none |" in text
    assert "Data provided by Discogs" in text
    url = f"file://{both.repository.path}"
    environ = environment | {"GIT_ALLOW_PROTOCOL": "file", "GIT_CONFIG_GLOBAL": os.devnull}
    found = 0
    for number, command in enumerate(recipes(text)):
        folder = tmp_path / "stranger" / (str(number) if " clone " in command else "")
        folder.mkdir(parents=True, exist_ok=True)
        if " clone " in command:
            where = folder
        if layout == "submodules" and ":releases/" in command:
            continue
        done = subprocess.run(
            command.replace("URL", url),
            shell=True,
            cwd=where,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        # git grep ends with 1 where there is nothing to find.
        assert done.returncode == (1 if " grep " in command else 0), (command, done.stderr)
        found += done.stdout.encode() == record(1)
        path = where / "discogs" / "releases" / "13" / "99" / "99" / "13999999.json"
        found += path.exists() and path.read_bytes() == record(13_999_999)
    assert found >= 2


def test_the_readme_is_not_a_record(run: Run, settings: Settings) -> None:
    put(opened(settings), [1])
    know(settings, [1])
    run("maintain_store.py")
    assert exported(run, "single", "x") == ["releases/00/00/00/1.json"]


def test_refused_is_not_a_crash(settings: Settings) -> None:
    main = opened(settings)
    first = put(main, [1]).revision
    put(main, [2])
    late = main.publish(first, [Entry("x", b"x")], "late\n")
    assert isinstance(late, Pushed)
    assert late.reply is Reply.MOVED
    assert objects.contains(main.repository.path, main.tip(), first)
