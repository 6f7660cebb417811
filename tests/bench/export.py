"""Exports beside the Git commands that they cannot be faster than.

    python -m tests.bench.export [--changes N]

A repository of twice N records, N of which change in one commit (neighbours, or any). `names` is
compared with `git diff --name-only`, the start of the interpreter taken off; `jsonl` with
`git cat-file --batch` over the same objects in the same order, and with itself with `--previous`,
which reads twice as many. Best of several runs.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from discogs_crawler.records import record_path
from tests.conftest import ROOT, make_ledger
from tests.plain_git import git

RUNS = 5
TRACKS = 20

_TRACK = {
    "duration": "3:20",
    "extraartists": [{"id": 1, "name": "%s", "role": "Producer"}],
    "position": "A1",
    "title": "%s",
}
_TEMPLATE = json.dumps({"id": "%s", "notes": "%s", "tracklist": [_TRACK] * TRACKS}, indent=2)


def record(number: int, version: int) -> bytes:
    """About 4 kB of indented JSON, half of which is like that of any other record."""
    letters = random.Random(number * 2 + version).randbytes(600).hex()
    texts = [letters[begin : begin + 20] for begin in range(0, 40 * TRACKS, 20)]
    return (_TEMPLATE % (number, letters[-300:], *texts)).encode() + b"\n"


def commit(folder: Path, numbers: Iterable[int], version: int) -> str:
    """Commit these records in one go; the new tip."""
    command = ["git", "-C", str(folder), "fast-import", "--quiet", "--depth=3"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as running:
        assert running.stdin is not None
        who = b"committer bench <bench@localhost> 1700000000 +0000\n"
        running.stdin.write(b"commit refs/heads/main\n%bdata 0\n" % who)
        if version:
            running.stdin.write(b"from refs/heads/main^0\n")
        for number in numbers:
            data = record(number, version)
            path = record_path("releases", number).encode()
            running.stdin.write(b"M 100644 inline %b\ndata %d\n%b\n" % (path, len(data), data))
    assert running.returncode == 0
    return git(folder, "rev-parse", "main")


def best_s(
    commands: Sequence[Sequence[str]], environment: Mapping[str, str], given: Path
) -> list[float]:
    """The shortest wall time of each command, taken in turns, so that noise hits all alike."""
    best = [float("inf")] * len(commands)
    for _ in range(RUNS):
        for number, command in enumerate(commands):
            with given.open("rb") as stdin, Path(os.devnull).open("wb") as out:
                began = time.monotonic()
                subprocess.run(command, stdin=stdin, stdout=out, env=environment, check=True)
                best[number] = min(best[number], time.monotonic() - began)
    return best


def peak_mb(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """The most memory that the process itself (not Git below it) had, in MB."""
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as running:
        while running.poll() is None:
            for line in Path(f"/proc/{running.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak = int(line.split()[1])
            time.sleep(0.005)
    return peak / 1e3


def compare(folder: Path, old: str, environment: Mapping[str, str], changes: int) -> list[object]:
    """One row: time of ours and of Git for names, rates and memory for jsonl and --previous."""
    script = [sys.executable, str(ROOT / "bin" / "export_changes.py"), "--dry-run"]
    ours = [*script, "--consumer", "bench", "--from", old]
    blobs = folder.parent / "blobs"
    raw = git(folder, "diff-tree", "-r", "--raw", "--no-abbrev", "--no-renames", old, "main")
    blobs.write_text("".join(line.split()[3] + "\n" for line in raw.splitlines()))
    diff = ["git", "-C", str(folder), "diff", "--name-only", "--no-renames", "-z", f"{old}..main"]
    read = ["git", "-C", str(folder), "cat-file", "--batch"]
    bare = [sys.executable, "-c", "pass"]
    nothing = [*script, "--consumer", "none", "--from", "main"]
    names, lines = [*ours, "-z"], [*ours, "--format", "jsonl"]
    both = [*lines, "--previous"]
    commands = [bare, nothing, [*diff, "--", "releases/"], names, read, lines, both]
    start_s, idle_s, diff_s, names_s, read_s, json_s, both_s = best_s(commands, environment, blobs)
    return [
        f"{diff_s * 1e3:,.0f} ms",
        f"{names_s * 1e3:,.0f} ms",
        f"{(names_s - start_s) / diff_s:.2f}",
        f"{(names_s - idle_s) / diff_s:.2f}",
        f"{changes / read_s:,.0f}/s",
        f"{changes / (json_s - start_s):,.0f}/s",
        f"{read_s / (json_s - start_s):.2f}",
        f"{peak_mb(lines, environment):.0f} MB",
        f"{changes / (both_s - start_s):,.0f}/s",
        f"{(json_s - start_s) / (both_s - start_s):.2f}",
        f"{peak_mb(both, environment):.0f} MB",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--changes", type=int, default=100_000, metavar="N")
    changes = parser.parse_args().changes
    rows = []
    for order in ("neighbours", "any"):
        with tempfile.TemporaryDirectory(prefix="bench-export-") as temporary:
            folder = Path(temporary) / "store" / "discogs.git"
            folder.mkdir(parents=True)
            git(folder, "init", "--quiet", "--bare", "--initial-branch=main")
            old = commit(folder, range(1, 4 * changes, 2), 0)
            present = list(range(1, 4 * changes, 2))
            chosen = present[:changes]
            if order == "any":
                chosen = sorted(random.Random(1).sample(present, changes))
            commit(folder, chosen, 1)
            make_ledger(Path(temporary) / "crawler.db")
            environment = dict(os.environ) | {"STATE_DIR": temporary, "ENV_FILE": os.devnull}
            rows.append([f"{changes:,} {order}", *compare(folder, old, environment, changes)])
    head = ["records changed", "`git diff`", "names", "ratio", "ratio, nothing-to-do taken off"]
    head += ["`cat-file`", "jsonl", "ratio", "memory"]
    head += ["with --previous", "ratio to without", "memory"]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
