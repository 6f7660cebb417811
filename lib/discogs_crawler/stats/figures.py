"""The figures of the page: each a plot, its meaning in words, and its numbers as a table."""

from collections import Counter
from collections.abc import Iterable
from datetime import date
from typing import Any

from lxml.builder import E

from discogs_crawler.cli.formatting import count, share, within
from discogs_crawler.stats import tables
from discogs_crawler.stats.snapshot import DayStats, KindStats, QuotaStats
from discogs_crawler.stats.svg_charts import Cell, Line, Series, bars, id_map, meter
from discogs_crawler.stats.tables import Table

# Days of the plot of the rate: more columns than pixels of a phone tell nothing.
DAYS = 60

# Columns of the plot of ages.
AGE_COLUMNS = 30

# Their colours, from the bottom of a column to its top.
OUTCOMES = {
    "changed": "accent",
    "unchanged": "teal",
    "gone": "grey",
    "removed": "plum",
    "merged": "gold",
    "dead": "bad",
}


def crawl_rate(kind: KindStats, quota: QuotaStats) -> Any:
    """Answers a day against the quota."""
    days = kind.outcomes[-DAYS:]
    values = [day.total for day in days]
    used = sum(values) / len(values) / quota.per_day if values else None
    text = f"The quota allows {count(quota.per_day)} requests a day; " + (
        f"over the days shown answers took {share(used)} of it. Today is not over."
        if days
        else "there were no answers yet."
    )
    plot = bars(
        f"Answers a day, {kind.kind}",
        text,
        [_day(day) for day in days],
        [Series("answers", values, "accent")],
        Line(f"quota {count(quota.per_day)}", quota.per_day),
    )
    rows = [(day.day, count(day.total), share(day.total / quota.per_day)) for day in reversed(days)]
    heads = ("day", "answers", "of the quota")
    return card(Table("Crawl rate against quota", heads, rows), text, plot)


def _day(day: DayStats) -> str:
    when = date.fromisoformat(day.day)
    return f"{when.day} {when:%b}"


def id_space(kind: KindStats) -> Any:
    """Where records are missing, by million of ids."""
    known = {segment.segment: segment.coverage for segment in kind.segments}
    cells = []
    for number in range(max(known, default=-1) + 1):
        name = f"{number} M" if number else "0"
        here = known.get(number)
        if here is None or here.share is None:
            cells.append(Cell(name, None, f"ids from {name}: none known"))
        else:
            tip = (
                f"ids from {name}: {count(here.stored_in_dump)} of {count(here.in_dump)} stored, "
                f"{count(here.imported)} imported, {count(here.missing)} missing"
            )
            cells.append(Cell(name, 1 - here.missing / here.in_dump, tip))
    text = (
        "Percent of the dump's records that are stored, imported or known to be gone, for each "
        "million ids; ten millions a row."
        if cells
        else "No id is known yet."
    )
    plot = id_map(f"Map of the ids of {kind.kind}", text, cells)
    return card(tables.segments(kind.segments, "from id"), text, plot)


def outcomes(kind: KindStats) -> Any:
    """The outcomes of the requests, by day."""
    days = kind.outcomes[-DAYS:]
    shown = {
        name: [getattr(day, name) for day in days]
        for name in OUTCOMES
        if any(getattr(day, name) for day in days)
    }
    text = "New or changed records became a commit; everything else left the store as it was."
    if not days:
        text = "There were no answers yet."
    if any(day.removed for day in days):
        text = "New, changed and removed records became commits; the rest left the store as it was."
    plot = bars(
        f"Outcomes a day, {kind.kind}",
        text,
        [_day(day) for day in days],
        [Series(name, values, OUTCOMES[name]) for name, values in shown.items()],
    )
    key = legend((name, OUTCOMES[name]) for name in shown)
    return card(tables.answers(days), text, plot, key)


def ages(kind: KindStats) -> Any:
    """How long ago the stored records were last seen alive."""
    oldest = max(kind.ages.days, default=0)
    width = max(1, -(-(oldest + 1) // AGE_COLUMNS))
    columns: Counter[int] = Counter()
    for day, records in kind.ages.days.items():
        columns[day // width] += records
    places = range(max(columns, default=0) + 1)
    text = (
        f"Half of the records were seen {within(kind.ages.median_s)}, nine of ten "
        f"{within(kind.ages.p90_s)}."
        if kind.ages.median_s is not None and kind.ages.p90_s is not None
        else "Nothing is stored yet."
    )
    names = [f"{place * width} d" for place in places]
    plot = bars(
        f"Age of the stored {kind.kind}",
        text,
        names,
        [Series("records", [columns[place] for place in places], "teal")],
    )
    rows = [
        (f"{place * width}–{place * width + width - 1}" if width > 1 else str(place),
         count(columns[place]))
        for place in places
    ]  # fmt: skip
    return card(Table("Age of records", ("days since last seen", "records"), rows), text, plot)


def changes(kind: KindStats) -> Any:
    """What each dump changed; the first one, which brings everything, is left out."""
    dumps = [dump for dump in reversed(kind.dumps) if dump.accepted and dump.added is not None]
    later = dumps[1:]
    text = (
        "Records that each dump added, changed or no longer had, against the one before."
        if later
        else "The second dump will show how much changes in a month."
    )
    plot = bars(
        f"Changes a dump, {kind.kind}",
        text,
        [_month(dump.file) for dump in later],
        [
            Series("changed", [dump.changed or 0 for dump in later], "accent"),
            Series("added", [dump.added or 0 for dump in later], "teal"),
            Series("retired", [dump.retired or 0 for dump in later], "grey"),
        ],
    )
    rows = [
        (dump.file, *(count(number) for number in (dump.records, dump.changed, dump.added,
                                                   dump.retired)))
        for dump in reversed(dumps)
    ]  # fmt: skip
    heads = ("dump", "records", "changed", "added", "retired")
    key = legend([("changed", "accent"), ("added", "teal"), ("retired", "grey")])
    return card(Table("Changes a dump", heads, rows), text, plot, key)


def _month(file: str) -> str:
    """`Nov 26` for a dump's name, which has its date in it; else the name."""
    digits = "".join(character for character in file if character.isdigit())[:8]
    try:
        return f"{date.fromisoformat(digits):%b %y}"
    except ValueError:
        return file[:12]


def queue(kind: KindStats) -> Any:
    """What is queued, and when it is done."""
    measured = (
        "No answer was measured since yesterday, so the times assume the whole quota."
        if kind.rate.assumed
        else f"The times assume the measured {count(kind.rate.per_day)} answers a day."
    )
    text = f"The most urgent first; each class waits for those above it. {measured}"
    numbers = tables.queue(kind)
    if not numbers.rows:
        return card(numbers, "Nothing is wanted.", wide=True)
    shown = tables.queued(kind)
    most = max(row.wanted for row in shown) or 1
    rows = [
        # On a phone the last columns are out of sight.
        (reason, meter(row.wanted / most, "accent"), wanted, done or "nothing due", *others)
        for row, (reason, wanted, *others, done) in zip(shown, numbers.rows, strict=True)
    ]
    first, wanted, *others, last = numbers.heads
    heads = (first, "", wanted, last, *others)
    return card(Table(numbers.title, heads, rows), text, wide=True)


def card(table: Table, text: str, *drawn: Any, wide: bool = False) -> Any:
    """A table with its title and its meaning in words; below a drawing it is folded."""
    numbers = E.div({"class": "scroll", "tabindex": "0"}, _table(table))
    if drawn:
        numbers = E.details(E.summary("Numbers"), numbers)
    return E.figure(
        {"class": "card wide" if wide else "card"},
        E.figcaption(E.h3(table.title), E.p(text)),
        *drawn,
        *([numbers] if table.rows else []),
    )


def legend(entries: Iterable[tuple[str, str]]) -> Any:
    """What the colours mean."""
    return E.ul(
        {"class": "legend"},
        *(
            E.li(
                E.svg(
                    {"aria-hidden": "true"},
                    E.rect({"width": "10", "height": "10", "rx": "2", "class": style}),
                ),
                name,
            )
            for name, style in entries
        ),
    )


def _table(table: Table) -> Any:
    heads = [
        E.th({"scope": "col"}, head) if head else E.td({"class": "bar"}) for head in table.heads
    ]
    lines = [
        E.tr(E.th({"scope": "row"}, str(first)), *map(_cell, rest)) for first, *rest in table.rows
    ]
    return E.table(E.thead(E.tr(*heads)), E.tbody(*lines))


def _cell(content: Any) -> Any:
    return E.td(str(content)) if isinstance(content, str | int) else E.td({"class": "bar"}, content)
