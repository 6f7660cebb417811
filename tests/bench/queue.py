"""What millions of pending ids cost in Redis: our bitmaps beside a list, set, stream, sorted set.

    nice python -m tests.bench.queue [--ids 20000000]

Every server is a fresh one. Of the baselines at most 200,000 ids are loaded, and the bytes of an
id are what counts: `all` is extrapolated from them to the ids of the bitmaps.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import redis
from tabulate import tabulate

from discogs_crawler import config
from discogs_crawler.broker import private_server
from discogs_crawler.broker.connect import connect
from discogs_crawler.broker.messages import Result
from discogs_crawler.broker.queue import Queue

BASELINE_IDS = 200_000

# Ids that exist are about every other one.
STEP = 2

SECONDS = 3
WORKERS = 8


@contextmanager
def server() -> Iterator[redis.Redis]:
    """A private server with its append-only file, as the crawler starts it."""
    with tempfile.TemporaryDirectory(prefix="bench-queue-") as folder:
        settings = config.load(environ={"ENV_FILE": os.devnull, "STATE_DIR": folder})
        try:
            yield connect(settings)
        finally:
            private_server.stop(settings)


def ids(number: int) -> range:
    return range(1, number * STEP + 1, STEP)


def in_pipelines(client: redis.Redis, number: int, add: Callable[..., object]) -> None:
    left = iter(ids(number))
    while batch := list(islice(left, 10_000)):
        pipeline = client.pipeline(transaction=False)
        add(pipeline, batch)
        pipeline.execute()


def add_stream(pipeline: redis.Redis, batch: Iterable[int]) -> None:
    for record_id in batch:
        pipeline.xadd("q", {"id": record_id})


BASELINES: dict[str, Callable[..., object]] = {
    "list": lambda pipeline, batch: pipeline.rpush("q", *batch),
    "set": lambda pipeline, batch: pipeline.sadd("q", *batch),
    "stream": add_stream,
    "sorted set": lambda pipeline, batch: pipeline.zadd("q", {i: i for i in batch}),
}


def used(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])


def row(name: str, number: int, total: int, used_bytes: int, seconds: float) -> list[object]:
    each = used_bytes / number
    loading = seconds / number * 1e6
    return [name, f"{number:,}", f"{each:.2f}", f"{each * total / 1e6:,.0f} MB", f"{loading:.2f} s"]


def load_baselines(total: int) -> Iterator[list[object]]:
    number = min(total, BASELINE_IDS)
    for name, add in BASELINES.items():
        with server() as client:
            before, started = used(client), time.perf_counter()
            in_pipelines(client, number, add)
            took = time.perf_counter() - started
            yield row(name, number, total, used(client) - before, took)


def queue_of(client: redis.Redis) -> Queue:
    return Queue(client, "releases", prefix="discogs", lease_s=600)


def work(path: str, owner: str, at_once: int, seconds: float) -> tuple[float, float, int]:
    """Claim and complete for some seconds: seconds in claims, seconds in completes, ids."""
    queue = queue_of(redis.Redis(unix_socket_path=path))
    claiming = completing = 0.0
    done = 0
    deadline = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < deadline:
        leases = queue.claim(owner, at_once)
        claimed = time.perf_counter()
        queue.complete([(lease, Result(lease.id, lease.reason, "stored")) for lease in leases])
        completing += time.perf_counter() - claimed
        claiming += claimed - begun
        done += len(leases)
    return claiming, completing, done


def rates(path: str, workers: int, at_once: int) -> list[object]:
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        tasks = [(path, f"bench:{n}", at_once, SECONDS) for n in range(workers)]
        begun = time.perf_counter()
        answers = pool.starmap(work, tasks, chunksize=1)
        took = time.perf_counter() - begun
    done = sum(number for _, _, number in answers)
    claims = sum(number / seconds for seconds, _, number in answers)
    completes = sum(number / seconds for _, seconds, number in answers)
    return [workers, at_once, f"{claims:,.0f}", f"{completes:,.0f}", f"{done / took:,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ids", type=int, default=20_000_000)
    total = parser.parse_args().ids
    with server() as client:
        queue, before, started = queue_of(client), used(client), time.perf_counter()
        queue.push("backfill", ids(total))
        took = time.perf_counter() - started
        rows = [row("**bitmaps** (pending and known)", total, total, used(client) - before, took)]
        path = client.connection_pool.connection_kwargs["path"]
        speeds = [rates(path, workers, n) for workers in (1, WORKERS) for n in (1, 100)]
        aof_bytes = sum(file.stat().st_size for file in Path(path).parent.rglob("*.aof"))
        print(f"Append-only file at the end: {aof_bytes / 1e6:,.0f} MB.\n")
    rows += load_baselines(total)
    headers = ["structure", "ids loaded", "bytes an id", f"{total:,} ids", "loading a million"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), "\n")
    headers = ["workers", "ids at once", "claims/s", "completes/s", "both, ids/s"]
    print(tabulate(speeds, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
