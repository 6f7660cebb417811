"""The consumers that the README shows and names work as they stand there."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import which

import pytest
import sqlite_utils

from tests import readme
from tests.conftest import ROOT, make_ledger, program
from tests.discogs import answers, invent
from tests.plain_git import SingleStore

[EXAMPLES] = [block.text for block in readme.blocks("sh") if block.marker == "run: examples"]

# Half of a surrogate pair, which a text may have: stored as an escape, and not to be encoded.
HALF = "\ud83c"


def lines_for(example: str) -> str:
    """The first line of the README's block of consumers, and the one that runs `example`."""
    first, *others = EXAMPLES.splitlines()
    [line] = [line for line in others if f"/{example}" in line]
    return f"{first}\n{line}\n"


def test_the_examples_are_those_named_in_the_readme() -> None:
    folder = ROOT / readme.LIB / "data" / "examples"
    named = set(re.findall(r"[a-z_]+\.(?:py|sh)\b", EXAMPLES)) - {"export_changes.py"}
    assert named | {"follow.py"} == {path.name for path in folder.iterdir() if path.suffix}
    assert "`follow.py`" in readme.section("Consume the data")


def release(number: int, **fields: object) -> bytes:
    value = {"id": number, "title": f"Title {number}", "artists_sort": "Carl Craig", **fields}
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


@pytest.fixture
def store(environment: dict[str, str]) -> SingleStore:
    state = Path(environment["STATE_DIR"])
    make_ledger(state / "crawler.db")
    return SingleStore(state / "store" / "discogs.git")


@pytest.fixture
def consume(environment: dict[str, str], tmp_path: Path) -> Callable[[str], Path]:
    """Run a consumer of the README as in a checkout; returns the folder, with what it writes."""
    folder = tmp_path / "consumer"
    programs = tmp_path / "programs"
    folder.mkdir()
    for name in ("bin", "lib"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").mkdir()
    program(folder / ".venv" / "bin", "python", f'exec {sys.executable} "$@"')
    program(programs, "python3", f'exec {sys.executable} "$@"')
    program(programs, "sendmail", f'echo "$@" >> {folder}/mail; cat >> {folder}/mail')
    path = f"{programs}:{environment['PATH']}"

    def run(name: str) -> Path:
        subprocess.run(
            ["sh", "-ec", lines_for(name)],
            cwd=folder,
            env=environment | {"PATH": path},
            check=True,
            timeout=60,
        )
        return folder

    return run


def test_releases_in_a_sqlite_database(store: SingleStore, consume: Callable[[str], Path]) -> None:
    store.commit({("releases", n): release(n, year=1990 + n) for n in range(1, 1_500)})
    database = consume("load_releases.py") / "releases.db"
    store.commit({("releases", 1): None, ("releases", 2): release(2, title="Better", year=2000)})
    store.commit({("releases", 4): release(4, title=HALF)})
    consume("load_releases.py")
    consume("load_releases.py")
    rows = {row["id"]: row for row in sqlite_utils.Database(database)["releases"].rows}
    assert sorted(rows) == list(range(2, 1_500))
    assert (rows[2]["title"], rows[2]["year"]) == ("Better", 2000)
    assert rows[3]["artist"] == "Carl Craig"
    assert json.loads(rows[3]["release"]) == json.loads(release(3, year=1993))
    assert (rows[4]["title"], json.loads(rows[4]["release"])["title"]) == (r"\ud83c", HALF)


def test_a_mail_about_the_new_releases_of_a_label(
    store: SingleStore, consume: Callable[[str], Path]
) -> None:
    ours, other = [{"id": 23, "catno": f"PE 65{HALF}"}], [{"id": 24, "catno": "X"}]
    store.commit({("releases", 1): release(1, labels=ours)})
    mail = consume("mail_label.py") / "mail"
    store.commit({("releases", 1): release(1, labels=ours, notes="not new")})
    consume("mail_label.py")
    assert not mail.exists()
    store.commit(
        {
            ("releases", 2): release(2, labels=ours),
            ("releases", 3): release(3, labels=other),
            ("releases", 4): release(4, labels=ours, date_added="2009-07-02T10:00:00-07:00"),
        }
    )
    consume("mail_label.py")
    text = mail.read_text()
    assert text.startswith("-t\nTo: me@example.org\nSubject: 1 new on label 23\n")
    assert "PE 65?: Carl Craig - Title 2\n    https://www.discogs.com/release/2\n" in text
    assert "Title 3" not in text
    assert "Title 4" not in text, "only our copy of it is new"


def test_a_mail_about_a_tracklist_that_changed(
    store: SingleStore, consume: Callable[[str], Path]
) -> None:
    ours, other = [{"id": 23, "catno": "PE 65"}], [{"id": 24, "catno": "X"}]
    old = [{"position": "A", "title": "One", "duration": "3:20"}, {"position": "B", "title": "Two"}]
    new = [old[0], {"position": "B", "title": "Two", "duration": f"4:00{HALF}"}]
    store.commit(
        {("releases", n): release(n, labels=ours, tracklist=old) for n in (1, 2, 5)}
        | {("releases", 3): release(3, labels=other, tracklist=old)}
        | {("releases", 6): release(6, labels=ours, tracklist=[{**old[0], "sub_tracks": old}])}
    )
    mail = consume("mail_tracklist.py") / "mail"
    store.commit({("releases", 1): release(1, labels=ours, tracklist=old, notes="other")})
    consume("mail_tracklist.py")
    assert not mail.exists()
    store.commit(
        {
            ("releases", 2): release(2, labels=ours, tracklist=new),
            ("releases", 3): release(3, labels=other, tracklist=new),
            ("releases", 4): release(4, labels=ours, tracklist=new),
            ("releases", 5): None,
            ("releases", 6): release(6, labels=ours, tracklist=[{**old[0], "sub_tracks": new}]),
        }
    )
    consume("mail_tracklist.py")
    head, _, text = mail.read_text().partition("\n\n")
    assert head.startswith("-t\nTo: me@example.org\nSubject: Changed tracklists on label 23\n")
    change = "  - B Two -\n  + B Two 4:00?\n"
    address = "https://www.discogs.com/release"
    assert text == f"Title 2: {address}/2\n{change}Title 6: {address}/6\n{change}"


@pytest.mark.skipif(which("jq") is None, reason="there is no jq here")
def test_a_rule_that_every_changed_release_must_obey(
    store: SingleStore, consume: Callable[[str], Path]
) -> None:
    store.commit(
        {
            ("releases", 1): release(1, year=1999, released="1999-03-00"),
            ("releases", 2): release(2, year=1999, released="1989", title=HALF),
            ("releases", 3): release(3, year=0),
            ("releases", 4): release(4, year=1999, released="March 1999"),
        }
    )
    wrong = consume("odd_years.sh") / "wrong_years.txt"
    expected = (
        "https://www.discogs.com/release/2: 1989, but 1999\n"
        "https://www.discogs.com/release/4: March 1999, but 1999\n"
    )
    assert wrong.read_text() == expected
    store.commit({("releases", 2): None})
    store.commit({("releases", 1): release(1, year=1998, released="1999-03-00")}, technical=True)
    consume("odd_years.sh")
    assert wrong.read_text() == expected


def test_is_a_record_what_you_expect(store: SingleStore, consume: Callable[[str], Path]) -> None:
    good, odd = (
        answers.answer("releases", invent.facts("releases", number), number) for number in (1, 2)
    )
    odd |= {"year": "1999", "new": 1}
    records = {("releases", one["id"]): json.dumps(one).encode() for one in (good, odd)}
    store.commit(records)
    wrong = consume("validate.py") / "odd.txt"
    assert wrong.read_text() == "releases 2 $.year '1999' is not of type 'integer'\n"
