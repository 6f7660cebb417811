"""The whole chain as a new user runs it: dump, hashes, queue, three workers, Git, consumer."""

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlite_utils

from discogs_crawler import config
from discogs_crawler.api import cleaning, exact_json
from discogs_crawler.clock import DAY_S
from discogs_crawler.records import record_path
from discogs_crawler.store import layouts
from tests.conftest import ROOT, Run
from tests.discogs.api import Api
from tests.discogs.dump import write
from tests.discogs.quota import Quota
from tests.discogs.world import World, invented

RECORDS = 1_000
WORKERS = 3
# Long enough that no answer takes half of it, which is when a request is given up.
WINDOW_S = 4.0
REQUESTS_A_WINDOW = 4_000


class Upstream:
    """Discogs, and what a user's crawler is told of where to find it."""

    def __init__(self, world: World, folder: Path, captures: Path | None = None) -> None:
        self.world = world
        self.folder = folder
        self.api = Api(world, Quota(REQUESTS_A_WINDOW, window_s=WINDOW_S), captures=captures)
        self.day = 0
        self.heard = 0

    @property
    def settings(self) -> dict[str, str]:
        return {
            "DISCOGS_API": self.api.url,
            "DISCOGS_TOKEN": "not-a-real-one",
            "RATE_WINDOW_S": str(WINDOW_S),
            "CLOCK_OFFSET_S": str(self.day * DAY_S),
        }

    def dump(self) -> Path:
        """A dump of the world as it is, with the date that it is now."""
        now = time.time() + self.day * DAY_S
        name = time.strftime("discogs_%Y%m%d_releases.xml.gz", time.gmtime(now))
        write(self.folder / name, self.world, "releases")
        os.utime(self.folder / name, (now, now))
        return self.folder / name

    def requests(self) -> list[int]:
        """The ids that were asked for since the last call, sorted; none may have been refused."""
        requests = self.api.journal.since(self.heard)
        self.heard += len(requests)
        assert [request for request in requests if request.status == 429] == []
        return sorted(request.id for request in requests if request.id)


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    upstream = Upstream(invented(RECORDS), tmp_path)
    yield upstream
    upstream.api.close()


def crawl(environment: dict[str, str], upstream: Upstream, workers: int = WORKERS) -> None:
    """Let so many workers run at once until nothing is left to do."""
    command = [sys.executable, str(ROOT / "bin" / "worker.py"), "--until-empty"]
    processes = [
        subprocess.Popen(
            command,
            env=environment | upstream.settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(workers)
    ]
    for process in processes:
        printed = process.communicate(timeout=120)
        assert printed == ("", "")
        assert process.returncode == 0


def succeed(done: "subprocess.CompletedProcess[str]") -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def seed(run: Run, upstream: Upstream) -> None:
    """Split today's dump and queue what it shows."""
    dump = upstream.dump()
    hashes = dump.with_suffix(".txt")
    succeed(run("discogs_xml_split.py", "-d", dump, "-r", hashes, **upstream.settings))
    succeed(run("seed_queue.py", "-n", hashes, **upstream.settings))


def exported(run: Run, upstream: Upstream) -> list[str]:
    arguments = ("--consumer", "demo", "--format", "status")
    return succeed(run("export_changes.py", *arguments, **upstream.settings)).splitlines()


def status_lines(letter: str, ids: list[int]) -> set[str]:
    return {f"{letter}\t{record_path('releases', record_id)}" for record_id in ids}


def assert_the_store_equals(world: World, environment: dict[str, str]) -> None:
    settings = config.load(environ=environment)
    rules = cleaning.rules_for(settings, "releases")
    held = layouts.open_store(settings)
    stored = held.read("releases", list(held.ids("releases")))
    assert set(stored) == set(world.alive["releases"])
    for record_id, data in stored.items():
        answer = json.dumps(world.document("releases", record_id, moment=1)).encode()
        assert data == cleaning.clean(exact_json.loads(answer), rules), record_id


def test_two_months_from_dump_to_consumer(
    run: Run, upstream: Upstream, environment: dict[str, str]
) -> None:
    world = upstream.world
    seed(run, upstream)
    in_dump = sorted(world.alive["releases"])
    gone = in_dump[50::70]
    world.remove("releases", gone)
    crawl(environment, upstream)

    assert upstream.requests() == in_dump, "each id of the dump is asked for exactly once"
    assert_the_store_equals(world, environment)
    ledger = sqlite_utils.Database(environment["STATE_DIR"] + "/crawler.db")
    assert [row["id"] for row in ledger.query("SELECT id FROM gone ORDER BY id")] == gone
    assert set(exported(run, upstream)) == status_lines("A", sorted(world.alive["releases"]))

    changes = world.let_a_month_go_by()["releases"]
    upstream.day = 31
    succeed(run("maintain_store.py", **upstream.settings))
    seed(run, upstream)
    crawl(environment, upstream)
    wanted = changes["edited"] + changes["added"] + changes["removed"]
    assert upstream.requests() == sorted(wanted), "only what differs is asked for"
    changed = status_lines("M", changes["edited"]) | status_lines("A", changes["added"])
    assert set(exported(run, upstream)) == changed

    upstream.day = 33
    succeed(run("seed_queue.py", **upstream.settings))
    crawl(environment, upstream, workers=1)
    assert upstream.requests() == changes["removed"], "a removal is confirmed a day later"
    assert_the_store_equals(world, environment)
    assert set(exported(run, upstream)) == status_lines("D", changes["removed"])
    assert exported(run, upstream) == []


def test_the_real_captures_pass_through_the_same_chain(
    run: Run, samples: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    head = (samples / "xml" / "discogs_20260401_releases.head10000lines.xml").read_bytes()
    cut_off = tmp_path / "discogs_20260401_releases.xml.gz"
    hashes = tmp_path / "hashes.txt"
    cut_off.write_bytes(gzip.compress(head))
    refused = run("discogs_xml_split.py", "-d", cut_off, "-r", hashes)
    assert refused.returncode == 65
    assert cut_off.name in refused.stderr
    assert not hashes.exists()

    whole = head[: head.rindex(b"\n<release ")] + b"\n</releases>\n"
    cut_off.write_bytes(gzip.compress(whole))
    succeed(run("discogs_xml_split.py", "-d", cut_off, "-r", hashes))
    in_dump = [int(line.split("\t")[0]) for line in hashes.read_text().splitlines()]
    assert len(in_dump) == whole.count(b"\n<release ")

    captured = {int(p.stem) for p in (samples / "releases").glob("*.json") if p.stem.isdigit()}
    upstream = Upstream(World(), tmp_path, captures=samples)
    try:
        succeed(run("seed_queue.py", "-n", hashes, **upstream.settings))
        ids = ",".join(map(str, sorted(captured)))
        succeed(run("seed_queue.py", "--ids", ids, **upstream.settings))
        crawl(environment, upstream, workers=1)
        assert set(upstream.requests()) == {*in_dump, *captured}
    finally:
        upstream.api.close()
    held = layouts.open_store(config.load(environ=environment))
    stored = held.read("releases", list(held.ids("releases")))
    assert set(stored) == captured
    for record_id, data in stored.items():
        answer = json.loads((samples / "releases" / f"{record_id}.json").read_text())
        assert json.loads(data)["title"] == answer["title"]


def restore_a_damaged_ledger(run: Run, upstream: Upstream, ledger: Path, copy: Path) -> None:
    """Whatever meets the damage says the same; what it says helps."""
    (dump,) = upstream.folder.glob("*.xml.gz")
    damaged = ledger.read_bytes()[: ledger.stat().st_size // 2 + 100]
    ledger.write_bytes(damaged)
    for command in (
        ["seed_queue.py"],
        ["discogs_xml_split.py", "-d", dump, "-r", upstream.folder / "again.txt"],
        ["worker.py", "--check"],
        ["worker.py", "--until-empty"],
        ["stats.py"],
        ["export_changes.py", "--list"],
        ["maintain_store.py"],
    ):
        refused = run(*command, **upstream.settings)
        told = [
            line for line in (refused.stdout + refused.stderr).splitlines() if "damaged" in line
        ]
        assert refused.returncode == 65, command
        assert len(told) == 1, command
        for help_ in (
            f"{ledger}: the ledger is damaged",
            str(copy.parent),
            "--rebuild-ledger",
            "--adopt",
        ):
            assert help_ in told[0], command
        assert ledger.read_bytes() == damaged
    for suffix in ("", "-wal", "-shm"):
        Path(f"{ledger}{suffix}").unlink(missing_ok=True)
    ledger.write_bytes(copy.read_bytes())
    succeed(run("seed_queue.py", **upstream.settings))


def test_a_lost_ledger_is_not_replaced_in_silence(
    run: Run, tmp_path: Path, environment: dict[str, str]
) -> None:
    upstream = Upstream(invented(30), tmp_path)
    try:
        seed(run, upstream)
        crawl(environment, upstream, workers=1)
        succeed(run("maintain_store.py", **upstream.settings))
        state = Path(environment["STATE_DIR"])
        [copy] = (state / "backups").glob("*.db")
        kept = copy.read_bytes()
        restore_a_damaged_ledger(run, upstream, state / "crawler.db", copy)
        for path in state.glob("crawler.db*"):
            path.rename(tmp_path / path.name)
        refused = run("seed_queue.py", **upstream.settings)
        assert refused.returncode == 78
        assert "--rebuild-ledger" in refused.stderr
        assert "requests every record once more" in refused.stderr
        succeed(run("maintain_store.py", **upstream.settings))
        assert copy.read_bytes() == kept, "an empty ledger takes no good copy's place"
        assert run("export_changes.py", "--list", **upstream.settings).returncode == 78
        [hashes] = tmp_path.glob("discogs_*.txt")
        rebuild = ("--rebuild-ledger", "--adopt", "-n", hashes, "--dump-date", "20261101")
        rebuilt = run("seed_queue.py", *rebuild, **upstream.settings)
        assert rebuilt.returncode == 0
        assert "the places of consumers were in the lost ledger" in rebuilt.stderr
        [row] = sqlite_utils.Database(state / "crawler.db").query("SELECT stored FROM progress")
        assert row["stored"] == 30
    finally:
        upstream.api.close()
