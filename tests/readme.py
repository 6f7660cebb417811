"""The README and the texts beside the code, taken apart.

What their fences mean:

    ```sh       runs in the suite as it stands: tests/test_readme_runs.py, or where a comment above
                it says so tests/export/test_export_readme.py or tests/test_readme_lookups.py
    ```console  `$ command` runs there too, and prints what is below it. A line of `...` stands for
                any number of lines, `...` at the end of a line for the rest of it.
    ```text     is shown, and no more
    ```mermaid  is drawn by GitHub
"""

import re
from typing import NamedTuple

from tests.conftest import ROOT

LIB = "lib/discogs_crawler"
TEXTS = {
    name: (ROOT / name).read_text()
    for name in (
        "README.md",
        "tests/README.md",
        "tests/bench/README.md",
        f"{LIB}/README.md",
        f"{LIB}/ledger/README.md",
        f"{LIB}/broker/README.md",
        f"{LIB}/maintenance/README.md",
    )
}
README = TEXTS["README.md"]
_LINES = re.DOTALL | re.MULTILINE
FENCES = {"sh", "console", "text", "mermaid"}


class Block(NamedTuple):
    """What is between two fences."""

    language: str
    marker: str
    """the comment in the line above it, if any"""
    text: str


class Shown(NamedTuple):
    """A command of a console block, and what it prints."""

    command: str
    output: str


def blocks(language: str = "") -> list[Block]:
    """The blocks of all texts in their order, of one language or of all."""
    fence = re.compile(r"^ *(?:<!-- (.*?) -->\n *)?```(\w*)\n(.*?)^ *```$", _LINES)
    found = [match for text in TEXTS.values() for match in fence.findall(text)]
    every = [Block(name, marker, text) for marker, name, text in found]
    return [block for block in every if language in ("", block.language)]


def shown() -> list[Shown]:
    """The commands of all console blocks in their order."""
    pairs = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            pairs.append(Shown(command, output))
    return pairs


def section(title: str, name: str = "README.md") -> str:
    """What is below the heading that has `title` in it, up to the next of its level or higher."""
    text = TEXTS[name]
    # A comment in a block is no heading.
    headings = re.sub(r"^```.*?^```$", lambda block: "-" * len(block[0]), text, flags=_LINES)
    match = re.search(rf"^(#+) [^\n]*{re.escape(title)}[^\n]*\n", headings, re.MULTILINE)
    assert match is not None, f"{name} has no section {title}"
    end = re.search(rf"^#{{1,{len(match[1])}}} ", headings[match.end() :], re.MULTILINE)
    return text[match.end() : match.end() + end.start() if end else None]


# What no two runs share.
_VOLATILE = (
    (r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?", "DATE"),
    (r'(?<=")20\d{6}(?=")', "YYYYMMDD"),
    (r"(?<=_)20\d{6}(?=[_.])", "YYYYMMDD"),
    (r"\b(?=[0-9a-f]*[a-f])[0-9a-f]{7,12}\b|(?<= as )[0-9a-f]{10}\b", "REVISION"),
    (r"^(    )[0-9a-f]{7}(?= releases: )", r"\1REVISION"),
    (r"[\d,.]+ (?=MB\b|MB/s|s,|requests/min|records/s)", "N "),
    (r"git version [\w.]+", "git version N"),
    (r"(?<= unread; )(Redis|Valkey) [\d.]+ \(.*\)", "SERVER"),
    (r"(?<=[ -])  +", "  "),
    (r"---+", "---"),
    (r" +$", ""),
)


def _plain(line: str) -> str:
    for pattern, word in _VOLATILE:
        line = re.sub(pattern, word, line)
    return line


def difference(expected: str, found: str) -> str:
    """The first line that a console block shows and a run did not print; empty: there is none."""
    left = [_plain(line) for line in found.splitlines()]
    skipping = False
    for shown_line in expected.splitlines():
        if shown_line.strip() == "...":
            skipping = True
            continue
        line = _plain(shown_line)
        start = line[:-3] if line.endswith("...") else None
        at = 0
        while at < len(left) and not (left[at].startswith(start) if start else left[at] == line):
            at += 1
        if at == len(left) or (at and not skipping):
            return f"{shown_line!r} instead of {left[0] if left else 'nothing'!r}"
        left, skipping = left[at + 1 :], False
    return "" if skipping or not left else f"nothing instead of {left[0]!r}"
