"""What a look costs: stats.py in the midst of the first crawl, beside counting the rows.

    python -m tests.bench.stats [--rows N]

Invents a ledger of N rows (a minute for 5 million), queues what is due in a private Redis, and runs
the script as a user does. The baseline asks the table of records for the same, in the same run.
"""

import argparse
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

from tabulate import tabulate

from discogs_crawler import clock, config
from discogs_crawler.broker import private_server
from discogs_crawler.broker.connect import connect
from discogs_crawler.broker.queue import Queue
from tests.conftest import ROOT
from tests.invented_ledger import invent

# Each is run so often; the table has the median, and the first, which finds cold caches.
RUNS = 5

ASKED = (
    ("", "the terminal"),
    ("--json", "JSON"),
    ("--html {folder}/page.html", "the page"),
    ("--prometheus {folder}/discogs.prom", "Prometheus"),
)

COUNTED = (
    "SELECT id / 1000000, dump IS NULL, state, reason, count(*) FROM releases GROUP BY 1, 2, 3, 4",
    "SELECT alive / 86400, count(*) FROM releases WHERE state = 'stored' GROUP BY 1",
)


class Cost(NamedTuple):
    """Medians, in seconds, and what the first run took."""

    what: str
    wall: float
    cpu: float
    first: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="bench-stats-") as folder:
        environ = {**os.environ, "STATE_DIR": folder, "ENV_FILE": os.devnull, "REDIS_URL": ""}
        settings = config.load(environ=environ)
        invent(settings.database, rows, int(clock.now()))
        try:
            queued = _queue(settings)
            measured = [_asked(environ, flags, what) for flags, what in ASKED]
            measured.append(_measured("baseline: counting the rows", lambda: _count(settings)))
        finally:
            private_server.stop(settings)
        size = settings.database.stat().st_size
    print(f"{rows:,} rows, ledger of {size / 1e6:,.0f} MB, {queued:,} ids in the queue\n")
    heads = ["stats.py for", "wall s", "CPU s", "first wall s", "CPU against counting"]
    counting = measured[-1].cpu
    lines = [[*cost, f"{counting / cost.cpu:.1f}x"] for cost in measured]
    print(tabulate(lines, headers=heads, tablefmt="github", floatfmt=".2f"))
    return 0


def _queue(settings: config.Settings) -> int:
    client = connect(settings)
    queue = Queue(client, "releases", prefix=settings.redis_prefix, lease_s=settings.lease_s)
    with sqlite3.connect(settings.database) as connection:
        due = connection.execute("SELECT id FROM releases WHERE reason = 'backfill'")
        return queue.push("backfill", (record_id for (record_id,) in due))


def _asked(environ: dict[str, str], flags: str, what: str) -> Cost:
    command = [sys.executable, str(ROOT / "bin" / "stats.py")]
    command += flags.format(folder=environ["STATE_DIR"]).split()
    return _measured(
        what, lambda: subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
    )


def _measured(what: str, do: Callable[[], object]) -> Cost:
    walls, cpus = [], []
    for _ in range(RUNS):
        started, used = time.perf_counter(), _cpu_s()
        do()
        walls.append(time.perf_counter() - started)
        cpus.append(_cpu_s() - used)
    return Cost(what, statistics.median(walls), statistics.median(cpus), walls[0])


def _cpu_s() -> float:
    """Seconds of a core that we and the processes that we ran have used."""
    return sum(os.times()[:4])


def _count(settings: config.Settings) -> None:
    with sqlite3.connect(settings.database) as connection:
        for sql in COUNTED:
            connection.execute(sql).fetchall()


if __name__ == "__main__":
    sys.exit(main())
