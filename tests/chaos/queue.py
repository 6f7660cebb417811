"""Kill producers, workers, the ledger's reader and the Redis server itself, and count the ids.

    nice python -m tests.chaos.queue --rounds 3000

Every round kills one process with SIGKILL at a random moment and replaces it. At the end every id
whose push was confirmed must be in the ledger, or in exactly one place of the queue. Prints a
Markdown table; exit code 1 if an id was lost.
"""

import argparse
import contextlib
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from discogs_crawler import config
from discogs_crawler.broker import private_server
from discogs_crawler.broker.connect import connect
from discogs_crawler.broker.messages import Result
from discogs_crawler.broker.queue import Queue
from discogs_crawler.errors import EXIT_BAD_DATA, EXIT_DONE
from tests.queue_audit import places

BASE = "{discogs}:releases"

# A dead worker's ids come back after this.
LEASE_S = 0.3


class Chaos:
    """The processes of a small crawler without an API, in one folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.settings = config.load(environ={"ENV_FILE": os.devnull, "STATE_DIR": str(folder)})
        self.kills: Counter[str] = Counter()
        self.running: dict[str, int] = {}
        with self.ledger() as ledger:
            ledger.execute("CREATE TABLE done (id INTEGER PRIMARY KEY, times INTEGER)")
            ledger.execute("CREATE TABLE cursor (generation TEXT, after TEXT)")

    def queue(self) -> Queue:
        client = connect(self.settings)
        return Queue(client, "releases", prefix="discogs", lease_s=LEASE_S)  # type: ignore[arg-type]

    def ledger(self) -> sqlite3.Connection:
        ledger = sqlite3.connect(self.folder / "ledger.db", timeout=30, isolation_level=None)
        ledger.execute("PRAGMA journal_mode = WAL")
        return ledger

    def start(self, name: str, work: Callable[[], None]) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                work()
            finally:
                os._exit(1)
        self.running[name] = pid

    def kill(self, name: str) -> None:
        pid = self.running.pop(name)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.kills[name.split()[0]] += 1

    def kill_server(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.folder / "redis" / "redis.pid").read_text())
            os.kill(pid, signal.SIGKILL)
            self.kills["server"] += 1

    def produce(self) -> None:
        """Push runs of ids that nobody has pushed, and write down those that were confirmed."""
        queue = self.queue()
        with (self.folder / "pushed").open("a+") as log:
            log.seek(0)
            first = max((int(line.split()[1]) for line in log if line.endswith("\n")), default=1)
            while True:
                first += 7
                log.write(f"begun {first}\n")
                log.flush()
                queue.push("new", range(first, first + 7))
                log.write(f"confirmed {first}\n")
                log.flush()
                time.sleep(0.002)

    def consume(self, name: str) -> None:
        """Claim, note the fetch, and complete, delay or give back."""
        queue, chance = self.queue(), random.Random(time.monotonic_ns())
        with (self.folder / "fetched").open("a") as log:
            while True:
                leases = queue.claim(name, 10)
                if not leases:
                    time.sleep(0.005)
                    continue
                log.write("".join(f"{lease.id}\n" for lease in leases))
                log.flush()
                queue.renew(leases)
                if chance.random() < 0.1:
                    queue.delay(leases.pop(), 0.01, count_attempt=True)
                if chance.random() < 0.1:
                    queue.give_back(leases)
                pairs = [(lease, Result(lease.id, lease.reason, "stored")) for lease in leases]
                queue.complete(pairs)

    def read(self, *, until_empty: bool = False) -> None:
        """Move results into the ledger, as the seeder does."""
        queue, ledger = self.queue(), self.ledger()
        while True:
            generation, after = ledger.execute("SELECT * FROM cursor").fetchone() or ("", "0")
            queue.forget(generation, after)
            found, entries = queue.results(after if generation else "0", 50)
            if entries:
                ledger.execute("BEGIN IMMEDIATE")
                ledger.executemany(
                    "INSERT INTO done VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1",
                    [(result.id,) for _, result in entries],
                )
                ledger.execute("DELETE FROM cursor")
                ledger.execute("INSERT INTO cursor VALUES (?, ?)", (found, entries[-1][0]))
                ledger.execute("COMMIT")
            elif until_empty:
                return
            else:
                time.sleep(0.005)

    def run(self, rounds: int) -> dict[str, int]:
        """Kill `rounds` times; the numbers of the table."""
        work: dict[str, Callable[[], None]] = {
            "producer": self.produce,
            "worker 1": lambda: self.consume("worker 1"),
            "worker 2": lambda: self.consume("worker 2"),
            "reader": self.read,
        }
        try:
            for _ in range(rounds):
                for name in work.keys() - self.running.keys():
                    self.start(name, work[name])
                time.sleep(self.random.uniform(0, 0.04))
                victim = self.random.choice([*work, "server"])
                if victim == "server":
                    self.kill_server()
                else:
                    self.kill(victim)
        finally:
            for name in list(self.running):
                self.kill(name)
        return self.count(rounds)

    def count(self, rounds: int) -> dict[str, int]:
        lines = [line.split() for line in (self.folder / "pushed").read_text().splitlines()]
        firsts = [int(first) for word, first in lines if word == "confirmed"]
        pushed = {first + n for first in firsts for n in range(7)}
        queue = self.queue()
        held = places(queue._client, BASE)
        self.read(until_empty=True)
        done = dict(self.ledger().execute("SELECT id, times FROM done"))
        lost = pushed - held.known - done.keys()
        fetched = Counter((self.folder / "fetched").read_text().split())
        return {
            "rounds": rounds,
            **{f"kills: {name}": self.kills[name] for name in ("producer", "worker", "reader")},
            "kills: server": self.kills["server"],
            "ids whose push was confirmed": len(pushed),
            "lost": len(lost),
            "duplicated in the ledger": sum(times > 1 for times in done.values()),
            "recovered: fetched again by another": sum(n > 1 for n in fetched.values()),
            "done": len(done),
        }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        chaos = Chaos(Path(folder), flags.seed)
        try:
            table = chaos.run(flags.rounds)
        finally:
            private_server.stop(chaos.settings)
    print("| " + " | ".join(table) + " |")
    print("|" + "---|" * len(table))
    print("| " + " | ".join(f"{number:,}" for number in table.values()) + " |")
    return EXIT_BAD_DATA if table["lost"] else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
