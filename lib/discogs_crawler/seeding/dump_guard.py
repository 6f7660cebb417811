"""No mass deletion by accident: which dumps are refused, and what the user can do.

A truncated dump, a format change or hashes by other rules would retire or fetch again millions of
records. So a dump that differs too much from the last one is refused and nothing is changed, unless
the user says `--adopt` (changed hashes are no reason to fetch) or `--force` (the dump is right).
"""

from typing import NamedTuple

from discogs_crawler.errors import BadData
from discogs_crawler.ledger.database import NAMELESS
from discogs_crawler.ledger.rows import DumpRow

# A dump with fewer records than this share of the last one's is taken for truncated.
FEWEST_SHARE = 0.98

# More records than this share of the last dump's that are no longer there: something is wrong.
RETIRED_SHARE = 0.02

# More than this share of the common records with another hash: Discogs writes them differently.
CHANGED_SHARE = 0.5


class Comparison(NamedTuple):
    """How a dump differs from what the ledger has."""

    before: int
    after: int
    added: int
    changed: int
    retired: int

    @property
    def common(self) -> int:
        return self.after - self.added


def is_same_dump(last: DumpRow, dump: DumpRow) -> bool:
    """Whether it is the same dump, hashed by other rules, so that no record has changed."""
    return last.sha256 is not None and last.sha256 == dump.sha256


def refuse_other_rules(last: DumpRow, dump: DumpRow) -> None:
    """BadData if the hashes cannot be compared; newer rules must begin with the same dump."""
    ours, theirs = last.canonical_version, dump.canonical_version
    if ours == theirs or (is_same_dump(last, dump) and ours < theirs):
        return
    if theirs < ours:
        way_out = f"split {_name(dump)} again{'' if theirs else ' without --raw'}"
    else:
        way_out = f"first split {_name(last)} by those rules too and seed with that"
    raise BadData(
        f"{_name(dump)} was hashed {_rules(theirs)}, but {_name(last)}, which the ledger has, "
        f"{_rules(ours)}, so all hashes differ; nothing was changed; {way_out}, or --adopt takes "
        "the hashes and asks only for added and retired records"
    )


def _name(dump: DumpRow) -> str:
    return "the dump from standard input" if dump.file == NAMELESS else dump.file


def _rules(version: int) -> str:
    return f"by rules {version}" if version else "with --raw"


def refuse_unlikely(found: Comparison, last: DumpRow, dump: DumpRow, *, adopt: bool) -> None:
    """BadData if the dump can hardly be right; with `adopt` any number of hashes may differ."""
    is_older = dump.not_before < last.not_before and dump.result_sha256 != last.result_sha256
    is_rewritten = found.changed > CHANGED_SHARE * found.common
    way_out = "--force accepts it anyway"
    if is_older:
        problem = "it is older"
    elif found.after < FEWEST_SHARE * found.before:
        problem = f"it has {found.after:,} records instead of {found.before:,}"
    elif found.retired > RETIRED_SHARE * found.before:
        problem = f"it lacks {found.retired:,} of {found.before:,} records"
    elif is_rewritten and not adopt:
        problem = f"{found.changed:,} of {found.common:,} records have another hash"
        way_out = (
            "--adopt takes the hashes and asks only for added and retired records, "
            "--force asks for all"
        )
    else:
        return
    raise BadData(
        f"{dump.file} is refused: compared with {last.file} {problem} (added {found.added:,}, "
        f"changed {found.changed:,}, retired {found.retired:,}); nothing was changed; {way_out}"
    )
