"""Conversion of the store and rebuilding of the ledger while all else runs, and some are killed."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from discogs_crawler import clock, config
from discogs_crawler.api import cleaning, exact_json
from discogs_crawler.store import layouts
from discogs_crawler.store.single import FROM_DUMP
from tests.chaos.consumer import EXPORT, EXPORT_FILES, Follower
from tests.conftest import ROOT, Run
from tests.discogs import dump as dumps
from tests.discogs.api import Api
from tests.discogs.quota import Quota
from tests.discogs.world import invented
from tests.importing.test_import_dump import expected
from tests.queue_audit import places

RECORDS = 250

# They begin within this time of each other, and are killed within this time of their beginning.
BEGIN_S = 1.0
KILL_S = 1.5
KILLED = 0.3

CONVERT = ("maintain_store.py", "--to-submodules")

# Done, partly, bad data, unavailable, try later, configuration; killed. Never usage, never a bug.
EXPECTED = {0, 1, 65, 69, 75, 78, -signal.SIGKILL}


class Installation:
    """A crawler between two dumps: some records imported, some fetched, a consumer on the way."""

    def __init__(
        self, run: Run, environment: dict[str, str], api: Api, client: redis.Redis, folder: Path
    ) -> None:
        self._run, self.environment, self.api, self.client = run, environment, api, client
        self.folder, self.state = folder, Path(environment["STATE_DIR"])
        self.day = 0
        self.layout = "single"
        self.follower = Follower(folder / "files")
        self.exports = (*EXPORT_FILES, str(folder / "files"))
        self.dump = self._dump_of_today()
        self.call("discogs_xml_split.py", "-d", self.dump, "-r", self.hashes)
        self.call("seed_queue.py", "-n", self.hashes, "--adopt")
        self.call("import_dump.py", "-d", self.dump)
        self.call(*self.exports)
        ids = sorted(api.world.alive["releases"])
        self.call("seed_queue.py", "--ids", *ids[:10])
        self.call("worker.py", "--limit", 8)
        self.call(*EXPORT)
        api.world.edit("releases", ids[4:14])
        api.world.remove("releases", ids[20:21])
        api.world.add("releases", [ids[-1] + 1, 1_000_001])
        self.old_hashes = self.hashes
        self.day = 31
        self.dump = self._dump_of_today()
        self.call("discogs_xml_split.py", "-d", self.dump, "-r", self.hashes)

    @property
    def hashes(self) -> Path:
        return Path(f"{self.dump}.hashes")

    def _dump_of_today(self) -> Path:
        moment = time.time() + self.day * clock.DAY_S
        name = time.strftime("discogs_%Y%m%d_releases.xml.gz", time.gmtime(moment))
        dumps.write(self.folder / name, self.api.world, "releases")
        os.utime(self.folder / name, (moment, moment))
        return self.folder / name

    def settings(self) -> dict[str, str]:
        offset = str(self.day * clock.DAY_S)
        return self.environment | {"CLOCK_OFFSET_S": offset, "STORE_LAYOUT": self.layout}

    def call(self, script: str, *arguments: object, codes: tuple[int, ...] = (0,)) -> str:
        done = self._run(script, *arguments, **self.settings())
        assert done.returncode in codes, f"{script}: {done.returncode}: {done.stderr}"
        return done.stdout + done.stderr

    def race(self, *commands: tuple[object, ...], seed: int) -> None:
        """Let them begin at random, kill some, and wait for the others."""
        chance = random.Random(seed)
        acts: list[tuple[float, int, bool]] = []
        for number in range(len(commands)):
            begins = chance.uniform(0, BEGIN_S)
            acts.append((begins, number, True))
            if chance.random() < KILLED:
                acts.append((begins + chance.uniform(0.05, KILL_S), number, False))
        running: dict[int, subprocess.Popen[str]] = {}
        started = time.monotonic()
        for moment, number, begins in sorted(acts):
            time.sleep(max(0, started + moment - time.monotonic()))
            script, *arguments = commands[number]
            if not begins:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(running[number].pid, signal.SIGKILL)
                continue
            running[number] = subprocess.Popen(
                [sys.executable, ROOT / "bin" / str(script), *map(str, arguments)],
                env=self.settings(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        for number, process in running.items():
            said = process.communicate(timeout=120)[1]
            assert process.returncode in EXPECTED, f"{commands[number]}: {said}"
            assert "Traceback" not in said, said

    def others(self) -> Iterator[tuple[object, ...]]:
        yield "discogs_xml_split.py", "-d", self.dump, "-r", f"{self.hashes}.again"
        yield "seed_queue.py", "-n", self.hashes
        yield "import_dump.py", "-d", self.dump
        yield "worker.py", "--until-empty", "--max-seconds", "3"
        yield EXPORT

    def live_on(self, *, is_told: bool) -> None:
        """What cron does until everything is as it is upstream; `is_told`: the follower, too."""
        self.call("discogs_xml_split.py", "-d", self.dump, "-r", self.hashes)
        self.call("seed_queue.py", "-n", self.hashes)
        self.call("import_dump.py", "-d", self.dump)
        for _ in range(2):
            self.call("worker.py", "--until-empty")
            self.day += 3
            self.call("seed_queue.py")
        self.call("worker.py", "--until-empty")
        self.call("seed_queue.py")
        if is_told:
            self.call(*self.exports)
            self.follower.read()

    def judge(self, *, is_told: bool) -> None:
        """Ledger, store, queue and follower agree with each other, and with upstream."""
        assert self.call("maintain_store.py", "--check") == ""
        queue = places(self.client, "{discogs}:releases")
        assert (queue.pending, queue.leased, queue.delayed, queue.reported) == ({}, {}, {}, [])
        settings = config.load(environ=self.settings())
        store = layouts.open_store(settings, create=False)
        stored = store.read("releases", store.ids("releases"))
        world = self.api.world
        assert set(stored) == set(world.alive["releases"])
        rules = cleaning.rules_for(settings, "releases")
        day = self.dump.name.split("_")[1]
        imported = expected(self.dump, "releases", day)
        for record_id, data in stored.items():
            if data.startswith(FROM_DUMP):
                said = json.loads(data) | {cleaning.DUMP: day}
                assert said == json.loads(imported[record_id]), record_id
            else:
                answer = json.dumps(world.document("releases", record_id, moment=1)).encode()
                assert data == cleaning.clean(exact_json.loads(answer), rules), record_id
        if is_told:
            has = {path: data for path, data in self.follower.records.items() if data}
            assert sorted(data["id"] for data in has.values()) == sorted(stored)
            assert all(data == json.loads(stored[data["id"]]) for data in has.values())
            assert self.follower.wrong == 0


@pytest.fixture
def crawler(
    run: Run, environment: dict[str, str], redis_client: redis.Redis, tmp_path: Path
) -> Iterator[Installation]:
    with Api(invented(RECORDS), Quota(50_000, 50_000, 1)) as api:
        environment |= {
            "DISCOGS_API": api.url,
            "DISCOGS_TOKEN": "not-a-real-one",
            "RATE_WINDOW_S": "1",
            "COMMIT_SECONDS": "1",
            "LEASE_S": "5",
        }
        yield Installation(run, environment, api, redis_client, tmp_path)


def rounds(crawler: Installation, number: int) -> Iterator[int]:
    """The numbers of so many rounds, each of which begins with the same state."""
    kept = crawler.folder / "kept"
    shutil.copytree(crawler.state, kept)
    shutil.copytree(crawler.folder / "files", kept / "files")
    keys = {key: crawler.client.dump(key) for key in crawler.client.scan_iter()}
    for seed in range(number):
        print(f"round {seed}", flush=True)
        yield seed
        crawler.client.flushall()
        for key, value in keys.items():
            crawler.client.restore(key, 0, value)
        for folder, copy in ((crawler.state, kept), (crawler.folder / "files", kept / "files")):
            shutil.rmtree(folder)
            shutil.copytree(copy, folder)
        crawler.day, crawler.layout = 31, "single"
        crawler.follower = Follower(crawler.folder / "files")


few_or_many = pytest.mark.parametrize("number", [1, pytest.param(50, marks=pytest.mark.long)])


@few_or_many
def test_a_store_is_converted_while_all_else_runs(crawler: Installation, number: int) -> None:
    for seed in rounds(crawler, number):
        crawler.race(CONVERT, *crawler.others(), crawler.exports, seed=seed)
        crawler.call(*CONVERT)
        crawler.layout = "submodules"
        crawler.live_on(is_told=True)
        crawler.judge(is_told=True)


@pytest.mark.long
@few_or_many
def test_a_ledger_is_rebuilt_while_all_else_runs(crawler: Installation, number: int) -> None:
    """The places of its consumers are lost with it."""
    rebuild = ("seed_queue.py", "--rebuild-ledger", "-n", crawler.old_hashes)
    for seed in rounds(crawler, number):
        for path in crawler.state.glob("crawler.db*"):
            path.unlink()
        crawler.race(rebuild, *crawler.others(), seed=1_000 + seed)
        crawler.call(*rebuild, codes=(0, 64))  # usage: it is not lost any more
        crawler.live_on(is_told=False)
        crawler.judge(is_told=False)
