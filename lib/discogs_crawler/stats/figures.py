"""The figures of the page: each a plot, what it says in words, and its numbers as a table."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any

from lxml.builder import E

from discogs_crawler.cli.formatting import count, duration, share, within
from discogs_crawler.records import SEGMENT_SIZE
from discogs_crawler.stats.snapshot import Class, Kind, Outcomes, Quota
from discogs_crawler.stats.svg_charts import Cell, Line, Series, bars, id_map, meter

# Days of the plot of the rate: more columns than pixels of a phone tell nothing.
DAYS = 60

# Columns of the plot of ages.
AGE_COLUMNS = 30

OUTCOMES = (
    ("changed", "new or changed", "accent"),
    ("unchanged", "unchanged", "teal"),
    ("gone", "not there", "grey"),
    ("removed", "removed", "plum"),
    ("merged", "merged", "gold"),
    ("dead", "dead", "bad"),
)


def crawl_rate(kind: Kind, quota: Quota) -> Any:
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
    return figure("Crawl rate against quota", text, plot, ("day", "answers", "of the quota"), rows)


def _day(day: Outcomes) -> str:
    when = date.fromisoformat(day.day)
    return f"{when.day} {when:%b}"


def id_space(kind: Kind) -> Any:
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
    rows = [
        (
            count(segment.segment * SEGMENT_SIZE),
            share(segment.coverage.share),
            count(segment.coverage.stored_in_dump),
            count(segment.coverage.imported),
            count(segment.coverage.missing),
            count(segment.coverage.gone),
            count(segment.coverage.dead),
        )
        for segment in kind.segments
    ]
    heads = ("from id", "share", "stored", "imported", "missing", "gone", "dead")
    plot = id_map(f"Map of the ids of {kind.kind}", text, cells)
    return figure("Map of the id space", text, plot, heads, rows)


def outcomes(kind: Kind) -> Any:
    """What came of the requests, by day."""
    days = kind.outcomes[-DAYS:]
    shown = [row for row in OUTCOMES if any(getattr(day, row[0]) for day in days)]
    text = "New or changed records became a commit; everything else left the store as it was."
    if not days:
        text = "There were no answers yet."
    if any(day.removed for day in days):
        text = "New, changed and removed records became commits; the rest left the store as it was."
    plot = bars(
        f"Outcomes a day, {kind.kind}",
        text,
        [_day(day) for day in days],
        [
            Series(name, [getattr(day, field) for day in days], style)
            for field, name, style in shown
        ],
    )
    heads = ("day", *(name for _, name, _ in OUTCOMES))
    rows = [(day.day, *(count(number) for number in day[1:])) for day in reversed(days)]
    key = legend([(name, style) for _, name, style in shown])
    return figure("Outcomes a day", text, plot, heads, rows, key)


def ages(kind: Kind) -> Any:
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
    return figure("Age of records", text, plot, ("days since last seen", "records"), rows)


def changes(kind: Kind) -> Any:
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
    return figure("Changes a dump", text, plot, heads, rows, key)


def _month(file: str) -> str:
    """`Nov 26` for a dump's name, which has its date in it; else the name."""
    digits = "".join(character for character in file if character.isdigit())[:8]
    try:
        return f"{date.fromisoformat(digits):%b %y}"
    except ValueError:
        return file[:12]


def queue(kind: Kind) -> Any:
    """What is queued, and when it is done."""
    shown = [row for row in kind.classes if row.wanted or row.pending or row.leased]
    most = max((row.wanted for row in shown), default=1) or 1
    measured = (
        "No answer was measured since yesterday, so the times assume the whole quota."
        if kind.rate.assumed
        else f"The times assume the measured {count(kind.rate.per_day)} answers a day."
    )
    text = f"The most urgent first; each class waits for those above it. {measured}"
    if not shown:
        text = "Nothing is wanted."
    heads = ("class", "", "wanted", "done in", "not due yet", "pending", "leased", "delayed")
    rows = [
        E.tr(
            E.th({"scope": "row"}, row.reason),
            E.td({"class": "bar"}, meter(row.wanted / most, "accent")),
            *(E.td(text) for text in _numbers(row)),
        )
        for row in shown
    ]
    table_of_classes = E.div({"class": "scroll", "tabindex": "0"}, _rows(heads, rows))
    return E.figure(
        {"class": "card wide"},
        E.figcaption(E.h3("Queue"), E.p(text)),
        *([table_of_classes] if rows else []),
    )


def _numbers(row: Class) -> list[str]:
    never = "never at this rate" if row.eta_s is None else duration(row.eta_s)
    done = never if row.eta_s != 0 else "nothing due"
    others = (row.later, row.pending, row.leased, row.delayed)
    return [count(row.wanted), done, *map(count, others)]


def figure(
    title: str,
    text: str,
    plot: Any,
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    key: Any = None,
) -> Any:
    """A card with the plot and, to unfold, its numbers."""
    return E.figure(
        {"class": "card"},
        E.figcaption(E.h3(title), E.p(text)),
        plot,
        *([] if key is None else [key]),
        E.details(
            E.summary("Numbers"),
            E.div({"class": "scroll", "tabindex": "0"}, table(heads, rows)),
        ),
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


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Any:
    """A table whose first column says what a row is."""
    lines = [
        E.tr(E.th({"scope": "row"}, str(first)), *(E.td(str(cell)) for cell in rest))
        for first, *rest in rows
    ]
    return _rows(heads, lines)


def _rows(heads: Sequence[str], rows: Sequence[Any]) -> Any:
    cells = [E.th({"scope": "col"}, head) if head else E.td({"class": "bar"}) for head in heads]
    return E.table(E.thead(E.tr(*cells)), E.tbody(*rows))
