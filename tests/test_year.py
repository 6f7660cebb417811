"""A year of the monthly job, as cron runs it: what goes wrong upstream never reaches the store."""

import calendar
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from discogs_crawler import config
from discogs_crawler.api import cleaning, exact_json
from discogs_crawler.clock import DAY_S
from discogs_crawler.errors import EXIT_DONE, EXIT_TRY_LATER
from discogs_crawler.store import layouts
from tests.conftest import ROOT
from tests.discogs import dump
from tests.discogs.api import Api
from tests.discogs.quota import Quota
from tests.discogs.site import Site
from tests.discogs.world import World, invented
from tests.test_unattended import command_with

RECORDS = 300

# When the cron job runs, and when dumps are uploaded, in seconds of the day.
JOB_S, UPLOAD_S = 21 * 3_600 + 37 * 60, 19 * 3_600 + 16 * 60


class Year:
    """Discogs and a crawler in a simulated time; a day has one run of the job and of a worker."""

    def __init__(self, environment: dict[str, str], site: Site, api: Api) -> None:
        self.site = site
        self.api = api
        self.environment = environment | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CRAWLER": str(ROOT),
            "DUMP_SITE": site.url,
            "DISCOGS_API": api.url,
            "RATE_WINDOW_S": "2",
            "RETRY_DELAYS": "1s,1s,1s",
            "COMMIT_SECONDS": "0",
        }
        self.now = 0.0

    def travel(self, year: int, month: int, day: int) -> None:
        """Go to the moment at which cron starts the job on that day."""
        self.now = calendar.timegm((year, month, day, 0, 0, 0)) + JOB_S

    def upload(self, world: World, era: str, *, checksum: bool = True, cut: bool = False) -> None:
        """Publish the month's dump, as of this evening."""
        content = dump.compressed(world, "releases", era)
        if cut:
            content = content[: len(content) // 2]
        uploaded = self.now - JOB_S + UPLOAD_S
        dumps = {"releases": content}
        self.site.publish(self.date, dumps, checksum=checksum, modified=uploaded)

    @property
    def date(self) -> int:
        return int(time.strftime("%Y%m01", time.gmtime(self.now)))

    def run(self, command: str, after_s: float = 0) -> "subprocess.CompletedProcess[str]":
        offset = {"CLOCK_OFFSET_S": str(self.now + after_s - time.time())}
        return subprocess.run(
            ["/bin/sh", "-c", command],
            env=self.environment | offset,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def job(self, code: int = 0, says: str = "") -> None:
        """After a night's upkeep run the line of the crontab; it says nothing, or one line."""
        assert self.run("bin/maintain_store.py").returncode in (EXIT_DONE, EXIT_TRY_LATER)
        done = self.run(command_with("download"))
        assert done.returncode == code, done.stderr
        assert says in done.stdout + done.stderr
        assert (done.stdout + done.stderr).count("\n") == bool(says)

    def crawl(self) -> list[int]:
        """Let a worker do what is queued; the ids that it asked for."""
        before = len(self.api.journal.since())
        done = self.run("bin/worker.py --until-empty", after_s=3_600)
        assert (done.returncode, done.stderr) == (0, "")
        return sorted(request.id for request in self.api.journal.since(before))

    def settle(self) -> None:
        """Let the days go by in which what was found gone is asked for again."""
        for _ in range(2):
            self.now += 2 * DAY_S
            assert self.run("bin/maintain_store.py && bin/seed_queue.py").returncode == 0
            self.crawl()

    def stored(self) -> dict[int, bytes]:
        opened = layouts.open_store(config.load(environ=self.environment))
        return opened.read("releases", opened.ids("releases"))

    def upstream(self) -> dict[int, bytes]:
        rules = cleaning.rules_for(config.load(environ=self.environment), "releases")
        return {
            number: cleaning.clean(exact_json.loads(_json(self.api.world, number)), rules)
            for number in self.api.world.alive["releases"]
        }


def _json(world: World, record_id: int) -> bytes:
    return json.dumps(world.document("releases", record_id, 1), ensure_ascii=False).encode()


@pytest.fixture
def year(environment: dict[str, str], redis_client: object) -> Iterator[Year]:
    quota = Quota(limit_without=500, window_s=2)
    with Site() as site, Api(invented(RECORDS), quota) as api:
        yield Year(environment, site, api)


def without_most(world: World) -> World:
    """The world as a truncated dump shows it."""
    rest = world.copy()
    rest.remove("releases", list(rest.alive["releases"])[RECORDS // 3 :])
    return rest


def test_missing_truncated_late_and_respelled_dumps_leave_the_store_right(year: Year) -> None:
    world = year.api.world
    year.travel(2027, 1, 1)
    year.upload(world, "2025")
    year.job()
    assert year.crawl() == sorted(world.alive["releases"])

    changes = [world.let_a_month_go_by()["releases"]]
    year.travel(2027, 2, 3)  # nothing was published in February
    year.job()

    changes.append(world.let_a_month_go_by()["releases"])
    year.travel(2027, 3, 1)
    year.upload(without_most(world), "2025")
    year.job(65, "--force")
    assert year.crawl() == []

    changes.append(world.let_a_month_go_by()["releases"])
    year.travel(2027, 4, 1)
    year.upload(world, "2026", checksum=False)
    year.job(65, "--force")  # still the one of March
    year.travel(2027, 4, 5)
    year.site.publish_checksum(year.date)
    year.job()
    news = {
        n for change in changes for verb in ("edited", "added", "removed") for n in change[verb]
    }
    assert set(year.crawl()) == news & (world.alive["releases"].keys() | set(year.stored()))
    year.job()
    assert year.crawl() == []

    year.settle()
    assert year.stored() == year.upstream()


@pytest.mark.long
def test_after_a_whole_year_of_daily_jobs_the_store_equals_the_upstream(year: Year) -> None:
    world = year.api.world
    for month in range(1, 13):
        world.let_a_month_go_by()
        year.travel(2027, month, 1)
        era = "2025" if month < 8 else "2026"
        if month == 4:
            year.upload(without_most(world), era)
        elif month == 6:
            year.upload(world, era, cut=True)
        elif month != 2:
            year.upload(world, era, checksum=month != 9)
        for day in (1, 2, 3, 4, 8, 20):
            year.travel(2027, month, day)
            if (month, day) == (9, 8):
                year.site.publish_checksum(year.date)
            if month in (4, 6):
                year.job(65, "releases")
            else:
                year.job()
            year.crawl()
    year.settle()
    assert year.stored() == year.upstream()
    asked = year.api.journal.asked()
    versions = sum(state.version for state in world.alive["releases"].values())
    gone = 3 * len(world.gone["releases"])
    assert len(asked) <= versions + gone


def kill_the_job(year: Year, after_s: float) -> None:
    """Start the job and kill it with all that it started."""
    offset = {"CLOCK_OFFSET_S": str(year.now - time.time())}
    process = subprocess.Popen(
        ["/bin/sh", "-c", command_with("download")],
        env=year.environment | offset,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(after_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.long
def test_the_job_may_be_killed_anywhere_and_run_again(year: Year) -> None:
    world = year.api.world
    year.travel(2027, 1, 1)
    year.upload(world, "2026")
    for number in range(36):
        kill_the_job(year, number * 0.05)
    year.job()
    year.job()
    assert year.crawl() == sorted(world.alive["releases"])
    assert year.stored() == year.upstream()
