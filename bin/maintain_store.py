#!/usr/bin/env python3
"""Keep the store in order: merge, pack, back up, check.

Without an option it does the nightly work: it merges the branches of `worker.py --branch`, pins the
submodules, renews the repository's README, packs the repositories, removes what killed processes
left behind, copies the ledger to STATE_DIR/backups (two copies are kept) and checks the records
that are new since the last check. Workers may go on meanwhile. On a machine that has neither ledger
nor records it only packs what its workers have left.

Examples:

    maintain_store.py -v                 # every night
    maintain_store.py --merge            # only merge the branches
    maintain_store.py --check            # every month: all records, git fsck, ledger against Git
    maintain_store.py --refetch          # if they differ, e.g. with an older copy of the store
    maintain_store.py --reclean          # after REMOVE_FIELDS, KEEP_FIELDS or the rules changed
    maintain_store.py --to-submodules    # one repository per kind and million, for good

A check prints its findings to stdout, one per line, the first ten of each kind of finding
(-v: all). A field that REMOVE_FIELDS named until now is not in the store; --reclean prints the
command that fetches it.

Exit codes: 0 done, 1 interrupted, 64 usage, 65 a check found damage, 69 Redis, the remote or the
disk failed, 75 it is running already, an export or a commit is under way (--to-submodules), or
there is no store yet, 78 a setting or a permission is wrong.
"""

import signal

if __name__ == "__main__":  # until we listen (see cli/shutdown.py)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from discogs_crawler.cli import command
from discogs_crawler.cli.formatting import printable
from discogs_crawler.config import Settings
from discogs_crawler.maintenance import run
from discogs_crawler.maintenance.run import Upkeep


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__, "DATABASE", "STORE", "STORE_LAYOUT")
    parser.set_defaults(job=run.nightly)
    group = parser.add_mutually_exclusive_group()
    for flag, job, meaning in (
        ("--merge", run.merge, "only merge the branches"),
        ("--check", run.check, "only check, but check everything"),
        (
            "--refetch",
            run.refetch,
            "mark as wanted every record that only the ledger or only Git has; the next "
            "seed_queue.py queues them",
        ),
        ("--reclean", run.reclean, "apply changed cleaning rules to what is stored"),
        (
            "--to-submodules",
            run.to_submodules,
            "convert the store to one repository per kind and million",
        ),
    ):
        group.add_argument(flag, dest="job", action="store_const", const=job, help=meaning)
    return parser


def main(flags: argparse.Namespace, settings: Settings) -> int:
    command.terminate_like_interrupt()
    return run.alone(flags.job, Upkeep(settings, tell, all_of_it=bool(flags.verbose)))


def tell(line: str) -> None:
    print(printable(line))


if __name__ == "__main__":
    command.script(main, arguments())
