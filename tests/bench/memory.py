"""What Git takes of memory and time, by the size of the store.

    python -m tests.bench.memory [--records N] [--store FOLDER] [--check]

Makes a store of N small records in commits as an import makes them (or takes the one in FOLDER,
and changes it), then runs the scripts as a user does: the first night, which joins what the import
has left; commits of 100 neighbours, and the night after them; exports; with --check the monthly
check, which takes a minute for 200,000 records. Of each: time, processor time of the script and all
that it has started, and the anonymous memory of all its Git processes together at its peak, 100
looks a second: what Git maps of its packs is not in it, because the kernel takes that back when
memory is short. 5,000,000 records need 1 GB.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil
from tabulate import tabulate

from discogs_crawler.errors import EXIT_BAD_DATA, EXIT_DONE
from discogs_crawler.ledger import database
from discogs_crawler.ledger.rows import Row
from discogs_crawler.records import record_path
from discogs_crawler.store import fast_import, git, git_process, objects
from discogs_crawler.store.fast_import import Entry
from discogs_crawler.store.git import Author, Repository
from discogs_crawler.store.layouts import Edit, SingleStore

ROOT = Path(__file__).resolve().parents[2]
AUTHOR = Author("bench", "bench@localhost")

# As an import: records in a commit; blobs in a pack for each of two lanes.
IMPORTED = 500_000
LANES = 2

# Commits before the second night, and neighbours in each.
COMMITS, NEIGHBOURS = 100, 100


class Cost(NamedTuple):
    """What a program took."""

    wall_s: float
    cpu_s: float
    git_mb: float


class GitMemory(threading.Thread):
    """Looks at the anonymous memory of the Git processes below a process."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process(pid)
        self.peak_mb = 0.0

    def run(self) -> None:
        with contextlib.suppress(psutil.Error):
            while self._process.status() != psutil.STATUS_ZOMBIE:
                all_of_them = [self._process, *self._process.children(recursive=True)]
                self.peak_mb = max(self.peak_mb, sum(map(anonymous_mb, all_of_them)))
                time.sleep(0.01)


def anonymous_mb(process: psutil.Process) -> float:
    """0 for one that is no Git, or has ended."""
    with contextlib.suppress(OSError, IndexError):
        status = Path(f"/proc/{process.pid}/status").read_text()
        if status.startswith("Name:\tgit"):
            return int(status.split("RssAnon:")[1].split()[0]) / 1e3
    return 0.0


def measure(*command: object, environment: dict[str, str]) -> Cost:
    """Run a program; its output is not wanted."""
    began = time.monotonic()
    with Path(os.devnull).open("wb") as out:
        process = subprocess.Popen(
            [*map(str, command)], env=os.environ | environment, stdout=out, stderr=out
        )
        watcher = GitMemory(process.pid)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    watcher.join()
    if process.returncode not in (EXIT_DONE, EXIT_BAD_DATA):
        raise SystemExit(f"{command} exited {process.returncode}")
    return Cost(time.monotonic() - began, usage.ru_utime + usage.ru_stime, watcher.peak_mb)


def record(number: int) -> bytes:
    """A small record that is like no other."""
    text = '{\n  "_dump": "20261001",\n  "id": %d,\n  "title": "a %x"\n}\n'
    return (text % (number, number * 2_654_435_761 % 2**32)).encode()


def fill(repository: Repository, records: int) -> None:
    """Import every other id: blobs in packs of their own, then the commit, with their trees."""
    for start in range(1, records + 1, IMPORTED):
        ids = [2 * n for n in range(start, min(start + IMPORTED, records + 1))]
        for lane in range(LANES):
            blobs = map(record, ids[lane::LANES])
            stream = b"".join(b"blob\ndata %d\n%b\n" % (len(data), data) for data in blobs)
            repository.run(*git_process.FAST_IMPORT, stdin=stream + b"done\n")
        entries = (
            Entry(record_path("releases", n), None, objects.blob_id(record(n)).hex()) for n in ids
        )
        tip, message = repository.tip("refs/heads/main"), "Source: dump\n"
        fast_import.commit(repository, "refs/heads/main", tip, entries, message, AUTHOR)


def commit(repository: Repository, commits: int) -> None:
    """Add neighbours, in the middle of the store."""
    store = SingleStore(repository, "main", "main", AUTHOR)
    stored = int(repository.run("rev-list", "--count", "main"))
    for number in range(commits):
        first = 50_001 + (stored + number) * 2 * NEIGHBOURS
        changes = [Edit(n, record(n)) for n in range(first, first + 2 * NEIGHBOURS, 2)]
        store.commit("releases", changes, lambda: range(10**9), {})


def rows(
    folder: Path, *, check: bool, environment: Mapping[str, str]
) -> Iterator[tuple[str, Cost]]:
    """What is done with the store below the STATE_DIR `folder`, one after the other."""
    repository = Repository(folder / "store" / "discogs.git")
    environment = {"STATE_DIR": str(folder), "ENV_FILE": os.devnull, **environment}
    has_ledger = (folder / "crawler.db").exists()
    if not has_ledger:  # without one the nights would count the records for the store's README
        with database.open(folder / "crawler.db") as ledger, ledger.transaction():
            ledger.save("releases", [Row(1, alive=1, crawled=1, status=200)])

    def script(name: str, *arguments: str) -> Cost:
        program = (sys.executable, ROOT / "bin" / name)
        return measure(*program, *arguments, environment=environment)

    def commits(number: int) -> Cost:
        module = (sys.executable, "-m", "tests.bench.memory", "--commit", number)
        return measure(*module, "--store", folder, environment=environment)

    yield "the first night", script("maintain_store.py")
    nothing, some = commits(0), commits(COMMITS)
    each = [(after - before) / COMMITS for after, before in zip(some, nothing, strict=True)]
    yield f"a commit of {NEIGHBOURS} neighbours", Cost(each[0], each[1], some.git_mb)
    yield f"the night after {COMMITS} commits", script("maintain_store.py")
    for form in ("names", "jsonl"):
        new = ("export_changes.py", "--consumer", form, "--format", form)
        yield f"first export, {form}", script(*new)
        tip = repository.tip("refs/heads/main") or ""
        since = repository.run("rev-parse", f"{tip}~{COMMITS // 2}").decode().strip()
        script("export_changes.py", "--consumer", form, "--reset", since)
        yield f"export of {COMMITS // 2 * NEIGHBOURS:,} changes, {form}", script(*new)
    for options in ((), ("--filter=blob:none",)):
        with tempfile.TemporaryDirectory(dir=folder) as target:
            command = ("git", "clone", "--bare", "--quiet", *options)
            source = f"file://{repository.path}"
            yield " ".join(command[:2] + options), measure(*command, source, target, environment={})
    if has_ledger:
        yield "stats.py", script("stats.py")
    if check:
        # With a ledger it tells the records that were committed here, which is no failure.
        if not has_ledger:
            environment["DATABASE"] = str(folder / "none.db")
        yield "maintain_store.py --check", script("maintain_store.py", "--check")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="a STATE_DIR without ledger")
    parser.add_argument("--check", action="store_true", help="the monthly check, too")
    parser.add_argument("--commit", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.commit is not None:
        commit(Repository(flags.store / "store" / "discogs.git"), flags.commit)
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as name:
        folder = flags.store or Path(name)
        if not flags.store:
            path = folder / "store" / "discogs.git"
            fill(git.create(path, "main", "single"), flags.records)
        show(folder, check=flags.check, environment={})
    return 0


def show(folder: Path, *, check: bool, environment: Mapping[str, str]) -> None:
    """Print the table."""
    table = []
    for what, cost in rows(folder, check=check, environment=environment):
        print(what, *(f"{number:.3f}" for number in cost), file=sys.stderr, flush=True)
        table.append((what, *cost))
    titles = ["what", "s", "CPU s", "Git, MB"]
    print(tabulate(table, titles, tablefmt="github", floatfmt=("", ".2f", ".2f", ".0f")))


if __name__ == "__main__":
    sys.exit(main())
