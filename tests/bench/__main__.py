"""All benchmarks in one go, as Markdown for the README beside this file.

    python -m tests.bench [--full] [NAME ...]

Each table has its baseline measured in the same run. The default sizes take about half an hour on
two cores; --full takes those the design speaks of (20 million ids, a million records in Git).
"""

import argparse
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime

# The arguments of the sizes that the design speaks of, and of a run that one can wait for.
BENCHES: dict[str, tuple[list[str], list[str]]] = {
    "split": (["--mb", "1000"], ["--mb", "200"]),
    "seed": (["--ids", "20000000"], ["--ids", "1000000"]),
    "queue": (["--ids", "20000000"], ["--ids", "2000000"]),
    "quota": (["--real"], []),
    "store": (["--records", "1000000"], ["--records", "10000"]),
    "memory": (["--records", "5000000", "--check"], ["--records", "100000"]),
    "importing": (["--records", "5000000", "--rounds", "1", "--full"], ["--records", "50000"]),
    "export": (["--changes", "100000"], ["--changes", "20000"]),
    "window": (["--runs", "20"], ["--runs", "20"]),
    "stats": (["--rows", "20000000"], ["--rows", "1000000"]),
    "policy": (["--scale", "200"], ["--scale", "500"]),
    "notice": (["--records", "5000"], ["--records", "1000"]),
}


def machine() -> str:
    """One line on what the figures were measured."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores ({platform.machine()}),"
        f" {memory_gb:.0f} GB, {platform.system()} {platform.release()},"
        f" Python {platform.python_version()}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="the sizes of the design")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    flags = parser.parse_args()
    unknown = set(flags.names) - set(BENCHES)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    print(machine(), flush=True)
    failed = 0
    for name in flags.names or BENCHES:
        full, quick = BENCHES[name]
        print(f"\n## {name}\n", flush=True)
        command = [sys.executable, "-m", f"tests.bench.{name}", *(full if flags.full else quick)]
        failed += subprocess.run(command, check=False).returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
