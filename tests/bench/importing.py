"""How fast is a dump imported, next to Git alone fed with the finished records?

    python -m tests.bench.importing [--records N] [--full]

Makes two dumps in today's format, a month apart, in which 2 % of the records changed; splits and
seeds them with a Redis of its own, and imports each, by the scripts as a user runs them. Beside
them, in the same run, one `git fast-import` a core with an equal share of the same records, ready
made, in one commit each. The month's import is held against its split. --full goes on with the
table of tests.bench.memory on that store. 5,000,000 records need 40 GB.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from tabulate import tabulate

from discogs_crawler.records import record_path
from discogs_crawler.store import fast_import, git, objects
from discogs_crawler.store.git import Repository
from tests.bench import memory
from tests.bench.seed import private_redis
from tests.bench.split import Measured, Watcher, make_dump

ROOT = Path(__file__).resolve().parents[2]

# Bytes of XML of an invented record, about.
RECORD_B = 3_350

# The whole dump of releases of 2026: records.
WHOLE = 19_500_000

CORES = len(os.sched_getaffinity(0))


class Anonymous(Watcher):
    """Looks at the memory of a process and its children without what Git maps of its packs."""

    def run(self) -> None:
        with contextlib.suppress(psutil.Error):
            self._watch()

    def _watch(self) -> None:
        while self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE:
            sizes = [0.0]
            with contextlib.suppress(psutil.Error):
                for process in (self._process, *self._process.children(recursive=True)):
                    with contextlib.suppress(OSError, IndexError):
                        status = Path(f"/proc/{process.pid}/status").read_text()
                        sizes.append(int(status.split("RssAnon:")[1].split()[0]) / 1e3)
            self.all_mb = max(self.all_mb, sum(sizes))
            time.sleep(0.05)


def timed(command: list[str], environment: dict[str, str]) -> Measured:
    """How long a script took, and what memory it and its children had at most."""
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, *command], env=environment) as process:
        watcher = Anonymous(process.pid)
        watcher.start()
        process.wait()
        seconds = time.perf_counter() - started
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{command} exited {process.returncode}")
    return Measured(seconds, watcher.main_mb, watcher.all_mb)


def finished(repository: Repository, names: list[tuple[int, str]]) -> Iterator[bytes]:
    """The input of a `git fast-import` that commits these records."""
    yield b"commit refs/heads/main\ncommitter a <a@localhost> 0 +0000\ndata 0\n"
    for start in range(0, len(names), 1_000):
        part = names[start : start + 1_000]
        blobs = objects.contents(repository.path, [oid for _, oid in part])
        for (record_id, _), data in zip(part, blobs, strict=True):
            assert data is not None
            path = record_path("releases", record_id).encode()
            yield b"M 644 inline %b\ndata %d\n%b\n" % (path, len(data), data)
    yield b"done\n"


def plain_git(repository: Repository, folder: Path) -> tuple[float, int]:
    """Seconds for Git alone with the records of a store; the bytes of the records."""
    listing = repository.run("ls-tree", "-r", "main", "releases").decode().splitlines()
    names = []
    for line in listing:
        head, path = line.split("\t")
        names.append((int(path.rpartition("/")[2][:-5]), head.split()[2]))
    names.sort()
    share = -(-len(names) // CORES)
    inputs, size = [], 0
    for number in range(CORES):
        source = folder / f"input{number}"
        with source.open("wb") as file:
            file.writelines(finished(repository, names[number * share :][:share]))
        size += source.stat().st_size
        git.create(folder / f"plain{number}.git", "main", "single")
        inputs.append(source)
    started = time.perf_counter()
    running = []
    for number, source in enumerate(inputs):
        with source.open("rb") as file:
            command = ["git", f"--git-dir={folder}/plain{number}.git", *fast_import.FAST_IMPORT]
            running.append(subprocess.Popen(command, stdin=file))
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("git fast-import failed")
    seconds = time.perf_counter() - started
    for source in inputs:
        source.unlink()
    return seconds, size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--full", action="store_true", help="then what can be done with the store")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-import-") as name:
        folder = Path(name)
        with private_redis(folder) as (_, url):
            measure(folder, url, flags.records)
            if flags.full:
                print()
                state = folder / "state"
                memory.show(state, check=True, environment={"REDIS_URL": url})


def measure(folder: Path, url: str, wanted: int) -> None:
    environment = os.environ | {
        "STATE_DIR": str(folder / "state"),
        "ENV_FILE": os.devnull,
        "REDIS_URL": url,
    }
    rows = []
    bare = 0.0
    for month in (1, 2):
        path = folder / f"discogs_2026{9 + month}01_releases.xml.gz"
        size, records = make_dump(path, wanted * RECORD_B // 1_000_000, month)
        hashes = f"{path}.hashes"
        split = timed(
            [f"{ROOT}/bin/discogs_xml_split.py", "-d", str(path), "-r", hashes], environment
        )
        timed([f"{ROOT}/bin/seed_queue.py", "-n", hashes, "--adopt"], environment)
        done = timed([f"{ROOT}/bin/import_dump.py", "-d", str(path)], environment)
        again = timed([f"{ROOT}/bin/import_dump.py", "-d", str(path)], environment)
        if month == 1:
            done_first = done
            repository = Repository(folder / "state" / "store" / "discogs.git")
            bare, json_size = plain_git(repository, folder)
            rows += [
                ("records", f"{records:,}"),
                ("bytes of XML, of JSON", f"{size // records:,}, {json_size // records:,}"),
                ("split, first month", f"{split.seconds:.1f} s"),
                ("import", f"{done.seconds:.1f} s, {records / done.seconds:,.0f} records/s"),
                ("peak anonymous memory, all processes", f"{done.all_mb:.0f} MB"),
                (
                    f"{CORES} git fast-import alone",
                    f"{bare:.1f} s, {records / bare:,.0f} records/s",
                ),
                ("import : Git alone", f"{bare / done.seconds:.2f}"),
                ("the same dump again", f"{again.seconds:.1f} s"),
            ]
        else:
            ratio = done.seconds / split.seconds
            rows += [
                ("split, a month later", f"{split.seconds:.1f} s"),
                ("import, a month later", f"{done.seconds:.1f} s, {ratio:.2f} of the split"),
                ("the same, a month later", f"{done.all_mb:.0f} MB"),
            ]
    disk = sum(file.stat().st_size for file in (folder / "state" / "store").rglob("*.pack"))
    rows.append(("packs", f"{disk / 1e6:,.0f} MB"))
    whole = WHOLE / records
    hours, packs_gb = done_first.seconds * whole / 3_600, disk * whole / 1e9
    rows.append((f"{WHOLE:,} records would take", f"{hours:.1f} h, {packs_gb:,.0f} GB"))
    print(tabulate(rows, ["what", "measured"], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
