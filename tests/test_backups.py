"""Ledger, Redis and store put back from backups of different nights: nothing is lost in silence."""

import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from discogs_crawler import clock
from discogs_crawler.errors import EXIT_BAD_DATA, EXIT_CONFIGURATION, EXIT_DONE
from discogs_crawler.ledger import database
from discogs_crawler.records import record_path
from tests.conftest import Run
from tests.discogs.api import Api
from tests.discogs.quota import Quota
from tests.discogs.world import invented
from tests.test_chain import assert_the_store_equals

RECORDS = 20


class Installation:
    """A crawler, what a consumer has got of it, and last night's backup of each of its parts.

    When the backup was made half was fetched and the rest was in the queue. Since then that was
    fetched, one record changed, and one was removed.
    """

    def __init__(
        self, run: Run, environment: dict[str, str], api: Api, client: redis.Redis, folder: Path
    ) -> None:
        self._run, self.environment, self.api, self.client = run, environment, api, client
        self.state, self.backup = Path(environment["STATE_DIR"]), folder / "backup"
        self.day = 0
        self.heard = 0
        self.known: set[str] = set()
        self.ids = sorted(api.world.alive["releases"])
        self.edited, self.removed = self.ids[2], self.ids[4]
        # Fetched less than an hour before the last commit that the backup has, and after it.
        self.last, self.later = self.ids[10], self.ids[11:]
        self.lost = sorted([self.last, *self.later, self.edited, self.removed])

    def live(self) -> None:
        self.run("seed_queue.py", "--ids", *self.ids[:10])
        self.run("worker.py", "--until-empty")
        self.day = 1
        self.run("seed_queue.py", "--ids", *self.ids[10:])
        self.run("worker.py", "--limit", 1)
        self.export()
        self.back_up()
        self.api.world.edit("releases", [self.edited])
        self.api.world.remove("releases", [self.removed])
        self.day = 2
        self.run("seed_queue.py", "--ids", self.edited, self.removed)
        self.run("worker.py", "--until-empty")
        self.day = 4
        self.crawl()
        self.export()
        assert self.known == self.alive()
        self.asked()

    def run(self, script: str, *arguments: object, code: int = EXIT_DONE, **extra: str) -> str:
        extra |= {"CLOCK_OFFSET_S": str(self.day * clock.DAY_S)}
        done = self._run(script, *arguments, **extra)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def crawl(self) -> None:
        self.run("seed_queue.py")
        self.run("worker.py", "--until-empty")

    def export(self) -> None:
        out = self.run("export_changes.py", "--consumer", "x", "--format", "status")
        for line in out.splitlines():
            status, path = line.split("\t")
            (self.known.discard if status == "D" else self.known.add)(path)

    def alive(self) -> set[str]:
        return {record_path("releases", i) for i in self.api.world.alive["releases"]}

    def asked(self) -> list[int]:
        """The ids that were asked for since the last call."""
        requests = self.api.journal.since(self.heard)
        self.heard += len(requests)
        return sorted(request.id for request in requests if request.id)

    def back_up(self) -> None:
        with sqlite3.connect(self.state / "crawler.db") as ledger:
            self.backup.mkdir()
            ledger.execute("VACUUM INTO ?", (str(self.backup / "crawler.db"),))
        shutil.copytree(self.state / "store", self.backup / "store")
        if (self.state / "remote.git").exists():
            shutil.copytree(self.state / "remote.git", self.backup / "remote.git")
        self.keys = {key: self.client.dump(key) for key in self.client.scan_iter()}

    def restore(self, *parts: str) -> None:
        for part in parts:
            if part == "redis":
                self.client.flushall()
                for key, value in self.keys.items():
                    self.client.restore(key, 0, value)
            elif part == "ledger":
                for path in self.state.glob("crawler.db*"):
                    path.unlink()
                shutil.copy(self.backup / "crawler.db", self.state)
            else:
                shutil.rmtree(self.state / part)
                shutil.copytree(self.backup / part, self.state / part)

    def assert_whole(self) -> None:
        """The store has what there is, as it is, and so has the consumer."""
        self.export()
        assert self.known == self.alive()
        assert_the_store_equals(self.api.world, self.environment)
        self.run("maintain_store.py", "--check")


@pytest.fixture
def crawler(
    run: Run, environment: dict[str, str], redis_client: redis.Redis, tmp_path: Path
) -> Iterator[Installation]:
    with Api(invented(RECORDS), Quota(50_000, 50_000, 1)) as api:
        environment |= {
            "DISCOGS_API": api.url,
            "DISCOGS_TOKEN": "not-a-real-one",
            "RATE_WINDOW_S": "1",
            "COMMIT_SECONDS": "0.2",
        }
        yield Installation(run, environment, api, redis_client, tmp_path)


@pytest.mark.long
def test_an_older_redis_asks_for_nothing_that_is_done(crawler: Installation) -> None:
    crawler.live()
    crawler.restore("redis")
    assert "Redis was restored from an older copy" in crawler.run("seed_queue.py")
    crawler.crawl()
    assert crawler.asked() == []
    crawler.assert_whole()


def test_a_redis_of_an_older_life_asks_for_nothing_that_is_done(crawler: Installation) -> None:
    """Backed up, lost, filled again by a seed, read; then the backup was put back."""
    crawler.run("seed_queue.py", "--ids", *crawler.ids[:10])
    crawler.run("worker.py", "--limit", 1)
    crawler.back_up()
    crawler.run("worker.py", "--until-empty")
    crawler.client.flushall()
    crawler.run("seed_queue.py", "--ids", *crawler.ids[10:])
    crawler.run("worker.py", "--until-empty")
    crawler.asked()
    crawler.restore("redis")
    assert "Redis was restored from an older copy" in crawler.run("seed_queue.py")
    assert "older copy" not in crawler.run("seed_queue.py")
    crawler.crawl()
    assert crawler.asked() == []
    crawler.assert_whole()


def test_an_older_store_is_refused_until_what_it_lacks_is_wanted_again(
    crawler: Installation,
) -> None:
    crawler.live()
    crawler.restore("store")
    for command in (
        ["seed_queue.py"],
        ["worker.py", "--until-empty"],
        ["maintain_store.py"],
    ):
        said = crawler.run(*command, code=EXIT_CONFIGURATION)
        assert "--refetch" in said
    said = crawler.run("maintain_store.py", "--check", code=EXIT_BAD_DATA)
    assert said.count("missing, the ledger says") == len(crawler.later)
    said = crawler.run("export_changes.py", "--consumer", "x", code=EXIT_BAD_DATA)
    assert "Restore the newer copy" in said
    assert f"{len(crawler.lost)} wanted again" in crawler.run("maintain_store.py", "--refetch")
    crawler.run("export_changes.py", "--consumer", "x", "--reset", "now")
    crawler.crawl()
    assert crawler.asked() == crawler.lost
    crawler.assert_whole()
    assert crawler.run("maintain_store.py", "--refetch") == ""


@pytest.mark.long
@pytest.mark.parametrize("parts", [["ledger"], ["ledger", "redis"], ["ledger", "store"]])
def test_an_older_ledger_asks_once_more(crawler: Installation, parts: list[str]) -> None:
    crawler.live()
    crawler.restore(*parts)
    crawler.crawl()
    assert crawler.asked() == crawler.later
    crawler.run("seed_queue.py", "--ids", crawler.edited, crawler.removed)
    crawler.crawl()
    crawler.day += 2
    crawler.crawl()
    if "store" in parts:
        crawler.run("export_changes.py", "--consumer", "x", "--reset", "start")
    crawler.assert_whole()


@pytest.mark.parametrize("layout", [pytest.param("single", marks=pytest.mark.long), "submodules"])
def test_a_lost_ledger_is_refused_by_all_and_made_by_none(
    crawler: Installation, layout: str
) -> None:
    crawler.environment["STORE_LAYOUT"] = layout
    crawler.run("seed_queue.py", "--ids", *crawler.ids[:10])
    crawler.run("worker.py", "--until-empty")
    crawler.run("seed_queue.py")
    crawler.export()
    folder = crawler.state / "disk"
    crawler.environment["DATABASE"] = str(folder / "crawler.db")
    for command in (
        ["export_changes.py", "--consumer", "x"],
        ["export_changes.py", "--consumer", "new", "--from", "now"],
        ["export_changes.py", "--list"],
        ["worker.py", "--check"],
        ["seed_queue.py"],
    ):
        said = crawler.run(*command, code=EXIT_CONFIGURATION)
        assert f"{folder}/crawler.db: the ledger knows nothing" in said
        assert not folder.exists(), command
    del crawler.environment["DATABASE"]
    assert crawler.run("export_changes.py", "--consumer", "x", "--format", "status") == ""
    crawler.run("maintain_store.py")


def test_a_lost_ledger_is_not_replaced_by_one_that_only_a_split_made(
    crawler: Installation,
) -> None:
    crawler.run("seed_queue.py", "--ids", *crawler.ids[:10])
    crawler.run("worker.py", "--until-empty")
    path = crawler.state / "other.db"
    database.open(path).close()
    crawler.environment["DATABASE"] = str(path)
    for script, *arguments in (
        ("export_changes.py", "--consumer", "x"),
        ("worker.py", "--check"),
    ):
        said = crawler.run(script, *arguments, code=EXIT_CONFIGURATION)
        assert f"{path}: the ledger knows nothing" in said


@pytest.mark.long
def test_an_older_redis_and_an_older_store(crawler: Installation) -> None:
    crawler.live()
    crawler.restore("redis", "store")
    crawler.run("seed_queue.py", code=EXIT_CONFIGURATION)
    crawler.run("maintain_store.py", "--refetch")
    crawler.run("export_changes.py", "--consumer", "x", "--reset", "now")
    crawler.crawl()
    assert crawler.asked() == crawler.lost
    crawler.assert_whole()


@pytest.mark.long
@pytest.mark.parametrize("parts", [["store"], ["remote.git"], ["store", "remote.git"]])
def test_an_older_store_and_its_remote(crawler: Installation, parts: list[str]) -> None:
    remote = crawler.state / "remote.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(remote)], check=True)
    crawler.environment["STORE_REMOTE"] = f"file://{remote}"
    crawler.live()
    crawler.restore(*parts)
    if len(parts) == 2:
        crawler.run("worker.py", "--until-empty", code=EXIT_CONFIGURATION)
        crawler.run("maintain_store.py", "--refetch")
        crawler.run("export_changes.py", "--consumer", "x", "--reset", "now")
    crawler.crawl()
    assert len(crawler.asked()) == (len(crawler.lost) if len(parts) == 2 else 0)
    crawler.assert_whole()


@pytest.mark.long
def test_an_older_store_of_submodules(crawler: Installation) -> None:
    crawler.environment["STORE_LAYOUT"] = "submodules"
    crawler.live()
    crawler.restore("store")
    crawler.run("worker.py", "--until-empty", code=EXIT_CONFIGURATION)
    crawler.run("maintain_store.py", "--refetch")
    crawler.run("export_changes.py", "--consumer", "x", "--reset", "now")
    crawler.crawl()
    assert crawler.asked() == crawler.lost
    crawler.assert_whole()


@pytest.mark.long
def test_a_converted_store_is_no_older_copy(crawler: Installation) -> None:
    """Nor is it when the old repository, which was kept, is gone."""
    crawler.live()
    crawler.run("maintain_store.py", "--to-submodules")
    shutil.rmtree(crawler.state / "store" / "single.git")
    crawler.environment["STORE_LAYOUT"] = "submodules"
    crawler.crawl()
    assert crawler.asked() == []
    crawler.assert_whole()
