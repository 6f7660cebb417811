"""Hurt the whole system for as many rounds as you like, and print what came of it.

    python -m tests.chaos [--rounds 1000] [--seed 1] [--remote] [--submodules]

Prints a Markdown table; exits 1 if anything was lost, stale, left behind or stuck. Its folder stays
in that case, with a file `bugN` or `stuckN` of what each script concerned has said.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.system import System
from tests.chaos.test_chaos import WRONG

# Rounds between two calms, after each of which the oracle looks at everything.
ROUNDS_A_LIFE = 50


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--remote", action="store_true", help="with a remote that comes and goes")
    parser.add_argument("--submodules", action="store_true", help="with several repositories")
    flags = parser.parse_args()
    columns = ["rounds", "kills", "kills of Git", "freezes", "Redis kills", "remote away"]
    columns += ["full disks", "requests", "429", *WRONG]
    total = dict.fromkeys(columns, 0)
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for start in range(0, flags.rounds, ROUNDS_A_LIFE):
        folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        system = System(
            folder, flags.seed + start, remote=flags.remote, submodules=flags.submodules
        )
        try:
            for _ in range(min(ROUNDS_A_LIFE, flags.rounds - start)):
                system.round()
            system.recover()
            system.judge()
        finally:
            system.close()
        for name in columns:
            total[name] += system.table[name]
        wrong = any(system.table[name] for name in WRONG)
        print(f"| {' | '.join(str(total[name]) for name in columns)} |", flush=True)
        if wrong:
            print(f"kept for you to look at: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    return 1 if any(total[name] for name in WRONG) else 0


if __name__ == "__main__":
    sys.exit(main())
