"""What seeding costs: the first dump, a month later, a day, after Redis lost everything.

    python -m tests.bench.seed [--ids 1000000] [--folder FOLDER]

Runs bin/seed_queue.py itself on files of random hashes in which about half of the numbers exist,
with a Redis server of its own, and measures each run's processor time, its peak of memory, and what
the ledger and Redis have grown to. The month changes 2 % of the hashes, adds 0.4 % and retires
0.05 %. The baseline, on a tenth of the ids, is the obvious way: two Python sets of lines, one RPUSH
an id. 20,000,000 ids need 5 GB in FOLDER.
"""

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import redis
import tabulate

from discogs_crawler.broker import private_server

ROOT = Path(__file__).resolve().parents[2]
DENSITY = 19.5 / 38
CHANGED, ADDED, RETIRED = 0.02, 0.004, 0.0005


class Cost(NamedTuple):
    """What a process cost."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def write_dump(path: Path, ids: int, *, month: int) -> None:
    """A hash file; month 1 differs from month 0 by the shares above, the same every time."""
    rng = random.Random(20261101)
    record_id = 0
    with path.open("w", encoding="ascii") as file:
        for start in range(0, ids, 100_000):
            lines = []
            for _ in range(min(100_000, ids - start)):
                record_id += 1
                while rng.random() > DENSITY:
                    record_id += 1
                digest, fate = rng.randbytes(20), rng.random()
                if month and fate < CHANGED:
                    digest = digest[::-1]
                if month and fate > 1 - RETIRED:
                    continue
                lines.append(f"{record_id}\t{digest.hex()}\n")
            file.writelines(lines)
        for _ in range(int(ids * ADDED) * month):
            record_id += 2
            digest = hashlib.sha1(b"%d" % record_id).digest()
            file.write(f"{record_id}\t{digest.hex()}\n")


@contextmanager
def private_redis(folder: Path) -> Iterator[tuple[redis.Redis, str]]:
    """A client of a server that lives during the block, and its URL."""
    socket = folder / "redis.sock"
    command = [str(private_server.find_server()), "--port", "0", "--unixsocket", str(socket)]
    command += ["--save", "", "--appendonly", "no", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            client = redis.Redis(unix_socket_path=str(socket))
            for _ in range(500):
                if socket.exists():
                    break
                time.sleep(0.01)
            client.ping()
            yield client, f"unix://{socket}"
        finally:
            server.kill()


def measure(command: list[str], environment: dict[str, str]) -> Cost:
    """Run the command; its own processor time and its peak of memory."""
    started = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command}: exit code {process.returncode}")
    return Cost(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def seed(folder: Path, url: str, *arguments: object) -> Cost:
    environment = {"STATE_DIR": str(folder / "state"), "REDIS_URL": url, "ENV_FILE": os.devnull}
    command = [sys.executable, str(ROOT / "bin" / "seed_queue.py"), *map(str, arguments)]
    return measure(command, environment)


def baseline(folder: Path, url: str, *names: str) -> Cost:
    """The obvious way, as a process of its own."""
    program = (
        "import sys, redis\n"
        "client = redis.Redis.from_url(sys.argv[1])\n"
        "old, new = (set(open(name)) for name in sys.argv[2:])\n"
        "for line in new - old:\n"
        "    client.rpush('obvious', line.split('\\t')[0])\n"
    )
    paths = [str(folder / name) for name in names]
    return measure([sys.executable, "-c", program, url, *paths], {})


def used_mb(client: redis.Redis) -> float:
    return float(client.info("memory")["used_memory"]) / 1e6


def run(ids: int, folder: Path) -> list[list[object]]:
    first, second = (folder / f"discogs_2026{month}01.hashes" for month in (10, 11))
    for month, path in enumerate((first, second)):
        write_dump(path, ids, month=month)
        write_dump(folder / f"tenth.{month}", ids // 10, month=month)
    (folder / "nothing").touch()
    rows: list[list[object]] = []
    with private_redis(folder) as (client, url):
        empty = used_mb(client)

        def note(what: str, number: int, cost: Cost) -> None:
            rows.append([what, number, *cost, used_mb(client) - empty])
            print(what, *map(round, cost), file=sys.stderr, flush=True)

        note("first dump, all queued", ids, seed(folder, url, "-n", first))
        note("a day with nothing new", ids, seed(folder, url))
        note("a month later, 2 % changed", ids, seed(folder, url, "-n", second))
        for kept in (folder / "state").glob("*.hashes"):
            kept.unlink()
        back = seed(folder, url, "--force", "-n", first)
        note("a month, last hashes lost", ids, back)
        client.flushall()
        note("after FLUSHALL", ids, seed(folder, url))
        client.flushall()
        note("**obvious way**, first", ids // 10, baseline(folder, url, "nothing", "tenth.0"))
        client.flushall()
        note("**obvious way**, a month", ids // 10, baseline(folder, url, "tenth.0", "tenth.1"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ids", type=int, default=1_000_000, help="records in the dump")
    parser.add_argument("--folder", help="where there is room")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=flags.folder) as name:
        rows = run(flags.ids, Path(name))
        size = (Path(name) / "state" / "crawler.db").stat().st_size
    titles = ["run", "ids", "s", "CPU s", "peak MB", "Redis MB"]
    formats = ("", ",", ".1f", ".1f", ".0f", ".1f")
    print(tabulate.tabulate(rows, titles, tablefmt="pipe", floatfmt=formats, intfmt=","))
    print(f"\nLedger: {size / flags.ids:.0f} bytes a record.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
