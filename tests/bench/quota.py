"""How much of the quota workers use, and how often they are refused.

    python -m tests.bench.quota [--real] [--releases N]

Worker processes against the stand-in, which counts exactly, as Discogs says it does. Time is
scaled: a window lasts --window seconds instead of 60, and latencies shrink alike, so one
millisecond of ours weighs 60 / WINDOW times as much as in reality; --real adds a run in real time.
Two other clients run in the same setting: one that keeps a fixed pace of 58 a minute, one that goes
on as fast as it can and backs off when it is refused. Then what a release costs the machine.
"""

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from tabulate import tabulate

from discogs_crawler import config
from discogs_crawler.broker.connect import connect
from discogs_crawler.broker.queue import Queue
from discogs_crawler.config import Settings
from tests.conftest import bare_environment
from tests.discogs.api import Api
from tests.discogs.quota import Quota
from tests.discogs.world import World

ROOT = Path(__file__).resolve().parents[2]

# Windows that pass before we count, and in which we count. The first holds a part back. Requests
# that come in bursts return in bursts, so the count is an average over shifts of up to one window.
WARM_UP, COUNTED, SHIFTS = 2, 4, 20

Client = Callable[[str, float, threading.Event], None]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", action="store_true", help="add a run in real time, 5 minutes")
    parser.add_argument("--window", type=float, default=6, help="seconds of a window [6]")
    parser.add_argument("--releases", type=int, default=20_000, help="for the cost of one [20000]")
    flags = parser.parse_args()
    print(f"One window of 60 s is {flags.window:g} s here; steady state is {COUNTED} windows.\n")
    rows = []
    for workers in (1, 3, 8):
        rows.append(measure(f"{workers} worker(s)", flags.window, 60, 0.4, workers))
    for limit, latency in ((60, 0.1), (60, 1.0), (25, 0.1), (25, 0.4), (25, 1.0)):
        rows.append(measure("3 worker(s)", flags.window, limit, latency, 3))
    for name, client in (("58 a minute", keep_pace), ("back-off only", back_off)):
        rows.append(compare(name, flags.window, 60, 0.4, client))
    if flags.real:
        rows.append(measure("2 workers, real time", 60, 60, 0.4, 2, counted=3))
    headers = ["client", "limit", "latency + jitter", "steady state", "refused", "requests"]
    print(tabulate(rows, headers, tablefmt="github"), flush=True)
    print()
    print(tabulate(costs(flags.releases), ["releases", "CPU each", "RSS"], tablefmt="github"))
    return 0


@contextlib.contextmanager
def stage(window_s: float, limit: int, latency_s: float) -> Iterator[tuple[Api, dict[str, str]]]:
    """A stand-in with ids to spare, and the environment of workers that are to crawl it."""
    world = World()
    world.add("releases", range(1, 200_001))
    scaled = latency_s * window_s / 60
    quota = Quota(limit, limit, window_s)
    with (
        tempfile.TemporaryDirectory(prefix="bench-quota-") as folder,
        Api(world, quota, latency_s=scaled, jitter_s=scaled / 2) as api,
    ):
        environment = bare_environment(Path(folder), Path(folder)) | {
            "DISCOGS_API": api.url,
            "DISCOGS_TOKEN": "bench",
            "RATE_WINDOW_S": str(window_s),
            "COMMIT_SECONDS": str(window_s),
        }
        try:
            yield api, environment
        finally:
            connect(settings_of(environment)).shutdown(nosave=True)


def settings_of(environment: dict[str, str]) -> Settings:
    return config.load(environ=environment)


def queue_of(environment: dict[str, str]) -> Queue:
    settings = settings_of(environment)
    client = connect(settings)
    return Queue(client, "releases", prefix=settings.redis_prefix, lease_s=settings.lease_s)


def start(environment: dict[str, str], *flags: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(ROOT / "bin" / "worker.py"), "-q", *flags]
    return subprocess.Popen(command, env=environment)


def measure(
    name: str, window_s: float, limit: int, latency_s: float, workers: int, counted: int = COUNTED
) -> list[object]:
    """Let workers crawl; a row of the table."""
    with stage(window_s, limit, latency_s) as (api, environment):
        queue_of(environment).push("new", range(1, 100_001))
        processes = [start(environment) for _ in range(workers)]
        wait_for_first(api)
        time.sleep((WARM_UP + counted + 1) * window_s)
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        return row(name, api, window_s, limit, latency_s, counted)


def compare(
    name: str, window_s: float, limit: int, latency_s: float, client: Client
) -> list[object]:
    """The same for another client, in two threads."""
    with stage(window_s, limit, latency_s) as (api, _):
        ended = threading.Event()
        threads = [
            threading.Thread(target=client, args=(api.url, window_s, ended)) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        wait_for_first(api)
        time.sleep((WARM_UP + COUNTED + 1) * window_s)
        ended.set()
        for thread in threads:
            thread.join()
        return row(name, api, window_s, limit, latency_s, COUNTED)


def wait_for_first(api: Api) -> None:
    while not api.journal.since():
        time.sleep(0.01)


def row(
    name: str, api: Api, window_s: float, limit: int, latency_s: float, counted: int
) -> list[object]:
    requests = api.journal.since()
    granted = [r.monotonic - requests[0].monotonic for r in requests if r.status == 200]
    shares = []
    for shift in range(SHIFTS):
        start_s = (WARM_UP + shift / SHIFTS) * window_s
        end_s = start_s + counted * window_s
        shares.append(sum(start_s <= at < end_s for at in granted) / (limit * counted))
    share = sum(shares) / SHIFTS
    refused = sum(request.status == 429 for request in requests)
    shown = f"{latency_s:g} + {latency_s / 2:g} s"
    return [name, limit, shown, f"{share:.1%}", refused, len(requests)]


def fetch(url: str, serial: int) -> int:
    headers = {"User-Agent": "bench/1.0", "Authorization": "Discogs token=bench"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/releases/{serial % 1000 + 1}", headers=headers)
        ) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def keep_pace(url: str, window_s: float, ended: threading.Event) -> None:
    """Each of two threads sends 29 a window, at fixed intervals."""
    due = time.monotonic()
    while not ended.is_set():
        fetch(url, int(due * 1_000))
        due += 2 * window_s / 58
        ended.wait(max(0, due - time.monotonic()))


def back_off(url: str, window_s: float, ended: threading.Event) -> None:
    """As fast as answers come; after a refusal a pause that doubles, from 1/60 window to one."""
    pause = window_s / 60
    while not ended.is_set():
        if fetch(url, time.monotonic_ns()) == 429:
            ended.wait(pause)
            pause = min(window_s, 2 * pause)
        else:
            pause = window_s / 60


def costs(releases: int) -> list[list[object]]:
    """CPU time (git included) and memory of one worker, as it fetches without a limit."""
    rows: list[list[object]] = []
    before = cpu_of_children()
    with stage(60, 90_000, 0) as (_, environment):
        queue_of(environment).push("new", range(1, releases + 1))
        process = start(environment, "--until-empty")
        peak = 0
        marks = [releases * tenth // 4 for tenth in range(1, 5)]
        queue = queue_of(environment)
        while process.poll() is None:
            with contextlib.suppress(OSError):
                peak = max(peak, memory(process.pid))
            done = queue.unread()
            if marks and done >= marks[0]:
                rows.append([f"{done:,}", "", f"{memory(process.pid) / 1e6:.0f} MB"])
                marks.pop(0)
            time.sleep(0.02)
        each = (cpu_of_children() - before) / releases
        rows.append([f"{releases:,}, all", f"{each * 1e3:.2f} ms", f"at most {peak / 1e6:.0f} MB"])
    return rows


def cpu_of_children() -> float:
    """Seconds that our ended children used, and theirs; Redis, which runs on, is not among them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory(process_id: int) -> int:
    """Resident bytes of a process."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
