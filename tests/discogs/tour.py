"""The tour that `bin/quickstart` gives once the project is installed: two months in two minutes."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from discogs_crawler import config
from discogs_crawler.broker import private_server
from discogs_crawler.clock import DAY_S
from discogs_crawler.errors import EXIT_CONFIGURATION, CrawlerError
from tests.discogs.api import Api
from tests.discogs.dump import write
from tests.discogs.quota import Quota
from tests.discogs.world import World, invented

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / "var" / "quickstart"
CONSUMER = "demo"

# Enough that a month's changes stay below the guards against broken dumps, done in seconds.
RELEASES = 250
QUOTA, WINDOW_S = 300, 4
LINES_SHOWN = 12


class Guide:
    """Runs commands as a user would, shows each of them, and knows what day it is."""

    def __init__(self, **settings: str) -> None:
        self.day = 0
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TERM") if name in os.environ}
        self._environment = kept | settings
        self._environment |= {"ENV_FILE": os.devnull, "STATE_DIR": str(STATE), "LANG": "C.UTF-8"}

    def now(self) -> float:
        return time.time() + self.day * DAY_S

    def run(self, *command: str) -> None:
        """Run a script of `bin/`, or another program; the tour ends where one fails."""
        shown = shlex.join(command).replace(f"{ROOT}/", "")
        print(f"  $ {shown}", flush=True)
        if command[0].startswith("bin/"):
            command = (sys.executable, *command)
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self._environment | {"CLOCK_OFFSET_S": str(self.day * DAY_S)},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = (done.stdout + done.stderr).splitlines()
        for line in lines[:LINES_SHOWN]:
            print(f"    {line}")
        if len(lines) > LINES_SHOWN:
            print(f"    ... and {len(lines) - LINES_SHOWN} more lines")
        if done.returncode:
            sys.exit(f"quickstart: {shown} ended with exit code {done.returncode}")

    def month(self, world: World, *more: str) -> None:
        """Split a dump of the world as it is today, seed with it, import it, crawl and export."""
        stamp = time.strftime("%Y%m%d", time.gmtime(self.now()))
        dump = STATE / "dumps" / f"discogs_{stamp}_releases.xml.gz"
        write(dump, world, "releases")
        os.utime(dump, (self.now(), self.now()))
        hashes = str(STATE / f"releases_{stamp}.txt")
        if self.day:
            self.run("bin/maintain_store.py")  # as every night
        self.run("bin/discogs_xml_split.py", "-v", "-d", str(dump), "-r", hashes)
        self.run("bin/seed_queue.py", "-v", "-n", hashes, *more)
        self.run("bin/import_dump.py", "-v", "-d", str(dump))
        if self.day == 0:
            print("   Every record is there; its first key names the dump. A consumer has it, too.")
            self.show_first_record()
            self.export()
            print("   Now the API: its answers replace what was imported.")
        self.crawl()
        if self.day == 0:
            self.show_first_record()

    def crawl(self) -> None:
        self.run("bin/worker.py", "-v", "--until-empty")
        self.export()

    def export(self) -> None:
        self.run("bin/export_changes.py", "--consumer", CONSUMER, "--format", "status")

    def show_first_record(self) -> None:
        store = str(STATE / "store" / "discogs.git")
        self.run("git", "-C", store, "show", "main:releases/00/00/00/1.json")

    def show_where_everything_lies(self) -> None:
        store, ledger = str(STATE / "store" / "discogs.git"), str(STATE / "crawler.db")
        self.run("git", "-C", store, "log", "--oneline")
        query = "SELECT kind, in_dump, stored, imported, gone, percent FROM progress"
        if shutil.which("sqlite3"):
            self.run("sqlite3", "-header", "-column", ledger, query)
        else:
            sqlite_utils = str(Path(sys.executable).with_name("sqlite-utils"))
            self.run(sqlite_utils, ledger, query, "--table")


def live_api_answers() -> bool:
    """Whether the real API can be asked from here; one request, no token."""
    agent = config.BY_NAME["DISCOGS_USER_AGENT"].default
    root = config.BY_NAME["DISCOGS_API"].default + "/"
    try:
        request = urllib.request.Request(root, headers={"User-Agent": agent})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return "api_version" in json.load(answer)
    except (OSError, ValueError, TypeError):
        return False


def tour_of_the_live_api() -> Guide:
    """Eight real releases; what changes in the dump is invented, what the API answers is not."""
    world = World()
    world.add("releases", range(1, 9))
    guide = Guide()
    print("The live API answers: eight real releases, at 25 requests a minute.")
    print("\n1. The first dump: everything is new, and imported within seconds.")
    guide.month(world)
    print("\n2. A month later (the clock is moved): 2 and 3 changed, 9 appeared, 5 vanished.")
    print("   (--force: with eight records every change is more than the guards allow)")
    world.edit("releases", [2, 3])
    world.add("releases", [9])
    world.remove("releases", [5])
    guide.day = 31
    guide.month(world, "--force")
    return guide


def tour_of_the_stand_in() -> Guide:
    """A world in which records really change and vanish."""
    world = invented(RELEASES)
    with Api(world, Quota(QUOTA, window_s=WINDOW_S)) as api:
        guide = Guide(DISCOGS_API=api.url, RATE_WINDOW_S=str(WINDOW_S), DISCOGS_TOKEN="any")
        print("The live API cannot be reached from here, so the stand-in in tests/discogs answers,")
        print(f"up to {QUOTA} times in {WINDOW_S} seconds.")
        print("\n1. The first dump: everything is new, and imported within seconds.")
        guide.month(world)
        changes = world.let_a_month_go_by()["releases"]
        print("\n2. A month later (the clock is moved). Meanwhile upstream:")
        for verb, ids in changes.items():
            print(f"   {verb}: {', '.join(map(str, ids))}")
        guide.day = 31
        guide.month(world)
        print("\n3. A day later: what answered 404 is fetched once more before it is removed.")
        guide.day = 32
        guide.run("bin/seed_queue.py", "-v")
        guide.crawl()
    return guide


def stop_private_redis() -> bool:
    environment = {"ENV_FILE": os.devnull, "STATE_DIR": str(STATE), "HOME": str(ROOT)}
    return private_server.stop(config.load(environ=environment))


def main() -> None:
    try:
        give(sys.argv[1:])
    except CrawlerError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # e.g. files that root's run has left
        where = f"{error.filename}: " if error.filename else ""
        print(f"quickstart: {where}{error.strerror}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)


def give(arguments: list[str]) -> None:
    if "--stop" in arguments:
        stopped = stop_private_redis()
        print("The private Redis is stopped." if stopped else "No private Redis was running.")
        return
    stop_private_redis()
    shutil.rmtree(STATE, ignore_errors=True)
    (STATE / "dumps").mkdir(parents=True, mode=0o700)
    with contextlib.suppress(KeyboardInterrupt):
        guide = tour_of_the_live_api() if live_api_answers() else tour_of_the_stand_in()
        print("\nWhere everything is:")
        guide.show_where_everything_lies()
    print(
        f"\nAll of it is in {STATE.relative_to(ROOT)}/. The private Redis is still running there;"
    )
    print("to stop it: bin/quickstart --stop")


if __name__ == "__main__":
    main()
