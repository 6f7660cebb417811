"""The page with plots, as a browser shows it, and the ledger in Datasette."""

import asyncio
import re
import shutil
import sqlite3
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasette.app import Datasette

from discogs_crawler import clock
from discogs_crawler.cli.formatting import compact, count, duration, share
from discogs_crawler.config import Settings
from discogs_crawler.ledger import database as ledger
from discogs_crawler.stats import collect, html, svg_charts, tables, terminal
from discogs_crawler.stats.snapshot import Snapshot
from tests.conftest import ROOT
from tests.invented_ledger import invent

DATA = ROOT / "lib" / "discogs_crawler" / "data"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
)

# Runs in the browser only: all pairs of texts that are drawn over each other, and what sticks out.
PROBE = """
<script>
addEventListener('load', () => {
  const texts = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (!node.data.trim() || node.parentNode.closest('title, desc, script, .scroll')) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) texts.push([node.data.trim(), box]);
  }
  const faults = [];
  texts.forEach(([a, p], i) => {
    if (p.right > innerWidth + 1 || p.left < -1) faults.push(`${a} sticks out`);
    for (const [b, q] of texts.slice(i + 1)) {
      if (Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 &&
          Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3) faults.push(`${a} on ${b}`);
    }
  });
  if (document.documentElement.scrollWidth > innerWidth) faults.push('the page is too wide');
  document.body.dataset.texts = texts.length;
  document.body.dataset.faults = faults.join('; ') || 'none';
  parent.postMessage([texts.length, faults], '*');
});
</script>
"""


class _Words(HTMLParser):
    """The texts of a page, as its reader sees them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("invented") / "crawler.db"
    invent(path, 30_000, int(clock.now()))
    with ledger.open(path) as opened, opened.transaction() as connection:
        # As many numbers as in the first half of a crawl of everything.
        connection.execute("UPDATE counts SET records = records * 613")
        connection.execute("UPDATE ages SET records = records * 613")
        for segment in range(1, 39):
            connection.execute(
                "INSERT INTO counts SELECT kind, ?, in_dump, state, reason, records / ? "
                "FROM counts WHERE segment = 0",
                (segment, segment),
            )
    return path


@pytest.fixture
def snapshot(database: Path, settings: Settings) -> Snapshot:
    settings.state_dir.mkdir(parents=True)
    shutil.copy(database, settings.database)
    return collect.take(settings)


def _browse(page: Path, tmp_path: Path, *flags: str) -> tuple[str, str]:
    """The page after loading, and what the browser's console said."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_no_text_is_drawn_over_another(snapshot: Snapshot, tmp_path: Path, width: int) -> None:
    inner = tmp_path / "inner.html"
    inner.write_text(html.render(snapshot).replace("</body>", PROBE + "</body>"))
    outer = tmp_path / "outer.html"
    outer.write_text(
        f"<iframe src=inner.html width={width} height=4000 frameborder=0></iframe>"
        "<script>onmessage = e => document.body.dataset.seen = e.data.flat().join('; ')</script>"
    )
    shown, console = _browse(
        outer, tmp_path, f"--window-size={width + 100},4100", "--virtual-time-budget=3000",
        "--dump-dom",
    )  # fmt: skip
    [seen] = re.findall(r'data-seen="([^"]*)"', shown)
    number, *faults = seen.split("; ")
    assert int(number) > 100
    assert faults == []
    assert console == ""


def test_chromium_draws_it_in_light_and_dark(snapshot: Snapshot, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(html.render(snapshot))
    pictures = []
    for scheme in (1, 0):
        picture = tmp_path / f"{scheme}.png"
        _, console = _browse(
            page, tmp_path, "--window-size=400,900", f"--screenshot={picture}",
            f"--blink-settings=preferredColorScheme={scheme}",
        )  # fmt: skip
        assert console == ""
        pictures.append(picture.read_bytes())
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 20_000 for picture in pictures)
    assert pictures[0] != pictures[1]


def test_numbers_on_the_page_are_those_of_the_ledger(
    snapshot: Snapshot, settings: Settings
) -> None:
    texts = _Words(html.render(snapshot)).texts
    with sqlite3.connect(settings.database) as connection:
        stored, in_dump, percent = connection.execute(
            "SELECT stored, in_dump, 1.0 * stored_in_dump / in_dump FROM progress"
        ).fetchone()
        wanted = connection.execute("SELECT records FROM waiting").fetchall()
        days = connection.execute(
            "SELECT sum(records) FROM outcomes_daily GROUP BY day ORDER BY day DESC LIMIT 60"
        ).fetchall()
        ages = connection.execute("SELECT sum(records) FROM ages").fetchone()[0]
        dumps = connection.execute("SELECT changed FROM dumps WHERE accepted").fetchall()
    assert share(percent) in texts
    assert any(text.endswith(f"of {in_dump:,} records of the dump") for text in texts)
    for (number,) in [(stored,), *wanted, *days, *dumps]:
        assert f"{number:,}" in texts
    shown = [text for text in _tooltips(html.render(snapshot)) if ": records " in text]
    assert sum(int(text.split("records ")[1].replace(",", "")) for text in shown) == ages


def test_the_terminal_shows_the_tables_of_the_page(snapshot: Snapshot) -> None:
    shown, texts = terminal.render(snapshot), _Words(html.render(snapshot)).texts
    [kind] = snapshot.kinds
    for table in (
        tables.queue(kind),
        tables.answers(kind.outcomes[-terminal.DAYS :]),
        tables.dead(kind),
        tables.consumers(snapshot),
        tables.runs(snapshot),
    ):
        assert table.rows
        for cell in (*table.heads, *(cell for row in table.rows for cell in row)):
            assert str(cell) in texts, table.title
            assert str(cell) in shown, table.title


def _tooltips(page: str) -> list[str]:
    return re.findall(r"<rect[^>]*><title>([^<]*)</title>", page)


def test_the_page_needs_nothing_but_itself(snapshot: Snapshot) -> None:
    page = html.render(snapshot)
    assert not re.findall(r"<(script|link|img|iframe|object)\b|\bsrc=|@import|url\(|https?:", page)
    assert len(page) < 300_000


def test_every_plot_has_a_name_a_description_and_a_table(snapshot: Snapshot) -> None:
    page = html.render(snapshot)
    plots = re.findall(
        r'<figure class="card">(?:(?!</figure>).)*?<svg class="plot".*?</figure>', page
    )
    assert len(plots) == 5
    for plot in plots:
        assert re.search(r'role="img"', plot)
        names = re.search(r'aria-labelledby="([^"]+)" aria-describedby="([^"]+)"', plot)
        assert names is not None
        assert re.search(rf'<title id="{names[1]}">[^<]+</title>', plot)
        assert re.search(rf'<desc id="{names[2]}">[^<]+</desc>', plot)
        assert '<th scope="col">' in plot
        assert '<th scope="row">' in plot
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_what_comes_from_outside_is_escaped(snapshot: Snapshot) -> None:
    evil = snapshot._replace(problems=["<script>alert(1)</script> & 'x'"])
    page = html.render(evil)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; 'x'" in page


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_to_read(scheme: str) -> None:
    style = (DATA / "report.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    block = light if scheme == "light" else dark
    colour = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", block))
    texts = [(text, on) for text in ("ink", "soft") for on in ("page", "card", "bad-soft")]
    texts += [("bad", "bad-soft")]
    texts += [("ink", f"h{shade}") for shade in range(6)]
    texts += [("card", f"h{shade}") for shade in range(6, 11)]
    marks = [(mark, "card") for mark in ("accent", "teal", "gold", "plum", "grey", "bad")]
    assert {pair: c for pair in texts if (c := _contrast(*map(colour.get, pair))) < 4.5} == {}
    assert {pair: c for pair in marks if (c := _contrast(*map(colour.get, pair))) < 3} == {}


@pytest.mark.parametrize(
    ("value", "top"),
    [(0.5, 1), (1, 1), (7, 8), (9, 10), (86_400, 100_000), (101, 200), (10, 10)],
)
def test_an_axis_ends_at_a_round_number(value: float, top: float) -> None:
    assert svg_charts.nice_ceiling(value) == top


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(None), "–"),
        (count(1_234_567), "1,234,567"),
        (compact(999), "999"),
        (compact(999_999), "1 M"),
        (compact(19_500_000), "19.5 M"),
        (share(0.9999), "99.9 %"),
        (share(0.00001), "<0.1 %"),
        (share(1), "100 %"),
        (duration(59), "59 s"),
        (duration(3_600), "60 min"),
        (duration(7 * 86_400), "7 days"),
        (duration(226 * 86_400), "7 months"),
        (duration(5 * 365.25 * 86_400), "5 years"),
    ],
)
def test_numbers_are_written_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected


def _metadata() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DATA / "metadata.yaml").read_text())
    return loaded


def test_datasette_opens_the_ledger_with_every_table_view_and_query(database: Path) -> None:
    metadata = _metadata()
    queries = metadata["databases"]["crawler"]["queries"]

    async def browse() -> dict[str, int]:
        datasette = Datasette([str(database)], metadata=metadata)
        paths = ["/", "/crawler", *(f"/crawler/{name}" for name in _columns(database))]
        paths += [f"/crawler/{name}.json?kind=releases&id=9" for name in queries]
        answers = {}
        for path in paths:
            answer = await datasette.client.get(path)
            answers[path] = answer.status_code
            if path.endswith("id=9"):
                assert answer.json()["ok"], answer.text
                assert queries[path.split("/")[2].split(".")[0]]["title"]
        page = (await datasette.client.get("/crawler/releases")).text
        assert "One row for every id" in page
        assert "When the last answered request was sent (epoch seconds)" in page
        return answers

    answers = asyncio.run(browse())
    assert {path: status for path, status in answers.items() if status != 200} == {}


def test_the_metadata_describe_each_column_and_query_each_view(database: Path) -> None:
    described = _metadata()["databases"]["crawler"]
    columns = _columns(database)
    assert set(described["tables"]) == {*columns, "_sqlite_migrations"}
    for name, names in columns.items():
        assert described["tables"][name]["title"]
        assert described["tables"][name]["description"]
        assert list(described["tables"][name]["columns"]) == names, name
    with sqlite3.connect(database) as connection:
        views = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'view'").fetchall()
    queries = " ".join(query["sql"] for query in described["queries"].values())
    for (view,) in views:
        assert re.search(rf"FROM {view}\b", queries), view


def _columns(database: Path) -> dict[str, list[str]]:
    """The columns of each table and view, without SQLite's own and the migrations'."""
    with sqlite3.connect(database) as connection:
        names = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') "
            "AND name NOT LIKE 'sqlite%' AND name NOT LIKE '\\_%' ESCAPE '\\'"
        ).fetchall()
        return {
            name: [row[1] for row in connection.execute(f"PRAGMA table_xinfo({name})")]
            for (name,) in names
        }
