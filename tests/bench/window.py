"""How long SIGKILL can lose an export to standard output: from the place's move to our end.

    python -m tests.bench.window [--runs 20] [CHECKOUT ...]

Killed in between, an export that its reader counts as failed is not repeated. From the return of
SQLite's last COMMIT to that of the parent's waitpid, in this checkout and in others.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from tests.conftest import ROOT, bare_environment, make_ledger
from tests.plain_git import SingleStore, record

# Runs the script with a SQLite that tells the time of each COMMIT.
CLOCK = """
import os, runpy, sqlite3, sys, time
script, handle = sys.argv[1], int(sys.argv[2])

class Connection(sqlite3.Connection):
    def execute(self, sql, *parameters):
        done = super().execute(sql, *parameters)
        if sql == "COMMIT":
            os.write(handle, b"%d\\n" % time.monotonic_ns())
        return done

    def __exit__(self, *error):
        done = super().__exit__(*error)
        os.write(handle, b"%d\\n" % time.monotonic_ns())
        return done

connect = sqlite3.connect
sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=Connection, **kwargs)
sys.argv = [script, *sys.argv[3:]]
runpy.run_path(script, run_name="__main__")
"""


def window_us(checkout: Path, environment: dict[str, str]) -> float:
    """Microseconds between the two in one export."""
    reading, writing = os.pipe()
    script = str(checkout / "bin" / "export_changes.py")
    arguments = ["--consumer", "bench", "--format", "jsonl"]
    command = [sys.executable, "-c", CLOCK, script, str(writing), *arguments]
    with subprocess.Popen(
        command, env=environment, pass_fds=[writing], stdout=subprocess.DEVNULL
    ) as process:
        _, code = os.waitpid(process.pid, 0)
        ended = time.monotonic_ns()
        process.returncode = os.waitstatus_to_exitcode(code)
    os.close(writing)
    with os.fdopen(reading) as times:
        committed = [int(line) for line in times]
    assert code == 0
    return (ended - committed[-1]) / 1e3


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[], metavar="CHECKOUT")
    flags = parser.parse_args()
    checkouts = [ROOT, *flags.checkouts]
    with tempfile.TemporaryDirectory(prefix="bench-window-") as temporary:
        folder = Path(temporary)
        store = SingleStore(folder / "state" / "store" / "discogs.git")
        make_ledger(folder / "state" / "crawler.db")
        environment = bare_environment(folder, folder / "state")
        found: list[list[float]] = [[] for _ in checkouts]
        for number in range(flags.runs):
            for times, checkout in zip(found, checkouts, strict=True):
                store.commit({("releases", 1): record(1, f"{number} {checkout}")})
                times.append(window_us(checkout, environment))
    rows = [
        (checkout.name, f"{statistics.median(times):,.0f}", f"{max(times):,.0f}")
        for checkout, times in zip(checkouts, found, strict=True)
    ]
    print(
        tabulate(rows, ["checkout", "median, us", "longest, us"], "github", disable_numparse=True)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
