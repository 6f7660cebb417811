"""A snapshot for a terminal of 80 columns."""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from tabulate import tabulate

from discogs_crawler.cli.formatting import count, date, duration, minute, share, size, within
from discogs_crawler.records import SEGMENT_SIZE
from discogs_crawler.stats import drifting
from discogs_crawler.stats.snapshot import Class, Kind, Quota, Snapshot

WIDTH = 80

# What fits a screen; --json has all.
SEGMENTS, CAUSES, DAYS, RUNS = 8, 5, 7, 6

# A bar of progress, in characters.
BAR = 30


def render(snapshot: Snapshot) -> str:
    """The text, without colours, its lines at most WIDTH characters."""
    problems = (_wrapped(f"! {problem}") for problem in snapshot.problems)
    parts = [_head(snapshot), *problems, ""]
    for kind in snapshot.kinds:
        parts += [*_kind(kind), ""]
    parts += _consumers(snapshot)
    parts += _runs(snapshot)
    lines = re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip("\n").split("\n")
    return "\n".join(_cut(line.rstrip()) for line in lines) + "\n"


def _wrapped(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _head(snapshot: Snapshot) -> str:
    ledger = f"ledger {size(snapshot.database_bytes)}"
    return f"{minute(snapshot.taken)} UTC   {ledger}\n{_quota(snapshot.quota)}"


def _quota(quota: Quota) -> str:
    if quota.used is None:
        now = f"{quota.limit} requests in {duration(quota.window_s)}"
    else:
        now = f"{quota.used} of {quota.limit} permits in use"
    if not quota.measured_per_day:
        return f"quota: {now}, no answers measured"
    measured = f"{count(quota.measured_per_day)} answers a day = {share(quota.share)}"
    return f"quota: {now}, measured {measured}"


def _kind(kind: Kind) -> Iterator[str]:
    here = kind.coverage
    yield _title(kind.kind)
    missing = ""
    if here.share is not None:
        missing = f"   missing {count(here.missing)}"
        yield (
            f"{_bar(here.share)} {share(here.share)}"
            f"   {count(here.stored_in_dump)} of {count(here.in_dump)} in the dump"
        )
    yield (
        f"stored {count(here.stored)}{missing}   gone {count(here.gone)}   dead {count(here.dead)}"
    )
    if kind.ages.median_s is not None and kind.ages.p90_s is not None:
        yield f"last seen: half {within(kind.ages.median_s)}, 90 % {within(kind.ages.p90_s)}"
    yield _dump(kind)
    yield from ["", *_queue(kind)]
    yield from _outcomes(kind)
    yield from _dead(kind)
    yield from _gaps(kind)
    yield from _drift(kind)


def _dump(kind: Kind) -> str:
    if not kind.dumps:
        return "dump: none yet; seed_queue.py -n takes the hashes of one"
    newest = kind.dumps[0]
    accepted = "seeded" if newest.accepted else "not seeded"
    return f"dump: {newest.file}, {count(newest.records)} records, {newest.verdict}, {accepted}"


def _queue(kind: Kind) -> Iterator[str]:
    shown = [row for row in kind.classes if row.wanted or row.pending or row.leased]
    if shown:
        heads = ["queue", "wanted", "later", "pending", "leased", "delayed", "done in"]
        yield _table(heads, [_class(row) for row in shown])
    else:
        yield "queue: nothing is wanted"
    yield _rate(kind, assumed="; times assume the whole quota" if shown else "")
    if kind.workers:
        workers = ", ".join(f"{worker.owner} ({worker.leased})" for worker in kind.workers)
        yield f"workers: {workers}"
    yield ""


def _class(row: Class) -> list[str]:
    numbers = (row.wanted, row.later, row.pending, row.leased, row.delayed)
    eta = "never at this rate" if row.eta_s is None else duration(row.eta_s)
    return [row.reason, *map(count, numbers), eta if row.eta_s != 0 else ""]


def _rate(kind: Kind, assumed: str) -> str:
    if kind.rate.assumed:
        return f"no answers since {minute(kind.rate.since)}{assumed}"
    return f"{count(kind.rate.per_day)} answers a day since {minute(kind.rate.since)}"


def _outcomes(kind: Kind) -> Iterator[str]:
    if kind.outcomes:
        heads = ["answers", "changed", "unchanged", "gone", "removed", "merged", "dead"]
        rows = [[day.day, *map(count, day[1:])] for day in reversed(kind.outcomes[-DAYS:])]
        yield _table(heads, rows) + "\n"


def _dead(kind: Kind) -> Iterator[str]:
    if kind.dead:
        rows = [
            [cause.failure[:38], count(cause.records), cause.example, date(cause.next_due)]
            for cause in kind.dead[:CAUSES]
        ]
        yield _table(["dead because", "ids", "such as", "again"], rows)
        yield _rest(len(kind.dead) - CAUSES, "causes")


def _drift(kind: Kind) -> Iterator[str]:
    for heads, rows in (
        (drifting.DRIFT_HEADS, drifting.drift_rows(kind)),
        (drifting.CHURN_HEADS, drifting.churn_rows(kind)),
    ):
        if rows:
            # What and where fit a line, and since when; --json has the rest.
            yield _table(heads[:6], [(row[0][:30], *row[1:6]) for row in rows[:CAUSES]])
            yield _rest(len(rows) - CAUSES, "places")


def _gaps(kind: Kind) -> Iterator[str]:
    gaps = [segment for segment in kind.segments if segment.coverage.missing]
    gaps.sort(key=lambda segment: -segment.coverage.missing)
    if gaps:
        rows = [
            [
                count(segment.segment * SEGMENT_SIZE),
                share(segment.coverage.share),
                count(segment.coverage.missing),
                count(segment.coverage.gone),
                count(segment.coverage.dead),
            ]
            for segment in gaps[:SEGMENTS]
        ]
        yield _table(["gaps from id", "stored", "missing", "gone", "dead"], rows)
        yield _rest(len(gaps) - SEGMENTS, "segments with gaps")


def _consumers(snapshot: Snapshot) -> Iterator[str]:
    if snapshot.consumers:
        yield _title("consumers")
        rows = [
            [
                consumer.name[:24],
                consumer.kind,
                (consumer.revision or "start")[:10],
                minute(consumer.exported),
                count(consumer.behind),
            ]
            for consumer in snapshot.consumers
        ]
        yield _table(["name", "kind", "revision", "exported", "commits behind"], rows) + "\n"


def _runs(snapshot: Snapshot) -> Iterator[str]:
    if snapshot.runs:
        yield _title("last runs")
        rows = [
            [
                run.script,
                run.kind,
                minute(run.started),
                duration(run.ended - run.started) if run.ended else "not ended",
                count(run.exit_code),
            ]
            for run in snapshot.runs[:RUNS]
        ]
        yield _table(["script", "kind", "started", "took", "exit"], rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Texts to the left, numbers to the right; the first column says what a row is."""
    lines = [[str(cell) for cell in row] for row in rows]
    align = ["right" if _numeric(column) else "left" for column in zip(*lines, strict=True)]
    return tabulate(lines, headers=heads, tablefmt="simple", disable_numparse=True, colalign=align)


def _numeric(column: Sequence[str]) -> bool:
    return all(text[:1].isdigit() or text[:1] in "–<" for text in column) and not any(
        text[4:5] == "-" for text in column
    )


def _rest(number: int, what: str) -> str:
    return f"... and {number} more {what}: --json\n" if number > 0 else ""


def _title(text: str) -> str:
    return f"── {text} ".ljust(WIDTH, "─")


def _bar(part: float) -> str:
    full = int(part * BAR)
    return "█" * full + "░" * (BAR - full)


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
