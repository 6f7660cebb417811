"""A snapshot for a terminal of 80 columns."""

import re
import textwrap
from collections.abc import Iterator, Sequence

from tabulate import tabulate

from discogs_crawler.cli.formatting import count, duration, minute, share, size, within
from discogs_crawler.stats import tables
from discogs_crawler.stats.snapshot import KindStats, QuotaStats, Snapshot
from discogs_crawler.stats.tables import Table

WIDTH = 80

# What fits a screen; --json has all.
SEGMENTS, CAUSES, DAYS, RUNS = 8, 5, 7, 6

# A bar of progress, in characters.
BAR = 30

# Characters of a first column: what leaves room for the others of the table.
CAUSE, NAME = 38, 24


def render(snapshot: Snapshot) -> str:
    """The text, without colours, its lines at most WIDTH characters."""
    problems = (_wrapped(f"! {problem}") for problem in snapshot.problems)
    parts = [_head(snapshot), *problems, ""]
    for kind in snapshot.kinds:
        parts += [*_kind(kind), ""]
    parts += _titled(tables.consumers(snapshot))
    if folders := tables.folders(snapshot):
        parts += [*folders, ""]
    parts += _titled(tables.runs(snapshot), RUNS)
    lines = re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip("\n").split("\n")
    return "\n".join(_cut(line.rstrip()) for line in lines) + "\n"


def _wrapped(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _head(snapshot: Snapshot) -> str:
    ledger = f"ledger {size(snapshot.database_bytes)}"
    return f"{minute(snapshot.taken)} UTC   {ledger}\n{_quota(snapshot.quota)}"


def _quota(quota: QuotaStats) -> str:
    if quota.used is None:
        now = f"{quota.limit} requests in {duration(quota.window_s)}"
    else:
        now = f"{quota.used} of {quota.limit} permits in use"
    if not quota.measured_per_day:
        return f"quota: {now}, no answers measured"
    measured = f"{count(quota.measured_per_day)} answers a day = {share(quota.share)}"
    return f"quota: {now}, measured {measured}"


def _kind(kind: KindStats) -> Iterator[str]:
    here = kind.coverage
    yield _title(kind.kind)
    missing = ""
    if here.share is not None:
        missing = f"   missing {count(here.missing)}"
        yield (
            f"{_bar(here.share)} {share(here.share)}"
            f"   {count(here.stored_in_dump)} of {count(here.in_dump)} in the dump"
        )
    imported = ""
    if here.imported:
        together = share(here.share_with_imported)
        imported = f"   imported {count(here.imported)} (together {together})"
    yield (
        f"stored {count(here.stored)}{imported}{missing}"
        f"   gone {count(here.gone)}   dead {count(here.dead)}"
    )
    if kind.ages.median_s is not None and kind.ages.p90_s is not None:
        yield f"last seen: half {within(kind.ages.median_s)}, 90 % {within(kind.ages.p90_s)}"
    yield _dump(kind)
    yield from ["", *_queue(kind)]
    yield from [*_shown(tables.answers(kind.outcomes), DAYS), ""]
    yield from [*_shown(tables.dead(kind), CAUSES, "causes"), ""]
    yield from _shown(_gaps(kind), SEGMENTS, "segments with gaps")
    yield from _drift(kind)


def _dump(kind: KindStats) -> str:
    if not kind.dumps:
        return "dump: none yet; seed_queue.py -n takes the hashes of one"
    newest = kind.dumps[0]
    accepted = "seeded" if newest.accepted else "not seeded"
    return f"dump: {newest.file}, {count(newest.records)} records, {newest.verdict}, {accepted}"


def _queue(kind: KindStats) -> Iterator[str]:
    table = tables.queue(kind)
    if not table.rows:
        yield "queue: nothing is wanted"
    yield from _shown(table)
    yield _rate(kind, assumed="; times assume the whole quota" if table.rows else "")
    if kind.workers:
        workers = ", ".join(f"{worker.owner} ({worker.leased})" for worker in kind.workers)
        yield f"workers: {workers}"
    yield ""


def _rate(kind: KindStats, assumed: str) -> str:
    if kind.rate.assumed:
        return f"no answers since {minute(kind.rate.since)}{assumed}"
    return f"{count(kind.rate.per_day)} answers a day since {minute(kind.rate.since)}"


def _drift(kind: KindStats) -> Iterator[str]:
    """The columns that fit on a line; --json has the rest."""
    for title, heads, rows in (tables.differences(kind), tables.churn(kind)):
        if rows:
            short = Table(title, heads[:6], [row[:6] for row in rows])
            yield from ["", *_shown(short, CAUSES, "places", widest=30)]


def _gaps(kind: KindStats) -> Table:
    gaps = [segment for segment in kind.segments if segment.coverage.missing]
    gaps.sort(key=lambda segment: -segment.coverage.missing)
    return tables.segments(gaps, "gaps from id")


def _titled(table: Table, rows: int | None = None) -> Iterator[str]:
    if table.rows:
        yield _title(table.title.lower())
        yield from [*_shown(table, rows, widest=NAME), ""]


def _shown(
    table: Table, rows: int | None = None, what: str = "", widest: int = CAUSE
) -> Iterator[str]:
    """The first rows of a table that has any, and the number of others if they are `what`.

    Texts stand to the left, numbers to the right.
    """
    shown = [[_cut(str(first), widest), *map(str, rest)] for first, *rest in table.rows[:rows]]
    if shown:
        align = ["right" if _numeric(column) else "left" for column in zip(*shown, strict=True)]
        yield tabulate(shown, table.heads, "simple", disable_numparse=True, colalign=align)
    if what and len(table.rows) > len(shown):
        yield f"... and {len(table.rows) - len(shown)} more {what}: --json"


def _numeric(column: Sequence[str]) -> bool:
    return all(text[:1].isdigit() or text[:1] in "–<" for text in column) and not any(
        text[4:5] == "-" for text in column
    )


def _title(text: str) -> str:
    return f"── {text} ".ljust(WIDTH, "─")


def _bar(part: float) -> str:
    full = int(part * BAR)
    return "█" * full + "░" * (BAR - full)


def _cut(line: str, width: int = WIDTH) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"
