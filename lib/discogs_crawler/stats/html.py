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
from discogs_crawler.stats import drifting, figures
from discogs_crawler.stats.figures import table
from discogs_crawler.stats.snapshot import Kind, Quota, Snapshot
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


def _hero(kind: Kind, quota: Quota, now: int) -> Any:
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
                if here.in_dump
                else "no dump to compare with yet"
            ),
        ),
        E.dl({"class": "tiles"}, *(_tile(*tile) for tile in _tiles(kind, quota, now))),
    )


def _tile(name: str, value: str, remark: str) -> Any:
    return E.div(E.dt(name), E.dd(value, E.small(remark)))


def _tiles(kind: Kind, quota: Quota, now: int) -> Iterator[tuple[str, str, str]]:
    here, ages = kind.coverage, kind.ages
    missing = f"{count(here.missing)} missing" if here.in_dump else "missing: unknown"
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


def _dead(kind: Kind) -> Any:
    if not kind.dead:
        return _card("Dead letters", "No id failed in every attempt.", None)
    rows = [(row.failure, count(row.records), row.example, date(row.next_due)) for row in kind.dead]
    body = table(("because", "ids", "such as", "again"), rows)
    text = (
        "Ids that failed in every attempt. seed_queue.py --dead lists them, --retry-dead tries now."
    )
    return _card("Dead letters", text, body)


def _drift(kind: Kind) -> Iterator[Any]:
    text = "Fields and elements that the schema does not know, or misses; counts are approximate."
    if rows := drifting.drift_rows(kind):
        yield _card("New or missing at Discogs", text, table(drifting.DRIFT_HEADS, rows))
    text = "Fields that differed in records fetched again although the dump had no change."
    if rows := drifting.churn_rows(kind):
        yield _card("What changes at every fetch", text, table(drifting.CHURN_HEADS, rows))


def _consumers(snapshot: Snapshot) -> Any:
    rows = [
        (row.name, row.kind, (row.revision or "start")[:10], minute(row.exported),
         count(row.behind))
        for row in snapshot.consumers
    ]  # fmt: skip
    heads = ("name", "gets", "revision", "exported", "behind")
    if not rows:
        return _card("Consumers", "Nobody has exported anything yet.", None)
    return _card(
        "Consumers",
        "How many commits each consumer of the store has yet to get.",
        table(heads, rows),
    )


def _runs(snapshot: Snapshot) -> Any:
    rows = [
        (run.script, run.kind, minute(run.started),
         duration(run.ended - run.started) if run.ended else "not ended", count(run.exit_code))
        for run in snapshot.runs
    ]  # fmt: skip
    heads = ("script", "for", "started", "took", "exit")
    if not rows:
        return _card("Last runs", "No script has run yet.", None)
    return _card("Last runs", "How each script ended last time.", table(heads, rows))


def _card(title: str, text: str, body: Any) -> Any:
    return E.figure(
        {"class": "card"},
        E.figcaption(E.h3(title), E.p(text)),
        *([] if body is None else [E.div({"class": "scroll", "tabindex": "0"}, body)]),
    )
