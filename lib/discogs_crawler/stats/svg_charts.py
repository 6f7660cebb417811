"""Plots as inline SVG that needs no script, fits any width, and takes its colours from the page.

A plot has no viewBox: horizontal places are percent, vertical ones pixels, so that its text has the
same size on a phone as on a wide screen. Labels of the vertical axis stand in the left margin that
the style sheet leaves free. Every plot has a title and a description for screen readers, and every
mark a tooltip; the table beneath it is made by `figures`.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lxml.builder import E

from discogs_crawler.cli.formatting import compact, count, share

# Pixels: the drawing, and the line of labels beneath it.
HEIGHT, FOOT = 180, 24

# Labels along the bottom at most; on a phone every second one is hidden.
LABELS = 6

# Cells of the map in a row: ten million ids.
MAP_COLUMNS, CELL_HEIGHT = 10, 40

_numbers = itertools.count(1)


class Series(NamedTuple):
    """One colour of a plot: its name, and a number for each column."""

    name: str
    values: Sequence[float]
    style: str
    """class in the style sheet"""


class Line(NamedTuple):
    """A horizontal line to compare with."""

    name: str
    value: float


def bars(
    title: str,
    description: str,
    labels: Sequence[str],
    series: Sequence[Series],
    limit: Line | None = None,
) -> Any:
    """A column for each label, the series stacked from the bottom in their order."""
    totals = [sum(values) for values in zip(*(row.values for row in series), strict=True)]
    top = nice_ceiling(max([*totals, limit.value if limit else 0, 1]))
    width = 100 / max(len(labels), 1)
    marks: list[Any] = _grid(top)
    heights = [0.0] * len(labels)
    for row in series:
        for place, value in enumerate(row.values):
            if value:
                tip = f"{labels[place]}: {row.name} {count(value)}"
                box = (place * width + width * 0.1, heights[place], width * 0.8, value)
                marks.append(_bar(*box, top, row.style, tip))
                heights[place] += value
    if limit:
        marks += _limit(limit, top)
    return _svg(title, description, [*marks, *_bottom(labels, width)], HEIGHT + FOOT)


def nice_ceiling(value: float) -> float:
    """The least of 1, 2, 3, 4, 5, 6, 8 or 10 times a power of ten that is not below `value`."""
    power = 1.0
    while power * 10 < value:
        power *= 10
    return next(power * step for step in (1, 2, 3, 4, 5, 6, 8, 10) if power * step >= value)


def _grid(top: float) -> list[Any]:
    marks = []
    for part in (0, 0.5, 1):
        y = f"{HEIGHT - part * (HEIGHT - 12):g}"
        marks.append(E.line({"x1": "0", "x2": "100%", "y1": y, "y2": y, "class": "grid"}))
        marks.append(_text(compact(top * part) if part else "0", "-8", float(y) + 4, "end"))
    return marks


def _bar(
    x: float, bottom: float, width: float, value: float, top: float, style: str, tip: str
) -> Any:
    scale = (HEIGHT - 12) / top
    return E.rect(
        {
            "x": f"{x:.3f}%",
            "y": f"{HEIGHT - (bottom + value) * scale:.2f}",
            "width": f"{width:.3f}%",
            "height": f"{value * scale:.2f}",
            "class": style,
        },
        E.title(tip),
    )


def _limit(limit: Line, top: float) -> list[Any]:
    y = HEIGHT - limit.value / top * (HEIGHT - 12)
    place = f"{y:.2f}"
    return [
        E.line({"x1": "0", "x2": "100%", "y1": place, "y2": place, "class": "limit"}),
        _text(limit.name, "100%", y - 6, "end", "limit-name"),
    ]


def _bottom(labels: Sequence[str], width: float) -> list[Any]:
    """At most LABELS of the labels, evenly spread, under their columns; always the last."""
    step = max(1, -(-len(labels) // LABELS))
    marks = []
    for number, place in enumerate(range(len(labels) - 1, -1, -step)):
        # The last of narrow columns is at the edge; its label must not stick out.
        anchor = "end" if number == 0 and step > 1 else "middle"
        style = "tick minor" if number % 2 else "tick"
        x = f"{100 if anchor == 'end' else (place + 0.5) * width:.3f}%"
        marks.append(_text(labels[place], x, HEIGHT + 18, anchor, style))
    return marks


class Cell(NamedTuple):
    """A segment on the map."""

    name: str
    part: float | None
    """share that is stored; None: nothing is known to be there"""
    tip: str


def id_map(title: str, description: str, cells: Sequence[Cell]) -> Any:
    """The id space in rows of ten segments, coloured by the share that is stored."""
    width = 100 / MAP_COLUMNS
    marks = []
    for place, cell in enumerate(cells):
        row, column = divmod(place, MAP_COLUMNS)
        x, y = column * width, row * CELL_HEIGHT
        known = cell.part is not None
        shade = _shade(cell.part or 0)
        box = {
            "x": f"{x + width * 0.03:.2f}%",
            "y": str(y + 1),
            "width": f"{width * 0.94:.2f}%",
            "height": str(CELL_HEIGHT - 3),
            "rx": "4",
            "class": f"cell heat-{shade}" if known else "cell",
        }
        marks.append(E.rect(box, E.title(cell.tip)))
        if known:
            style = "on-dark" if shade >= 6 else "on-light"
            text = _whole_percent(cell.part or 0)
            marks.append(_text(text, f"{x + width / 2:.2f}%", y + 24, "middle", style))
        if column == 0:
            marks.append(_text(cell.name, "-8", y + 24, "end"))
    rows = -(-len(cells) // MAP_COLUMNS)
    return _svg(title, description, marks, rows * CELL_HEIGHT)


def _shade(part: float) -> int:
    """0 for nothing, 10 for everything, 1 to 9 between."""
    return 0 if part <= 0 else 10 if part >= 1 else min(9, 1 + int(part * 9))


def _whole_percent(part: float) -> str:
    """Without the sign, and never rounded up to 100 or down to 0."""
    if 0 < part < 1:
        return str(min(99, max(1, round(part * 100))))
    return str(round(part * 100))


def record(part: float | None) -> Any:
    """A vinyl record with an arc around it that shows a share."""
    radius = 92.0
    length = 2 * 3.14159265 * radius
    arc = {
        "stroke-dasharray": f"{length * (part or 0):.1f} {length:.1f}",
        "transform": "rotate(-90 100 100)",
    }
    return E.svg(
        {"viewBox": "0 0 200 200", "class": "record", "role": "img", "aria-label": share(part)},
        _circle(84, "vinyl"),
        *(_circle(groove, "groove") for groove in range(40, 84, 6)),
        _circle(radius, "track"),
        _circle(radius, "arc", arc),
        _circle(34, "label"),
        _circle(3, "hole"),
    )


def _circle(radius: float, style: str, more: dict[str, str] | None = None) -> Any:
    place = {"cx": "100", "cy": "100", "r": f"{radius:g}", "class": style}
    return E.circle({**place, **(more or {})})


def meter(part: float, style: str) -> Any:
    """A bar within a row of a table: decoration beside its number."""
    percent = f"{max(0.0, min(1.0, part)) * 100:.2f}%"
    return E.svg(
        {"class": "meter", "aria-hidden": "true", "height": "8"},
        E.rect({"width": "100%", "height": "8", "rx": "4", "class": "rail"}),
        E.rect({"width": percent, "height": "8", "rx": "4", "class": style}),
    )


def _svg(title: str, description: str, marks: Iterable[Any], height: int) -> Any:
    number = next(_numbers)
    names = f"plot-{number}-title", f"plot-{number}-text"
    return E.svg(
        {
            "class": "plot",
            "role": "img",
            "height": str(height),
            "aria-labelledby": names[0],
            "aria-describedby": names[1],
        },
        E.title({"id": names[0]}, title),
        E.desc({"id": names[1]}, description),
        *marks,
    )


def _text(text: str, x: str, y: float, anchor: str, style: str = "tick") -> Any:
    place = {"x": x, "y": f"{y:g}", "text-anchor": anchor, "class": style}
    return E.text(place, text)
