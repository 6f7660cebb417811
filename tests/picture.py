"""The picture in the README: some figures of the report page, drawn from an invented ledger.

    python -m tests.picture

Writes lib/discogs_crawler/data/report.svg, the same bytes whenever the code is the same. The page's
plots are SVG already; they are placed here on cards, as the page has them, so no browser is needed.
"""

import os
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

from lxml import etree
from lxml.builder import ElementMaker

from discogs_crawler import clock, config
from discogs_crawler.cli.formatting import count, minute, share
from discogs_crawler.ledger import database
from discogs_crawler.stats import collect, figures, html, svg_charts
from discogs_crawler.stats.snapshot import Snapshot
from tests.conftest import ROOT
from tests.invented_ledger import invent

TARGET = ROOT / "lib" / "discogs_crawler" / "data" / "report.svg"
TAKEN = int(datetime(2026, 11, 23, 5, 7, tzinfo=UTC).timestamp())

# A ledger of full size takes minutes: each row of this one counts for so many.
ROWS, EACH = 39_000, 500

# Pixels. Plots have labels in a margin of 46, as in the style sheet.
WIDTH, GAP, HERO_HEIGHT, CARD_HEIGHT, PADDING, LABELS = 1180, 20, 236, 340, 22, 46
TILE, TILE_NAME = 296, 122
HALF = (WIDTH - 3 * GAP) // 2

STYLE = """
svg { font: 16px system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
.page { fill: var(--page); } .sheet { fill: var(--card); stroke: var(--rule); }
.ink { fill: var(--ink); } .soft { fill: var(--soft); font-size: 14px; }
.big { fill: var(--ink); font-size: 58px; font-weight: 700; }
.value { fill: var(--ink); font-size: 20px; font-weight: 600; } .strong { font-weight: 600; }
.marks svg { overflow: visible; } .marks text { font-size: 12px; fill: var(--soft); }
.marks .limit-name, .marks .on-light { fill: var(--ink); font-weight: 600; }
.marks .on-dark { fill: var(--card); font-weight: 600; }
.marks .limit { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 5 4; }
"""

E = ElementMaker(namespace="http://www.w3.org/2000/svg", nsmap={None: "http://www.w3.org/2000/svg"})


def invented_snapshot(folder: Path) -> Snapshot:
    environment = {"ENV_FILE": os.devnull, "STATE_DIR": str(folder), "DISCOGS_TOKEN": "any"}
    settings = config.load(environ=environment)
    invent(settings.database, ROWS, TAKEN)
    with database.open(settings.database) as opened, opened.transaction() as connection:
        connection.execute("DELETE FROM counts")
        connection.execute(
            "INSERT INTO counts SELECT 'releases', id * ? / 1000000, dump IS NOT NULL, state,"
            f" ifnull(reason, ''), count(*) * {EACH} FROM releases GROUP BY 1, 2, 3, 4, 5",
            (EACH,),
        )
        connection.execute("UPDATE ages SET records = records * ?", (EACH,))
        connection.execute("UPDATE dumps SET records = records * ?", (EACH,))
    with mock.patch.object(clock, "now", return_value=float(TAKEN)):
        return collect.take(settings, "releases")


def draw(snapshot: Snapshot) -> bytes:
    [kind] = snapshot.kinds
    cards = [
        figures.crawl_rate(kind, snapshot.quota),
        figures.id_space(kind),
        figures.outcomes(kind),
        figures.ages(kind),
    ]
    top = HERO_HEIGHT + 60
    height = top + 2 * (CARD_HEIGHT + GAP)
    style = (TARGET.parent / "report.css").read_text(encoding="ascii")
    parts = [E.style(_colours(style) + STYLE)]
    parts += [E.rect({"class": "page", "width": "100%", "height": "100%"})]
    parts += [_text(GAP, 28, "crawler_for_discogs", "ink strong")]
    parts += [_text(WIDTH - GAP, 28, f"as of {minute(snapshot.taken)} UTC", "soft", "end")]
    parts += [_place(GAP, 44, _hero(snapshot))]
    for number, figure in enumerate(cards):
        row, column = divmod(number, 2)
        x, y = GAP + column * (HALF + GAP), top + row * (CARD_HEIGHT + GAP)
        parts.append(_place(x, y, _card(figure)))
    box = {"viewBox": f"0 0 {WIDTH} {height}", "width": str(WIDTH), "height": str(height)}
    return etree.tostring(E.svg(box, *parts), encoding="ascii", pretty_print=True)


def _colours(style: str) -> str:
    """The variables of the style sheet, light and dark, and the rules that only set colours."""
    variables = style[style.index(":root") : style.index("* {")]
    marks = (".accent", ".plum", ".rail", ".heat", ".vinyl", ".track", ".arc", ".label", ".grid")
    rules = [line for line in style.splitlines() if line.startswith(marks) and "{" in line]
    return variables + "\n".join(rule for rule in rules if "margin" not in rule)


def _hero(snapshot: Snapshot) -> list[Any]:
    [kind] = snapshot.kinds
    here = kind.coverage
    disc = svg_charts.record(here.share)
    disc.set("width", "196")
    disc.set("height", "196")
    words = f"{count(here.stored_in_dump)} of {count(here.in_dump)} records of the dump"
    parts = [_sheet(WIDTH - 2 * GAP, HERO_HEIGHT), _place(20, 20, [_svg(disc)])]
    parts += [_text(246, 42, "Releases", "value"), _text(246, 100, share(here.share), "big")]
    parts += [_text(480, 94, words, "soft")]
    for number, (name, value, remark) in enumerate(html._tiles(kind, snapshot.quota, TAKEN)):
        row, column = divmod(number, 3)
        x, y = 246 + column * TILE, 134 + row * 50
        parts += [_text(x, y, name, "soft"), _text(x + TILE_NAME, y, value, "value")]
        parts += [_text(x + TILE_NAME, y + 19, remark, "soft")]
    return parts


def _card(figure: Any) -> Iterator[Any]:
    """A figure of the page: its title, what it says in words, the plot and its legend."""
    yield _sheet(HALF, CARD_HEIGHT)
    yield _text(PADDING, 36, figure.findtext("figcaption/h3"), "ink strong")
    for number, line in enumerate(textwrap.wrap(figure.findtext("figcaption/p"), 68)):
        yield _text(PADDING, 58 + number * 19, line, "soft")
    plot = _svg(figure.find("svg"))
    plot.set("width", str(HALF - 2 * PADDING - LABELS))
    yield E.g({"class": "marks"}, _place(PADDING + LABELS, 96, [plot]))
    x = PADDING
    for entry in figure.iterfind("ul/li"):
        mark = _svg(entry.find("svg/rect"))
        mark.set("x", str(x))
        mark.set("y", "313")
        yield mark
        yield _text(x + 16, 323, entry.xpath("string()"), "soft")
        x += 30 + 8 * len(entry.xpath("string()"))


def _svg(element: Any) -> Any:
    """The element with the namespace that it has by itself in HTML, without its tooltips."""
    attributes = {
        name: value
        for name, value in element.items()
        if not name.startswith(("aria", "role")) and value != "plot"
    }
    children = [_svg(child) for child in element if child.tag not in ("title", "desc")]
    made = getattr(E, element.tag)(attributes, *children)
    made.text = element.text
    return made


def _place(x: int, y: int, parts: Any) -> Any:
    return E.g({"transform": f"translate({x} {y})"}, *parts)


def _sheet(width: int, height: int) -> Any:
    return E.rect({"class": "sheet", "width": str(width), "height": str(height), "rx": "14"})


def _text(x: int, y: int, text: str, style: str, anchor: str = "start") -> Any:
    return E.text({"x": str(x), "y": str(y), "class": style, "text-anchor": anchor}, text)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        TARGET.write_bytes(draw(invented_snapshot(Path(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
