"""The whole system on one machine under random violence, and an oracle that knows the truth.

Each round lets upstream change, starts the scripts as cron and tmux would, several of each at once,
and hurts them: SIGKILL, SIGSTOP, a killed Redis server, a remote that is away, a disk that is full
where an export writes. Then calm returns, the scripts run as they would in the next weeks, and the
oracle compares.
"""

import collections
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from discogs_crawler import config
from discogs_crawler.api import cleaning, exact_json
from discogs_crawler.broker import private_server
from discogs_crawler.broker.connect import connect
from discogs_crawler.clock import DAY_S
from discogs_crawler.records import parse_record_path
from discogs_crawler.store import git_process, layouts, objects
from discogs_crawler.store.git import Repository
from discogs_crawler.store.layouts import SubmoduleStore
from tests.chaos import scripts
from tests.chaos.consumer import EXPORT, EXPORT_FILES, Consumer, Follower
from tests.conftest import ROOT, bare_environment
from tests.discogs.dump import write
from tests.discogs.world import invented

RECORDS = 300
WORKERS = 3
MONTH_DAYS = 31
LIMIT, WINDOW_S = 200, 0.5
FAULTS = {
    "500": 0.02,
    "503-html": 0.02,
    "html": 0.01,
    "empty": 0.01,
    "cut": 0.01,
    "cut-json": 0.01,
    "reset": 0.01,
    "wrong-id": 0.005,
    "not-gzip": 0.005,
}

# A child under this limit meets what a full disk is like: its writes beyond it fail.
FULL_DISK_B = 2_000

# How long a round goes on before what still runs is told to stop.
ROUND_S = 1.2
STOP_S = 20

MAIN = "refs/heads/main"

# How long it lies in wait for a Git to kill.
WAIT_FOR_GIT_S = 0.3


class System:
    """Everything that a round starts, hurts and counts. `table` is what was done, and what came."""

    def __init__(
        self, folder: Path, seed: int, *, remote: bool = False, submodules: bool = False
    ) -> None:
        """With `remote` every commit has to reach a repository, or several, that come and go."""
        self.chance = random.Random(seed)
        self.folder = folder
        self.world = invented(RECORDS)
        self.day = 0
        self.dump: Path | None = None
        self.table: collections.Counter[str] = collections.Counter()
        self.consumer = Consumer(folder / "s" / "crawler.db")
        self.follower = Follower(folder / "files")
        self.remote = folder / ("remote" if submodules else "remote.git") if remote else None
        self.upstream, self.url = self._start_upstream()
        self.environment = bare_environment(folder, folder / "s") | {
            "DISCOGS_API": self.url,
            "DISCOGS_TOKEN": "not-a-real-one",
            "RATE_WINDOW_S": str(WINDOW_S),
            "LEASE_S": "2",
            "RETRY_DELAYS": "1s,1s,1s,1s,1s,1s,1s,1s",
            "COMMIT_EVERY": "20",
            "COMMIT_SECONDS": "0.3",
        }
        if submodules:
            self.environment["STORE_LAYOUT"] = "submodules"
        if self.remote:
            self.environment["STORE_REMOTE"] = str(self.remote)
            self.remote.mkdir()
            if not submodules:
                subprocess.run(["git", "init", "--quiet", "--bare", self.remote], check=True)

    def _start_upstream(self) -> tuple["subprocess.Popen[str]", str]:
        command = [sys.executable, "-m", "tests.discogs", "--records", str(RECORDS)]
        command += ["--limit", str(LIMIT), "--window", str(WINDOW_S)]
        command += [f"--fault={name}={share}" for name, share in FAULTS.items()]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        return server, server.stdout.readline().strip()

    def close(self) -> None:
        self.upstream.kill()
        self.upstream.communicate()
        private_server.stop(self.settings())

    def settings(self) -> config.Settings:
        return config.load(environ=self.environment)

    def ask_upstream(self, path: str, wish: Any = None) -> bytes:
        body = None if wish is None else json.dumps(wish).encode()
        with urllib.request.urlopen(self.url + path, body) as answer:
            return bytes(answer.read())

    # What happens upstream and in the calendar --------------------------------------------------

    def change_upstream(self) -> None:
        """A few edits, perhaps a new record, seldom a removal; here and in the stand-in alike."""
        ids = sorted(self.world.alive["releases"])
        changes: dict[str, list[int]] = {"edit": self.chance.sample(ids, self.chance.randrange(6))}
        if self.chance.random() < 0.5:
            changes["add"] = [max(ids) + self.chance.randrange(1, 4)]
        if self.chance.random() < 0.2:
            changes["remove"] = [self.chance.choice(ids)]
        for verb, numbers in changes.items():
            getattr(self.world, verb)("releases", numbers)
        self.ask_upstream("/-/world", {verb: {"releases": ids} for verb, ids in changes.items()})

    def let_days_go_by(self, days: int) -> None:
        self.day += days
        self.environment["CLOCK_OFFSET_S"] = str(self.day * DAY_S)

    def split_a_dump(self) -> Path:
        """A dump of this instant, split in peace; its hashes."""
        now = time.time() + self.day * DAY_S
        name = time.strftime("discogs_%Y%m%d_releases.xml.gz", time.gmtime(now))
        dump, hashes = self.folder / name, self.folder / (name + ".txt")
        write(dump, self.world, "releases")
        os.utime(dump, (now, now))
        self.until_done("discogs_xml_split.py", "-d", dump, "-r", hashes)
        self.dump = dump
        return hashes

    # A round ------------------------------------------------------------------------------------

    def round(self) -> None:
        self.table["rounds"] += 1
        self.change_upstream()
        month = self.chance.random() < 0.3
        self.let_days_go_by(MONTH_DAYS if month else 1)
        commands: list[tuple[Any, ...]] = [("worker.py", "--until-empty")] * WORKERS
        hashes = ("-n", self.split_a_dump()) if month else ()
        commands.append(("seed_queue.py", *hashes))
        if self.dump and self.chance.random() < 0.7:
            # Often in vain, since the ledger has not accepted the dump yet.
            commands.append(("import_dump.py", "-d", self.dump))
        commands += [EXPORT, (*EXPORT_FILES, self.follower.folder)]
        if self.chance.random() < 0.3:
            commands.append(("maintain_store.py",))
        self.chance.shuffle(commands)
        if self.remote and self.chance.random() < 0.3:
            self.remote.rename(self.remote.with_suffix(".away"))
            self.table["remote away"] += 1
        children = {}
        for number, command in enumerate(commands):
            children[self.start(number, *command)] = (number, command)
        self.hurt(list(children))
        if self.remote and not self.remote.exists():
            self.remote.with_suffix(".away").rename(self.remote)
        for pid, (number, command) in children.items():
            self.reap(pid, number, command)
        self.follower.read()

    def start(self, number: int, script: str, *arguments: Any) -> int:
        full = script == EXPORT[0] and self.chance.random() < 0.2
        self.table["full disks"] += full
        if (script, *arguments) == EXPORT:
            self.consumer.begin()
        return scripts.start(
            script,
            *arguments,
            environment=self.environment,
            output=self.output(number),
            before=_fill_the_disk if full else _nothing,
        )

    def output(self, number: int) -> Path:
        return self.folder / f"output{number}"

    def hurt(self, pids: list[int]) -> None:
        """Do something bad now and then until the round is over."""
        deeds: list[tuple[float, Callable[[int], None]]] = [
            (0.5, self.kill),
            (0.2, self.freeze),
            (0.2, self.kill_git),
            (0.1, self.kill_redis),
        ]
        end = time.monotonic() + ROUND_S
        while time.monotonic() < end:
            time.sleep(self.chance.uniform(0.02, 0.4))
            for share, deed in deeds:
                if self.chance.random() < share:
                    deed(self.chance.choice(pids))

    def kill(self, pid: int) -> None:
        self._signal(pid, signal.SIGKILL)
        self.table["kills"] += 1

    def kill_git(self, pid: int) -> None:
        """Lie in wait for a Git that the script starts, and kill it; most live for milliseconds."""
        end = time.monotonic() + WAIT_FOR_GIT_S
        while time.monotonic() < end:
            for git in _gits_of(pid)[:1]:
                self._signal(git, signal.SIGKILL)
                self.table["kills of Git"] += 1
                return

    def freeze(self, pid: int) -> None:
        self._signal(pid, signal.SIGSTOP)
        time.sleep(self.chance.uniform(0, 0.3))
        self._signal(pid, signal.SIGCONT)
        self.table["freezes"] += 1

    def kill_redis(self, pid: int) -> None:
        process_id = self.redis_process()
        if process_id:
            self._signal(process_id, signal.SIGKILL)
            self.table["Redis kills"] += 1

    def redis_process(self) -> int | None:
        try:
            client = connect(self.settings(), wait=False)
            return int(client.info("server")["process_id"])
        except Exception:
            return None

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def reap(self, pid: int, number: int, command: tuple[Any, ...]) -> int:
        """Wait for a child, tell it to stop if it goes on, and consume what it printed."""
        self._signal(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                state = Path(f"/proc/{pid}/status").read_text()
                self._signal(pid, scripts.TELL)
                time.sleep(0.5)
                self._signal(pid, signal.SIGKILL)
                self.table["did not stop"] += 1
                self._keep(f"stuck{self.table['did not stop']}", number, f"{command}\n{state}")
            time.sleep(0.01)
        code = os.waitstatus_to_exitcode(ended[1])
        self.note(code, number, command)
        return code

    def note(self, code: int, number: int, command: tuple[Any, ...]) -> None:
        errors = self.output(number).with_name(f"output{number}.err").read_text()
        if "Traceback" in errors or code == 70:
            self.table["bugs"] += 1
            self._keep(f"bug{self.table['bugs']}", number, f"{command} {code}")
        if command == EXPORT:
            self.consumer.take(self.output(number), code)

    def _keep(self, name: str, number: int, what: str) -> None:
        """Keep what a child has said on stderr, for people to look at."""
        errors = self.output(number).with_name(f"output{number}.err").read_text()
        (self.folder / name).write_text(f"{what}\n{errors}")

    def until_done(self, script: str, *arguments: Any) -> None:
        """Run a script again and again, as cron does, until it exits 0."""
        code = None
        for _ in range(20):
            self.consumer.begin()
            code = scripts.wait(
                scripts.start(
                    script, *arguments, environment=self.environment, output=self.output(99)
                )
            )
            self.note(code, 99, (script, *arguments))
            if code == 0:
                return
        errors = self.output(99).with_name("output99.err").read_text()
        raise AssertionError(f"{script} never got done: exit code {code}: {errors}")

    # The oracle ---------------------------------------------------------------------------------

    def recover(self) -> None:
        """What the next two months bring: a dump, what is due each day, no more faults.

        If the runs of some months were all killed, more than 2 % may be gone: somebody has looked.
        """
        self.ask_upstream("/-/faults", {"probabilities": {}})
        for days in (MONTH_DAYS, 8, 2, MONTH_DAYS, 2):
            self.let_days_go_by(days)
            hashes = ("-n", self.split_a_dump(), "--force") if days == MONTH_DAYS else ()
            self.until_done("seed_queue.py", *hashes)
            if hashes:
                self.until_done("import_dump.py", "-d", self.dump, "--force")
            self.until_done("worker.py", "--until-empty")
        self.until_done("maintain_store.py")
        self.until_done(*EXPORT)
        self.until_done(*EXPORT_FILES, self.follower.folder)
        self.follower.read()

    def judge(self) -> None:
        """Compare the store with upstream and the consumer with the store; count what differs."""
        settings = self.settings()
        held = layouts.open_store(settings)
        stored = held.read("releases", list(held.ids("releases")))
        rules = cleaning.rules_for(settings, "releases")
        alive = set(self.world.alive["releases"])
        right = {}
        for record_id in alive:
            answer = json.dumps(self.world.document("releases", record_id, moment=1)).encode()
            right[record_id] = cleaning.clean(exact_json.loads(answer), rules)
        self.table["lost"] = len(alive - set(stored))
        self.table["not removed"] = len(set(stored) - alive)
        self.table["stale"] = sum(stored[n] != right[n] for n in alive & set(stored))
        given = self.consumer.records.items()
        places = {parse_record_path(path): json.loads(data) for path, data in given if data}
        truth = {("releases", n): json.loads(data) for n, data in stored.items()}
        self.table["consumer differs"] = sum(
            places.get(place) != truth.get(place)  # type: ignore[arg-type]
            for place in {*places, *truth}
        )
        followed = {parse_record_path(p): data for p, data in self.follower.records.items() if data}
        self.table["follower differs"] = self.follower.wrong + (followed != truth)
        requests = [json.loads(line) for line in self.ask_upstream("/-/journal").splitlines()]
        self.table["requests"] = len(requests)
        self.table["429"] = sum(request["status"] == 429 for request in requests)
        for repository in held.repositories():
            fsck = ["git", "-C", repository.path, "fsck", "--full", "--strict"]
            done = subprocess.run(fsck, capture_output=True, check=False)
            self.table["fsck errors"] += done.returncode != 0
        if self.remote and isinstance(held, SubmoduleStore):
            self.table["pins differ"] = self.wrong_pins(self.remote, held)

    @staticmethod
    def wrong_pins(remote: Path, held: SubmoduleStore) -> int:
        """The number of pins, of all that readers of the remote ever saw, that broke a promise.

        A pin names a commit of the main branch that the remote has, and never goes back.
        """
        top, wrong, last = remote / "discogs.git", 0, dict[str, str]()
        history = git_process.run(top, "rev-list", "--first-parent", "--reverse", "main")
        for revision in history.decode().split():
            pins = objects.segments(top, revision, objects.GITLINK)
            wrong += len(last.keys() - pins.keys())
            for path, pin in pins.items():
                folder = remote / f"{path}.git"
                if last.get(path) != pin:
                    wrong += not objects.contains(folder, Repository(folder).tip(MAIN), pin)
                    wrong += path in last and not objects.contains(folder, pin, last[path])
            last = pins
        return wrong + (last != held.pins(held.tip()))


def _gits_of(pid: int) -> list[int]:
    """The processes of Git that a process has started, as far as they are still there."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                if Path(f"/proc/{child}/comm").read_text().startswith("git"):
                    found.append(int(child))
    return found


def _fill_the_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_DISK_B, FULL_DISK_B))


def _nothing() -> None:
    pass
