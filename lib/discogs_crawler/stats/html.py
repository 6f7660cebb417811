"""A snapshot as one self-contained page: no network, no script, light and dark, any width."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lxml.html
from lxml.builder import E

from discogs_crawler.cli.formatting import (
    UNKNOWN,
    age,
    compact,
    count,
    date,
    duration,
    minute,
    share,
    size,
    within,
)
from discogs_crawler.clock import DAY_S
from discogs_crawler.stats import figures, tables
from discogs_crawler.stats.figures import card
from discogs_crawler.stats.snapshot import KindStats, QuotaStats, Snapshot
from discogs_crawler.stats.svg_charts import record

_STYLE = Path(__file__).parents[1] / "data" / "report.css"


def render(snapshot: Snapshot) -> str:
    """The page, HTML. Everything in it that comes from outside is escaped."""
    page = E.html(
        {"lang": "en"},
        E.head(
            E.meta({"charset": "utf-8"}),
            E.meta({"name": "viewport", "content": "width=device-width, initial-scale=1"}),
            E.title(f"crawler_for_discogs, {minute(snapshot.taken)} UTC"),
            E.style(_STYLE.read_text(encoding="ascii")),
        ),
        E.body(
            E.header(
                E.h1("crawler_for_discogs"),
                E.p("as of ", E.time(f"{minute(snapshot.taken)} UTC")),
            ),
            E.main(*_main(snapshot)),
            E.footer(
                E.p(
                    f"Version {snapshot.version}, ledger of {size(snapshot.database_bytes)}. "
                    "Data provided by Discogs; not affiliated with, sponsored or endorsed by "
                    "Discogs."
                )
            ),
        ),
    )
    text: str = lxml.html.tostring(page, encoding="unicode", doctype="<!DOCTYPE html>")
    return text + "\n"


def _main(snapshot: Snapshot) -> Iterator[Any]:
    if snapshot.problems:
        yield E.div(
            {"class": "card problems", "role": "alert"},
            E.h2("Needs a look"),
            E.ul(*(E.li(problem) for problem in snapshot.problems)),
        )
    for kind in snapshot.kinds:
        yield E.section(
            {"aria-label": kind.kind},
            _hero(kind, snapshot.quota, snapshot.taken),
            E.div(
                {"class": "cards"},
                figures.crawl_rate(kind, snapshot.quota),
                figures.id_space(kind),
                figures.outcomes(kind),
                figures.ages(kind),
                figures.queue(kind),
                figures.changes(kind),
                _dead(kind),
                *_drift(kind),
            ),
        )
    yield E.section(
        {"aria-label": "consumers and runs"},
        E.div({"class": "cards"}, _consumers(snapshot), _runs(snapshot)),
    )


def _hero(kind: KindStats, quota: QuotaStats, now: int) -> Any:
    here = kind.coverage
    return E.div(
        {"class": "card hero"},
        record(here.share),
        E.div(
            {"class": "words"},
            E.h2(kind.kind),
            E.p({"class": "big"}, share(here.share)),
            E.p(
                f"{count(here.stored_in_dump)} of {count(here.in_dump)} records of the dump"
                + (f", {share(here.share_with_imported)} with imported" if here.imported else "")
                if here.in_dump
                else "no dump to compare with yet"
            ),
        ),
        E.dl({"class": "tiles"}, *(_tile(*tile) for tile in _tiles(kind, quota, now))),
    )


def _tile(name: str, value: str, remark: str) -> Any:
    return E.div(E.dt(name), E.dd(value, E.small(remark)))


def _tiles(kind: KindStats, quota: QuotaStats, now: int) -> Iterator[tuple[str, str, str]]:
    here, ages = kind.coverage, kind.ages
    missing = f"{count(here.missing)} missing" if here.in_dump else "missing: unknown"
    if here.imported:
        missing = f"{count(here.imported)} imported, {missing}"
    yield "Stored", count(here.stored), missing
    others = "nothing is stored yet" if ages.p90_s is None else f"90 % {within(ages.p90_s)}"
    yield "Half seen within", _days(ages.median_s), others
    due = sum(row.wanted - row.later for row in kind.classes)
    done = [row.eta_s for row in kind.classes if row.wanted > row.later or row.pending]
    last = None if None in done else max((eta or 0 for eta in done), default=0)
    remark = "never at this rate" if last is None else f"done in {duration(last)}"
    yield "To fetch now", count(due), remark if due else "nothing to do"
    measured = 0 if kind.rate.assumed else kind.rate.per_day
    part = share(measured / quota.per_day)
    yield "Answers a day", count(measured), f"{part} of the quota of {compact(quota.per_day)}"
    if kind.dumps:
        newest = kind.dumps[0]
        old_s = max(0, now - newest.taken)
        remark = f"{age(old_s)} old" if old_s >= DAY_S else "of today"
        yield "Newest dump", date(newest.taken), f"{newest.verdict}, {remark}"
    else:
        yield "Newest dump", UNKNOWN, "none was split yet"
    yield "Gone", count(here.gone), f"{count(here.dead)} dead"


def _days(age_s: int | None) -> str:
    return "a day" if age_s is not None and age_s < DAY_S else age(age_s)


def _dead(kind: KindStats) -> Any:
    text = (
        "Ids that failed in every attempt. seed_queue.py --dead lists them, --retry-dead tries now."
    )
    return card(tables.dead(kind), text if kind.dead else "No id failed in every attempt.")


def _drift(kind: KindStats) -> Iterator[Any]:
    text = "Fields and elements that the schema does not know, or misses; counts are approximate."
    if (found := tables.differences(kind)).rows:
        yield card(found, text)
    text = "Fields that differed in records fetched again although the dump had no change."
    if (found := tables.churn(kind)).rows:
        yield card(found, text)


def _consumers(snapshot: Snapshot) -> Any:
    text = "Commits that each consumer of the store has yet to get."
    none = "Nobody has exported anything yet."
    said = " ".join([text, *(line + "." for line in tables.folders(snapshot))])
    return card(tables.consumers(snapshot), said if snapshot.consumers else none)


def _runs(snapshot: Snapshot) -> Any:
    text = "How each script ended last time."
    return card(tables.runs(snapshot), text if snapshot.runs else "No script has run yet.")
