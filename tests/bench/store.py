"""What a commit costs, by the size of the store and the order of the ids.

    python -m tests.bench.store [--records N] [--rounds N]

Beside it in the same run, of the same records: `git cat-file --batch-check` and `git fast-import`
by hand; GitPython's index and the git command line in a work tree, where they can bear the size.
The default takes a minute or two, a million records half an hour.
"""

import argparse
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from git import Actor, Repo
from tabulate import tabulate

from discogs_crawler.maintenance import housekeeping
from discogs_crawler.records import record_path
from discogs_crawler.store import git, git_process
from discogs_crawler.store.fast_import import Entry
from discogs_crawler.store.git import Author, Repository
from discogs_crawler.store.layouts import Edit, SingleStore

AUTHOR = Author("bench", "bench@localhost")
BATCHES = (1, 100, 1_000)

# Records of the smallest store.
SMALL = 10_000

# Where an index of all files takes longer than one wants to wait.
LARGEST_WORK_TREE = SMALL

# At 60 requests a minute and 100 records a commit; maintenance runs each night.
COMMITS_A_DAY = 864

# Records a commit while the store is filled.
FILL = 5_000

_WORDS = [f"{number:x}word" for number in range(0, 5_000_000, 1_237)]


def record(number: int, version: int) -> bytes:
    """About 6 kB of JSON that compresses like a release."""
    chance = random.Random(number * 1_000 + version)
    lines = [f'    "{word}": "{chance.random()}"' for word in chance.choices(_WORDS, k=150)]
    text = ",\n".join(lines)
    return f'{{\n  "id": {number},\n  "text": {{\n{text}\n  }}\n}}\n'.encode()


def fill(store: SingleStore, records: int) -> None:
    for start in range(1, records + 1, FILL):
        numbers = range(start, min(start + FILL, records + 1))
        entries = [Entry(record_path("releases", n), record(n, 0)) for n in numbers]
        store.publish(store.tip(), entries, "fill\n")
    housekeeping.tidy(store.repository)


def batches(records: int, size: int, rounds: int, *, sequential: bool) -> Iterator[list[Edit]]:
    """New ids in a row, or new versions of random ones."""
    chance = random.Random(size)
    for number in range(rounds):
        if sequential:
            first = records + 1 + number * size
            numbers: Iterable[int] = range(first, first + size)
        else:
            numbers = sorted(chance.sample(range(1, records + 1), min(size, records)))
        yield [Edit(n, record(n, number + 1)) for n in numbers]


def by_hand(repository: Repository, changes: list[Edit]) -> None:
    """The least that must be done: look the old blobs up, import the new ones."""
    environment = git_process.environment()
    start = ["git", f"--git-dir={repository.path}"]
    tip = repository.tip("refs/heads/main")
    names = "".join(f"{tip}:{record_path('releases', c.id)}\n" for c in changes).encode()
    lookup = [*start, "cat-file", "--batch-check"]
    subprocess.run(lookup, input=names, env=environment, capture_output=True, check=True)
    stream = [f"commit refs/heads/main\ncommitter a <b> 1 +0000\ndata 1\nx\nfrom {tip}\n".encode()]
    for change in changes:
        data = change.data or b""
        path = record_path("releases", change.id)
        stream.append(f"M 100644 inline {path}\ndata {len(data)}\n".encode() + data + b"\n")
    command = [*start, "fast-import", "--quiet", f"--depth={git_process.DELTA_DEPTH}"]
    subprocess.run(command, input=b"".join(stream), env=environment, check=True)


def median_ms(work: Callable[[list[Edit]], object], rounds: Iterable[list[Edit]]) -> float:
    times = []
    for changes in rounds:
        started = time.perf_counter()
        work(changes)
        times.append(time.perf_counter() - started)
    return 1_000 * statistics.median(times)


def commit_times(folder: Path, records: int, rounds: int) -> list[list[object]]:
    """A row for each batch size and order; store and baseline work on copies, in turn."""
    ours = SingleStore(git.create(folder / "ours.git", "main", "single"), "main", "main", AUTHOR)
    fill(ours, records)
    rows: list[list[object]] = []
    for sequential in (True, False):
        for size in BATCHES:
            theirs = Repository(folder / "theirs.git")
            shutil.copytree(ours.repository.path, theirs.path, copy_function=_link)
            turns = list(batches(records, size, rounds, sequential=sequential))
            raw = median_ms(lambda changes, to=theirs: by_hand(to, changes), turns)
            took = median_ms(lambda changes: ours.commit("releases", changes, _all, {}), turns)
            shutil.rmtree(theirs.path)
            order = "sequential" if sequential else "random"
            rows.append([f"{records:,}", order, size, took, raw, took / raw])
            records += size * rounds if sequential else 0
    return rows


def in_turn(folder: Path, rounds: int) -> list[list[object]]:
    """New ids on the store that was measured last and on a small one; who waits, both wait."""
    small = SingleStore(git.create(folder / "small.git", "main", "single"), "main", "main", AUTHOR)
    fill(small, SMALL)
    stores = [small, SingleStore(Repository(folder / "ours.git"), "main", "main", AUTHOR)]
    last = [max(store.ids("releases")) for store in stores]
    rows: list[list[object]] = []
    for size in BATCHES[1:]:
        times: list[list[float]] = [[], []]
        for _ in range(2 * rounds):
            for number, store in enumerate(stores):
                first = last[number] + 1
                last[number] += size
                changes = [Edit(n, record(n, 1)) for n in range(first, first + size)]
                started = time.perf_counter()
                store.commit("releases", changes, _all, {})
                times[number].append(1_000 * (time.perf_counter() - started))
        here, there = map(statistics.median, times)
        rows.append([size, here, there, there / here])
    return rows


def _all() -> range:
    return range(10**9)


def _link(source: str, target: str) -> None:
    """Packs never change, so a copy may share them."""
    if "/objects/" in source:
        Path(target).hardlink_to(source)
    else:
        shutil.copy2(source, target)


def work_tree_times(folder: Path, records: int, rounds: int) -> list[list[object]]:
    """The same commits by the ways that need an index."""
    rows: list[list[object]] = []
    for name, work in (("GitPython index", by_gitpython), ("git add, git commit", by_command)):
        tree = folder / "tree"
        repo = Repo.init(tree)
        for number in range(1, records + 1):
            _write(tree, number, 0)
        repo.git.add(".")
        repo.git.execute([*_COMMIT[:1], "-C", str(tree), *_COMMIT[1:]])
        times: list[object] = []
        for size in BATCHES:
            turns = batches(records, size, min(rounds, 3), sequential=False)
            times.append(median_ms(lambda changes, r=repo, w=work: w(r, changes), turns))
        rows.append([f"{records:,}", name, *times])
        repo.close()
        shutil.rmtree(tree)
    return rows


_COMMIT = ["git", "-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "-m", "x"]


def _write(tree: Path, number: int, version: int) -> str:
    path = tree / record_path("releases", number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(record(number, version))
    return str(path)


def by_gitpython(repo: Repo, changes: list[Edit]) -> None:
    tree = Path(str(repo.working_tree_dir))
    repo.index.add([_write(tree, change.id, 7) for change in changes])
    repo.index.commit("x", author=Actor("a", "b"), committer=Actor("a", "b"))


def by_command(repo: Repo, changes: list[Edit]) -> None:
    tree = Path(str(repo.working_tree_dir))
    paths = "\n".join(_write(tree, change.id, 8) for change in changes).encode()
    add = ["git", "add", "--pathspec-from-file=-"]
    subprocess.run(add, input=paths, cwd=tree, check=True)
    subprocess.run(_COMMIT, cwd=tree, check=True)


def upkeep(folder: Path, records: int, commits: int) -> list[list[object]]:
    """Packs and bytes before and after a night's maintenance, its time and memory; a clone."""
    repository = Repository(folder / "ours.git")
    store = SingleStore(repository, "main", "main", AUTHOR)
    last = max(store.ids("releases"))
    for number in range(commits):
        if number and number % COMMITS_A_DAY == 0:
            housekeeping.tidy(repository)
        numbers = range(last + 1 + number * 10, last + 11 + number * 10)
        store.commit("releases", [Edit(n, record(n, 0)) for n in numbers], _all, {})
    stored = sum(1 for _ in store.ids("releases"))
    before = _packs_and_bytes(repository)
    started = time.perf_counter()
    housekeeping.tidy(repository)
    tidied_s = time.perf_counter() - started
    after = _packs_and_bytes(repository)
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1_000
    started = time.perf_counter()
    clone = folder / "clone.git"
    subprocess.run(
        ["git", "clone", "-q", "--bare", f"file://{repository.path}", str(clone)], check=True
    )
    cloned_s = time.perf_counter() - started
    return [
        ["records", f"{stored:,}"],
        [f"packs after {commits:,} commits of 10, tidied each {COMMITS_A_DAY}", before[0]],
        ["packs after maintenance", after[0]],
        ["bytes a record before, after", f"{before[1] / stored:,.0f}, {after[1] / stored:,.0f}"],
        ["maintenance", f"{tidied_s:.1f} s"],
        ["largest process of Git", f"{peak_mb:,.0f} MB (mapped packs included)"],
        ["clone, both ends here", f"{cloned_s:.1f} s"],
    ]


def _packs_and_bytes(repository: Repository) -> tuple[int, int]:
    files = [path for path in (repository.path / "objects").rglob("*") if path.is_file()]
    return sum(path.suffix == ".pack" for path in files), sum(p.stat().st_size for p in files)


def show(rows: list[list[object]], headers: list[str], numbers: str) -> None:
    print(tabulate(rows, headers, tablefmt="github", floatfmt=numbers or "g"), "\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=SMALL, help="in the largest store")
    parser.add_argument("--rounds", type=int, default=7, help="commits that a median is of")
    parser.add_argument("--commits", type=int, default=300, help="before maintenance")
    flags = parser.parse_args()
    sizes = [size for size in (SMALL, 100_000) if size < flags.records] + [flags.records]
    headers = ["records", "ids", "in a commit", "ms", "by hand, ms", "ratio"]
    indexed = ["records", "with an index, ms", *(f"{size} in a commit" for size in BATCHES)]
    for records in sizes:
        with tempfile.TemporaryDirectory(prefix="bench-store-") as name:
            folder = Path(name)
            show(commit_times(folder, records, flags.rounds), headers, ".2f")
            if records <= LARGEST_WORK_TREE:
                show(work_tree_times(folder, records, flags.rounds), indexed, ".0f")
            if records == sizes[-1]:
                heads = ["in a commit", f"{SMALL:,} records, ms", f"{records:,} records, ms"]
                show(in_turn(folder, flags.rounds), [*heads, "ratio"], ".2f")
                show(upkeep(folder, records, flags.commits), ["upkeep", ""], "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
