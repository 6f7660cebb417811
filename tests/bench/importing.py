"""How fast is a dump imported, next to Git alone fed with the finished records?

    python -m tests.bench.importing [--records N] [--rounds N] [--full]

Makes two dumps in today's format, a month apart, in which 2 % of the records changed; splits and
seeds them with a Redis of its own, and imports each, by the scripts as a user runs them. Beside
them one `git fast-import` a core with an equal share of the same records, ready made, in one commit
each. The month's import is held against its split. What is compared takes turns, so that other
work on the machine hits both; medians of wall time and of CPU seconds of all processes, which
other work changes less. 5,000,000 records need 40 GB. With --full
tests.bench.memory goes on with the store.
"""

import argparse
import contextlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
from tabulate import tabulate

from discogs_crawler.records import record_path
from discogs_crawler.store import git, git_process, objects
from discogs_crawler.store.git import Repository
from tests.bench import memory
from tests.bench.seed import private_redis
from tests.bench.split import make_dump

ROOT = Path(__file__).resolve().parents[2]

# Bytes of XML of an invented record, about.
RECORD_B = 3_350

CORES = len(os.sched_getaffinity(0))

# Seconds between two looks at the memory; shared memory takes longer to look at.
LOOK_S = 0.05
LOOK_AT_SHARED_S = 0.5


class Cost(NamedTuple):
    """What something took: seconds, CPU seconds of all its processes, and memory at most in MB."""

    wall: float
    cpu: float
    ours_mb: float = 0
    """anonymous, of our processes"""
    all_mb: float = 0
    """anonymous, with those of Git"""
    shared_mb: float = 0
    """all of all processes; what some of them share is counted once (PSS)"""

    def line(self, records: int) -> str:
        """For the table."""
        return (
            f"{self.wall:.1f} s, {records / self.wall:,.0f} records/s; {self.cpu:.1f} s of CPU, "
            f"{self.cpu / records * 1e6:,.0f} us a record"
        )


def middle(costs: list[Cost]) -> Cost:
    """The median of each."""
    return Cost(*map(median, zip(*costs, strict=True)))


class Memory(threading.Thread):
    """Looks at the memory of a process and its children while they run."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process(pid)
        self.ours_mb = self.all_mb = self.shared_mb = 0.0

    def run(self) -> None:
        looked = 0.0
        with contextlib.suppress(psutil.Error):
            while self._process.status() != psutil.STATUS_ZOMBIE:
                family = self._family()
                sizes = {pid: _kilobytes(pid, "status", "RssAnon:") / 1e3 for pid in family}
                ours = [size for pid, size in sizes.items() if "git" not in family[pid][:4]]
                self.ours_mb = max(self.ours_mb, sum(ours))
                self.all_mb = max(self.all_mb, sum(sizes.values()))
                if time.monotonic() - looked > LOOK_AT_SHARED_S:
                    shared = sum(_kilobytes(pid, "smaps_rollup", "Pss:") for pid in family)
                    self.shared_mb = max(self.shared_mb, shared / 1e3)
                    looked = time.monotonic()
                time.sleep(LOOK_S)

    def _family(self) -> dict[int, str]:
        """The processes and their command lines."""
        found = {self._process.pid: " ".join(self._process.cmdline())}
        for child in self._process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                command = " ".join(child.cmdline())
                # One that has not begun its own program yet has the memory of its parent.
                if command != found.get(child.ppid()):
                    found[child.pid] = command
        return found


def _kilobytes(pid: int, file: str, name: str) -> int:
    try:
        text = Path(f"/proc/{pid}/{file}").read_text()
        return int(text.split(name)[1].split()[0])
    except (OSError, IndexError):
        return 0  # it has ended


@contextlib.contextmanager
def cpu_of_children() -> Iterator[list[float]]:
    """A list with the CPU seconds of the processes that were started and ended in the block."""
    used: list[float] = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield used
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def script(state: Path, name: str, *arguments: str) -> Cost:
    """What a script took with a state folder."""
    # As users have it: modules are compiled once.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"STATE_DIR": str(state), "ENV_FILE": os.devnull}
    environment["PYTHONPYCACHEPREFIX"] = str(state.parent / "compiled")
    command = [sys.executable, str(ROOT / "bin" / name), *arguments]
    with cpu_of_children() as cpu:
        started = time.perf_counter()
        with subprocess.Popen(command, env=environment) as process:
            memory = Memory(process.pid)
            memory.start()
            process.wait()
            seconds = time.perf_counter() - started
            memory.join()
    if process.returncode:
        raise SystemExit(f"{command} exited {process.returncode}")
    return Cost(seconds, cpu[0], memory.ours_mb, memory.all_mb, memory.shared_mb)


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


def make_inputs(repository: Repository, folder: Path) -> list[Path]:
    """The records of a store, ready made: a file a core."""
    listing = repository.run("ls-tree", "-r", "main", "releases").decode().splitlines()
    names = []
    for line in listing:
        head, path = line.split("\t")
        names.append((int(path.rpartition("/")[2][:-5]), head.split()[2]))
    names.sort()
    share = -(-len(names) // CORES)
    inputs = []
    for number in range(CORES):
        inputs.append(folder / f"input{number}")
        with inputs[-1].open("wb") as file:
            file.writelines(finished(repository, names[number * share :][:share]))
    return inputs


def plain_git(inputs: list[Path]) -> Cost:
    """What Git alone takes."""
    with tempfile.TemporaryDirectory(dir=inputs[0].parent) as name, cpu_of_children() as cpu:
        folders = [Path(name) / f"{number}.git" for number in range(len(inputs))]
        for folder in folders:
            git.create(folder, "main", "single")
        started = time.perf_counter()
        running = []
        for folder, source in zip(folders, inputs, strict=True):
            with source.open("rb") as file:
                command = ["git", f"--git-dir={folder}", *git_process.FAST_IMPORT]
                running.append(subprocess.Popen(command, stdin=file))
        codes = [process.wait() for process in running]
        if any(codes):
            raise SystemExit("git fast-import failed")
        seconds = time.perf_counter() - started
    return Cost(seconds, cpu[0])


def turns(state: Path, rounds: int) -> Iterator[Path]:
    """State folders that are alike: copies, and at last the folder itself."""
    for number in range(rounds - 1):
        copy = state.with_name(f"{state.name}-{number}")
        shutil.copytree(state, copy)
        yield copy
        shutil.rmtree(copy)
    yield state


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured [3]")
    parser.add_argument("--full", action="store_true", help="then what can be done with the store")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-import-") as name:
        folder = Path(name)
        with private_redis(folder) as (_, url):
            os.environ["REDIS_URL"] = url
            rows = []
            for row in measure(folder, flags.records, flags.rounds):
                print(*row, sep=": ", file=sys.stderr, flush=True)
                rows.append(row)
            print(f"Medians of {flags.rounds} rounds.\n")
            heads = ["what", "measured"]
            print(tabulate(rows, heads, tablefmt="github", disable_numparse=True), flush=True)
            if flags.full:
                print()
                memory.show(folder / "state", check=True, environment={"REDIS_URL": url})


def measure(folder: Path, wanted: int, rounds: int) -> Iterator[tuple[str, str]]:
    """Rows of the table."""
    state = folder / "state"
    first, second = (folder / f"discogs_2026{month}01_releases.xml.gz" for month in (10, 11))
    size, records = make_dump(first, wanted * RECORD_B // 1_000_000, 1)
    make_dump(second, wanted * RECORD_B // 1_000_000, 2)
    hashes = str(folder / "hashes")

    split = script(state, "discogs_xml_split.py", "-d", str(first), "-r", hashes)
    script(state, "seed_queue.py", "-n", hashes, "--adopt")
    inputs: list[Path] = []
    imports, bare = [], []
    for copy in turns(state, rounds):
        imports.append(script(copy, "import_dump.py", "-d", str(first)))
        inputs = inputs or make_inputs(Repository(copy / "store" / "discogs.git"), folder)
        bare.append(plain_git(inputs))
    json_size = sum(file.stat().st_size for file in inputs)
    for file in inputs:
        file.unlink()
    again = script(state, "import_dump.py", "-d", str(first))
    done, alone = middle(imports), middle(bare)
    yield "records", f"{records:,}"
    yield "bytes of XML, of JSON", f"{size // records:,}, {json_size // records:,}"
    yield "split, first month", split.line(records)
    yield "import", done.line(records)
    yield f"{CORES} git fast-import alone", alone.line(records)
    yield "Git alone : import", f"{alone.wall / done.wall:.2f}; CPU {alone.cpu / done.cpu:.2f}"
    yield from memory_rows("import", imports)
    yield "the same dump again", f"{again.wall:.1f} s"

    without_store = folder / "without"
    shutil.copytree(state, without_store, ignore=shutil.ignore_patterns("store"))
    splits = [script(state, "discogs_xml_split.py", "-d", str(second), "-r", hashes)]
    script(state, "seed_queue.py", "-n", hashes, "--adopt")
    imports = []
    for number, copy in enumerate(turns(state, rounds)):
        imports.append(script(copy, "import_dump.py", "-d", str(second)))
        if number:
            again_split = without_store.with_name(f"without-{number}")
            shutil.copytree(without_store, again_split)
            command = ("discogs_xml_split.py", "-d", str(second), "-r", f"{hashes}-{number}")
            splits.append(script(again_split, *command))
    done, split = middle(imports), middle(splits)
    yield "split, a month later", split.line(records)
    yield "import, a month later", done.line(records)
    ratio = f"{done.wall / split.wall:.2f}; CPU {done.cpu / split.cpu:.2f}"
    yield "import : split, a month later", ratio
    yield from memory_rows("import, a month later", imports)
    disk = sum(file.stat().st_size for file in (state / "store").rglob("*.pack"))
    yield "packs", f"{disk / 1e6:,.0f} MB"


def memory_rows(what: str, costs: list[Cost]) -> Iterator[tuple[str, str]]:
    """The peaks of all rounds."""
    most = Cost(*map(max, zip(*costs, strict=True)))
    yield (
        f"peak memory, {what}",
        f"{most.ours_mb:.0f} MB anonymous in our processes, {most.all_mb:.0f} MB with Git's; "
        f"{most.shared_mb:.0f} MB with what is mapped (PSS)",
    )


if __name__ == "__main__":
    main()
