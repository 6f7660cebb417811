"""Numbers as people read them, and texts of others made safe to print."""

from datetime import UTC, datetime

from discogs_crawler.clock import DAY_S

UNKNOWN = "–"

_STEPS = (
    # Below this many seconds, in units of that many seconds, called so.
    (120, 1, "s"),
    (120 * 60, 60, "min"),
    (48 * 3_600, 3_600, "h"),
    (100 * DAY_S, DAY_S, "days"),
    (2 * 365 * DAY_S, 30.44 * DAY_S, "months"),
    (float("inf"), 365.25 * DAY_S, "years"),
)

_ONE = {"days": "day", "months": "month", "years": "year"}


def count(number: float | None) -> str:
    """`1,234,567`; a dash for what is unknown."""
    return UNKNOWN if number is None else f"{number:,.0f}"


def compact(number: float) -> str:
    """`987`, `12.3 k`, `19.5 M`: three digits and a unit."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            value = number / size
            return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes: `1.2 MB`."""
    return compact(number) + ("B" if number >= 999.5 else " B")


def share(part: float | None) -> str:
    """`67.3 %`; never 100 unless all is there, never 0 unless nothing is."""
    if part is None:
        return UNKNOWN
    percent = part * 100
    if 99.95 <= percent < 100:
        return "99.9 %"
    if 0 < percent < 0.05:
        return "<0.1 %"
    return f"{percent:.1f} %" if percent < 100 else f"{percent:.0f} %"


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min`, `8 h`, `9 days`, `7 months`: two digits are enough for a plan."""
    if seconds is None:
        return UNKNOWN
    for limit, unit_s, unit in _STEPS:
        if seconds < limit:
            number = round(seconds / unit_s)
            return f"{number} {unit}" if number != 1 else f"1 {_ONE.get(unit, unit)}"
    raise ValueError(seconds)


def age(age_s: int | None) -> str:
    """An age that is known to the day: `today`, `1 day`, `31 days`."""
    if age_s is None or age_s >= 2 * DAY_S:
        return duration(age_s)
    return "1 day" if age_s >= DAY_S else "today"


def within(age_s: int) -> str:
    """`today`, or `within 31 days`."""
    return age(age_s) if age_s < DAY_S else f"within {age(age_s)}"


def date(epoch_s: float | None) -> str:
    """`2026-11-01`, UTC."""
    return UNKNOWN if epoch_s is None else f"{datetime.fromtimestamp(epoch_s, UTC):%Y-%m-%d}"


def minute(epoch_s: float | None) -> str:
    """`2026-11-01 19:16`, UTC."""
    return UNKNOWN if epoch_s is None else f"{datetime.fromtimestamp(epoch_s, UTC):%Y-%m-%d %H:%M}"


def printable(text: str) -> str:
    """One line without control characters, hidden or reversed text, and what is not UTF-8.

    For every foreign text that is printed: names of files, messages of servers and of other
    programs.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else " " if letter.isspace() else "\N{REPLACEMENT CHARACTER}"
        for letter in text
    )
