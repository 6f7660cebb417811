"""A complete copy of a dump in the store: what is in it, what is left alone, and how it ends."""

import contextlib
import fcntl
import gzip
import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from discogs_crawler import config
from discogs_crawler.api import cleaning, exact_json
from discogs_crawler.clock import DAY_S
from discogs_crawler.dumps import canonical, dump_json
from discogs_crawler.errors import TryLater
from discogs_crawler.importing import commit as import_commit
from discogs_crawler.importing import run as import_run
from discogs_crawler.importing import selection as import_selection
from discogs_crawler.importing.lanes import ENTRY
from discogs_crawler.ledger import database
from discogs_crawler.records import record_path, segment_of
from discogs_crawler.seeding import dump_lookup, ingest
from discogs_crawler.store import layouts
from discogs_crawler.store.git import Repository
from discogs_crawler.store.single import Committed, Edit
from discogs_crawler.worker import preflight
from tests.conftest import ROOT, Run
from tests.discogs import dump as dumps
from tests.discogs.api import Api
from tests.discogs.quota import Quota
from tests.discogs.world import World, invented

RECORDS = 120


class Copy:
    """An installation, the world that it copies, and the dumps of that."""

    def __init__(self, run: Run, folder: Path, environment: dict[str, str], world: World) -> None:
        self.run, self.folder, self.world = run, folder, world
        self.settings: dict[str, str] = {}
        self.environment = environment
        self.day = 0

    def call(self, script: str, *arguments: object, code: int = 0) -> str:
        done = self.run(script, *arguments, **self.settings, CLOCK_OFFSET_S=str(self.day * DAY_S))
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout + done.stderr

    def accept(self, *more: str, **rest: Any) -> Path:
        """Write a dump of the world as it is, split it, and seed with it."""
        path = self.split(**rest)
        self.call("seed_queue.py", "-n", f"{path}.hashes", *more)
        return path

    def split(
        self, kind: str = "releases", written: Callable[[bytes], bytes] = lambda text: text
    ) -> Path:
        """Write a dump of the world as it is, and split it."""
        now = time.time() + self.day * DAY_S
        path = self.folder / time.strftime(f"discogs_%Y%m%d_{kind}.xml.gz", time.gmtime(now))
        path.write_bytes(gzip.compress(written(b"".join(dumps.blocks(self.world, kind))), 1))
        os.utime(path, (now, now))
        self.call("discogs_xml_split.py", "-d", path, "-r", f"{path}.hashes")
        return path

    def begin_to_seed(self, path: Path, *, force: bool = False) -> None:
        """Seed with a dump until just before it is accepted."""
        hashes = Path(f"{path}.hashes")
        with database.open(Path(self.environment["STATE_DIR"]) / "crawler.db") as ledger:
            file = dump_lookup.checked(hashes, ledger.path.parent)
            dump = dump_lookup.dump_of(ledger, file, hashes, None, None)
            with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(ingest, "accept", interrupted)
                ingest.take_in(ledger, file, dump, 0, adopt=True, force=force)

    def day_name(self) -> str:
        return time.strftime("%Y%m%d", time.gmtime(time.time() + self.day * DAY_S))

    def month(self, *more: str) -> Path:
        self.day += 31
        return self.accept(*more)

    @property
    def store(self) -> layouts.Store:
        settings = config.load(environ=self.environment | self.settings)
        return layouts.open_store(settings, create=False)

    def records(self, kind: str = "releases") -> dict[int, bytes]:
        opened = self.store
        return opened.read(kind, opened.ids(kind))

    def days(self) -> dict[int, str | None]:
        """Of each stored record the dump that it came from; None for the API's."""
        return {i: json.loads(data).get(cleaning.DUMP) for i, data in self.records().items()}

    def commits(self) -> list[str]:
        return self.git("log", "--format=%s", "main").splitlines()

    def git(self, *arguments: str) -> str:
        return self.store.repository.run(*arguments).decode()

    def ledger(self, query: str) -> list[Any]:
        path = Path(self.environment["STATE_DIR"]) / "crawler.db"
        connection = sqlite3.connect(path)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def states(self) -> dict[str, int]:
        return dict(self.ledger("SELECT state, count(*) FROM releases GROUP BY state"))

    def commit_as_worker(self, ids: list[int]) -> Committed:
        """What a worker does whose results nobody has read."""
        changes = [Edit(i, exact_json.dumps({"id": i, "title": "of the API"})) for i in ids]
        return self.store.commit("releases", changes, lambda: ids, {"Source": "api"})


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def copy(run: Run, tmp_path: Path, environment: dict[str, str]) -> Copy:
    return Copy(run, tmp_path, environment, invented(RECORDS))


def expected(path: Path, kind: str, day: str, **settings: str) -> dict[int, bytes]:
    """What is to be stored of a dump, made record by record."""
    rules = cleaning.rules_for(config.load(environ={"STATE_DIR": "/nowhere"} | settings), kind)
    found = {}
    for element in canonical.etree.fromstring(gzip.decompress(path.read_bytes())):
        xml = canonical.etree.tostring(element, with_tail=False)
        document = dump_json.convert(kind, canonical.parse(xml, kind))
        data = exact_json.loads(exact_json.dumps(document | {cleaning.DUMP: day}))
        found[document["id"]] = cleaning.clean(data, rules)
    return found


def test_all_of_a_dump_is_there_and_its_second_import_does_nothing(copy: Copy) -> None:
    path = copy.accept()
    wants = copy.ledger("SELECT id, due, reason, since FROM releases")
    copy.call("import_dump.py", "-d", path)
    records = copy.records()
    assert records == expected(path, "releases", copy.day_name())
    assert all(data.startswith(b'{\n  "_dump": "20') for data in records.values())
    assert copy.states() == {"imported": RECORDS}
    assert copy.ledger("SELECT id, due, reason, since FROM releases") == wants
    assert copy.commits() == [f"releases: {RECORDS} imported"]
    assert f"Source: dump {path.name}" in copy.git("log", "-1", "main")
    assert "all of it was imported before" in copy.call("import_dump.py", "-v", "-d", path)
    assert len(copy.commits()) == 1
    assert copy.call("maintain_store.py", "--check") == ""
    assert f"imported {RECORDS} (together 100 %)" in copy.call("stats.py")
    with database.open(Path(copy.environment["STATE_DIR"]) / "crawler.db") as ledger:
        assert "everything wanted from the API" in preflight._way(ledger, "releases")


@pytest.mark.parametrize("kind", ["artists", "labels", "masters"])
def test_every_kind_is_imported(run: Run, tmp_path: Path, environment: Any, kind: str) -> None:
    copy = Copy(run, tmp_path, environment, invented(60, [kind]))
    path = copy.accept("--adopt", kind=kind)
    assert copy.call("import_dump.py", "-d", path) == ""
    assert copy.records(kind) == expected(path, kind, copy.day_name())


def test_the_next_month_brings_what_differs_and_removes_what_is_gone(copy: Copy) -> None:
    copy.call("import_dump.py", "-d", copy.accept("--adopt"))
    before, first = copy.records(), copy.day_name()
    ids = sorted(before)
    copy.world.edit("releases", ids[:3])
    copy.world.edit_videos("releases", ids[5:9])
    copy.world.add("releases", [9_999])
    copy.world.remove("releases", ids[10:12])
    path = copy.month("--adopt")
    said = copy.call("import_dump.py", "-v", "-d", path)
    assert "1 releases imported, 3 imported again, 2 removed" in said
    after, days = copy.records(), copy.days()
    assert after.keys() == {*ids, 9_999} - set(ids[10:12])
    assert {i for i in after if days[i] == copy.day_name()} == {*ids[:3], 9_999}
    assert {i for i, day in days.items() if day == first} == set(ids[3:10] + ids[12:])
    now = expected(path, "releases", first)
    assert all(after[i] == now[i] for i in ids[3:10])
    assert copy.states() == {"imported": len(after), "unfetched": 2}
    assert copy.call("maintain_store.py", "--check") == ""


def test_most_is_committed_while_the_dump_is_read_on(
    run: Run, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Copy(run, tmp_path, environment, invented(700))
    path = copy.accept("--adopt")
    monkeypatch.setattr(import_run, "SMALL_COMMIT", 100)
    report = import_run.run(path, config.load(environ=environment), force=False)
    assert report.counts == import_commit.ImportCounts(added=700)
    assert 3 <= len(copy.commits()) <= 5
    assert copy.records().keys() == copy.world.alive["releases"].keys()
    assert copy.states() == {"imported": 700}


def test_what_discogs_adds_and_removes_is_named_with_the_month(copy: Copy) -> None:
    """By the import as well, which looks at records that a split knew already."""

    def grown(text: bytes) -> bytes:
        return text.replace(b"<genres>", b"<mood>blue</mood><genres>")

    def shrunk(text: bytes) -> bytes:
        return re.sub(rb"<data_quality>[^<]*</data_quality>", b"", grown(text))

    days = []
    for written in (lambda text: text, grown, shrunk):
        path = copy.accept("--adopt", written=written)
        days.append(time.strftime("%Y-%m-%d", time.gmtime(time.time() + copy.day * DAY_S)))
        copy.call("import_dump.py", "-d", path)
        copy.day += 31
    seen = copy.ledger(
        "SELECT source, what, path, date(first_seen), date(last_seen) FROM drift_dates "
        "WHERE source <> 'api' ORDER BY source, path"
    )
    assert seen == [
        (source, *row)
        for source in ("dump", "import")
        for row in (
            ("missing", "data_quality", days[2], days[2]),
            ("unknown", "mood", days[1], days[2]),
        )
    ]
    copy.day -= 31
    said = copy.call("stats.py")
    assert f"new at Discogs since {days[2]}: missing: data_quality\n" in said
    assert re.search(r"mood +unknown +import +\d+ ", said)


def test_a_record_of_the_api_is_never_replaced(copy: Copy) -> None:
    """Not even one of which the ledger has not heard yet."""
    path = copy.accept()
    ids = sorted(copy.world.alive["releases"])
    layouts.open_store(config.load(environ=copy.environment))
    copy.commit_as_worker(ids[:5])
    said = copy.call("import_dump.py", "-v", "-d", path)
    assert "5 kept as the API gave them" in said
    assert [i for i, day in copy.days().items() if day is None] == ids[:5]
    copy.commit_as_worker(ids[5:8])
    copy.world.edit("releases", ids[:10])
    copy.call("import_dump.py", "-d", copy.month())
    assert [i for i, day in copy.days().items() if day is None] == ids[:8]
    assert {day for i, day in copy.days().items() if i in ids[8:10]} == {copy.day_name()}


def test_what_a_worker_commits_just_before_an_import_is_not_replaced(
    copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = layouts.open_store(config.load(environ=copy.environment)).top
    refresh, before_a_commit = store.refresh, [[1], [2]]

    def slow_refresh() -> str | None:
        tip = refresh()
        if before_a_commit:
            copy.commit_as_worker(before_a_commit.pop(0))
        return tip

    monkeypatch.setattr(store, "refresh", slow_refresh)
    entries = b""
    for i in (1, 2, 3):
        data = exact_json.dumps({cleaning.DUMP: "20260101", "id": i})
        oid = store.repository.run("hash-object", "-w", "--stdin", stdin=data).strip()
        entries += ENTRY.pack(i, 2, bytes.fromhex(oid.decode()))
    days = ["", "", "20260101"]
    outcome = import_commit.put(store, "releases", entries, days, {"Source": "dump x"})
    assert outcome.counts == import_commit.ImportCounts(added=1, kept=2)
    assert copy.days() == {1: None, 2: None, 3: "20260101"}

    before_a_commit.append([3])
    gone, counts = import_commit.remove(store, "releases", [3], {"Source": "dump x"})
    assert (gone, counts) == ([], import_commit.ImportCounts(kept=1))
    assert copy.days() == {1: None, 2: None, 3: None}


def test_what_a_worker_removed_does_not_come_back(copy: Copy) -> None:
    copy.call("import_dump.py", "-d", copy.accept("--adopt"))
    ids = sorted(copy.records())
    changes = [Edit(ids[0], None)]
    copy.store.commit("releases", changes, lambda: ids, {"Source": "api"})
    copy.world.edit("releases", ids[:2])
    copy.call("import_dump.py", "-d", copy.month("--adopt"))
    assert copy.records().keys() == set(ids[1:])


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "killed before the ledger heard"])
def test_the_api_replaces_an_import_and_its_404_removes_it(copy: Copy, noted: bool) -> None:
    path = copy.accept()
    copy.call("import_dump.py", "-d", path)
    if not noted:
        with contextlib.closing(
            sqlite3.connect(copy.environment["STATE_DIR"] + "/crawler.db")
        ) as db:
            db.execute("UPDATE releases SET imported = NULL")
            db.execute("UPDATE runs SET exit_code = NULL WHERE script = 'import_dump'")
            db.commit()
    ids = sorted(copy.world.alive["releases"])
    copy.world.remove("releases", ids[:2])
    with Api(copy.world, Quota(4_000, window_s=4)) as api:
        copy.settings = {"DISCOGS_API": api.url, "DISCOGS_TOKEN": "any", "RATE_WINDOW_S": "4"}
        copy.call("worker.py", "--until-empty")
        assert {i for i, day in copy.days().items() if day} == set(ids[:2])
        assert "Source: api" in copy.git("log", "-1", "main")
        copy.day = 2
        copy.call("seed_queue.py")
        assert copy.states() == {"stored": RECORDS - 2, "imported" if noted else "gone": 2}
        copy.call("worker.py", "--until-empty")
        copy.call("seed_queue.py")
    assert copy.records().keys() == set(ids[2:])
    assert copy.states() == {"stored": RECORDS - 2, "gone": 2}
    assert copy.call("maintain_store.py", "--check") == ""


def test_only_the_dump_that_the_ledger_accepted_is_imported(copy: Copy) -> None:
    first = copy.accept("--adopt")
    stranger = copy.folder / "discogs_20200101_releases.xml.gz"
    dumps.write(stranger, invented(7), "releases")
    assert "the ledger does not know this dump" in copy.call(
        "import_dump.py", "-d", stranger, code=65
    )
    copy.call("discogs_xml_split.py", "-d", stranger, "-r", f"{stranger}.hashes")
    assert "has not accepted" in copy.call("import_dump.py", "-d", stranger, code=65)
    copy.world.edit("releases", sorted(copy.world.alive["releases"])[:3])
    copy.month("--adopt")
    assert "has not accepted" in copy.call("import_dump.py", "-d", first, code=65)
    assert "no such file" in copy.call("import_dump.py", "-d", "nothing.xml", code=64)
    for stream in (copy.folder, "-"):
        assert "a regular file" in copy.call("import_dump.py", "-d", stream, code=64)
    assert not (copy.folder / "state" / "store" / "discogs.git").exists()


def next_month(copy: Copy) -> Path:
    """Split, a month later, a dump that has other, fewer and more records."""
    copy.day += 31
    ids = sorted(copy.world.alive["releases"])
    copy.world.edit("releases", ids[:3])
    copy.world.remove("releases", ids[5:6])
    copy.world.add("releases", [ids[-1] + 1])
    return copy.split()


def assert_is_copied(copy: Copy, path: Path) -> None:
    """That all of this dump is stored, and nothing else."""

    def undated(records: dict[int, bytes]) -> dict[int, Any]:
        return {i: json.loads(data) | {cleaning.DUMP: None} for i, data in records.items()}

    assert undated(copy.records()) == undated(expected(path, "releases", "20260101"))
    assert copy.call("maintain_store.py", "--check") == ""


@pytest.mark.parametrize("before", [True, False], ids=["imported before", "not imported"])
def test_nothing_is_imported_while_another_dump_is_half_seeded(copy: Copy, before: bool) -> None:
    """The ledger has hashes of the newer dump: the older one's content would be noted as theirs."""
    first = copy.accept("--adopt")
    if before:
        copy.call("import_dump.py", "-d", first)
    commits = copy.commits() if before else []
    second = next_month(copy)
    copy.begin_to_seed(second)
    said = copy.call("import_dump.py", "-d", first, code=75)
    assert "run seed_queue.py -n with the hashes of that dump again" in said
    assert said.count("\n") == 1
    assert before or not (copy.folder / "state" / "store" / "discogs.git").exists()
    assert not before or copy.commits() == commits
    assert not copy.ledger("SELECT 1 FROM runs WHERE script = 'import_dump' AND exit_code <> 0")
    copy.call("seed_queue.py", "-n", f"{second}.hashes", "--adopt")
    copy.call("import_dump.py", "-d", second)
    assert_is_copied(copy, second)


def test_what_a_seeding_that_never_ended_brought_is_imported_from_the_next_dump(copy: Copy) -> None:
    copy.call("import_dump.py", "-d", copy.accept("--adopt"))
    copy.begin_to_seed(next_month(copy))
    copy.world.edit("releases", sorted(copy.world.alive["releases"])[7:8])
    third = copy.month("--adopt")
    copy.call("import_dump.py", "-d", third)
    assert_is_copied(copy, third)


def test_a_seeding_that_begins_during_an_import_does_not_mix_with_it(
    copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy.call("import_dump.py", "-d", copy.accept("--adopt"))
    ids = sorted(copy.records())
    copy.world.edit("releases", ids[:2])
    copy.world.remove("releases", ids[9:10])
    first = copy.month("--adopt")
    second = next_month(copy)
    select = import_selection.select

    def select_late(*arguments: Any) -> import_selection.Selection:
        copy.begin_to_seed(second)
        return select(*arguments)

    monkeypatch.setattr(import_selection, "select", select_late)
    report = import_run.run(first, config.load(environ=copy.environment), force=False)
    assert report.counts == import_commit.ImportCounts(changed=2, removed=1)
    assert_is_copied(copy, first)
    copy.call("seed_queue.py", "-n", f"{second}.hashes", "--adopt")
    copy.call("import_dump.py", "-d", second)
    assert_is_copied(copy, second)


def test_going_back_to_an_older_dump_is_seeded_and_imported_like_any_other(copy: Copy) -> None:
    first = copy.accept("--adopt")
    copy.call("import_dump.py", "-d", first)
    second = next_month(copy)
    copy.call("seed_queue.py", "-n", f"{second}.hashes", "--adopt")
    copy.begin_to_seed(first, force=True)
    assert "has not ended" in copy.call("import_dump.py", "-d", second, code=75)
    copy.call("seed_queue.py", "-n", f"{first}.hashes", "--adopt", "--force")
    copy.call("import_dump.py", "-d", first)
    assert_is_copied(copy, first)


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_seeding_by_mistake_is_taken_back_by_seeding_the_accepted_dump_again(
    copy: Copy, is_killed: bool
) -> None:
    first = copy.accept("--adopt")
    copy.call("import_dump.py", "-d", first)
    copy.begin_to_seed(next_month(copy), force=True)
    if is_killed:
        copy.begin_to_seed(first, force=True)
    assert "go back" in copy.call("import_dump.py", "-d", first, code=75)
    copy.call("seed_queue.py", "-n", f"{first}.hashes", "--adopt")
    copy.call("import_dump.py", "-d", first)
    assert_is_copied(copy, first)
    with database.open(Path(copy.environment["STATE_DIR"]) / "crawler.db") as ledger:
        assert not ledger.import_failed("releases"), "it was only too early"


@pytest.mark.parametrize("ended", [True, False])
def test_a_seeding_just_before_an_import_looks_into_the_ledger_stops_it(
    copy: Copy, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    first = copy.accept("--adopt")
    second = next_month(copy)

    def seed(*_: object) -> None:
        if ended:
            copy.call("seed_queue.py", "-n", f"{second}.hashes", "--adopt")
        else:
            copy.begin_to_seed(second)

    monkeypatch.setattr(import_run, "refuse_older_copy", seed)
    with pytest.raises(TryLater, match="has not ended"):
        import_run.run(first, config.load(environ=copy.environment), force=False)
    assert copy.states() == {"unfetched": RECORDS + 1}


def test_very_much_is_not_removed_without_force(copy: Copy) -> None:
    copy.call("import_dump.py", "-d", copy.accept("--adopt"))
    copy.world.remove("releases", sorted(copy.world.alive["releases"])[:30])
    path = copy.month("--force", "--adopt")
    assert "has 90 records and lacks 30 that were imported; nothing was changed" in copy.call(
        "import_dump.py", "-d", path, code=65
    )
    assert len(copy.records()) == RECORDS
    copy.call("import_dump.py", "-d", path, "--force")
    assert len(copy.records()) == RECORDS - 30


def test_a_damaged_record_is_named_and_skipped(copy: Copy, tmp_path: Path) -> None:
    path = tmp_path / "discogs_20261001_releases.xml"
    dumps.write(path, copy.world, "releases")
    lines = path.read_text().split("<release id=")
    lines[3] = lines[3].replace("<title>", "<title>\x07", 1)
    path.write_text("<release id=".join(lines))
    copy.call("discogs_xml_split.py", "-d", path, "-r", f"{path}.hashes")
    copy.call("seed_queue.py", "-n", f"{path}.hashes")
    damaged = sorted(copy.world.alive["releases"])[2]
    said = copy.call("import_dump.py", "-v", "-d", path)
    assert f"record {damaged} is damaged and not imported: " in said
    assert "1 damaged and skipped" in said
    assert len(copy.records()) == RECORDS - 1
    assert "imported before" in copy.call("import_dump.py", "-v", "-d", path)


def test_a_record_that_hides_in_a_comment_is_none(copy: Copy, tmp_path: Path) -> None:
    path = tmp_path / "discogs_20261001_releases.xml"
    hidden = '<!-- \n<release id="2"><title>hidden</title></release>\n<release id="3">-->'
    path.write_text(
        f'<releases>\n<release id="1"><title>one</title>{hidden}</release>\n'
        '<release id="2"><title>two</title></release>\n</releases>\n'
    )
    copy.call("discogs_xml_split.py", "-d", path, "-r", f"{path}.hashes")
    copy.call("seed_queue.py", "-n", f"{path}.hashes")
    copy.call("import_dump.py", "-d", path)
    titles = {i: json.loads(data)["title"] for i, data in copy.records().items()}
    assert titles == {1: "one", 2: "two"}


@pytest.mark.parametrize(
    "rules",
    [
        {"REMOVE_FIELDS": "notes,tracklist[].duration"},
        {"KEEP_FIELDS": "videos"},
        {"REMOVE_FIELDS": "artists", "KEEP_FIELDS": "artists[].id"},
        {"CLEAN_PRESET": "public"},
    ],
)
def test_the_cleaning_rules_hold(copy: Copy, rules: dict[str, str]) -> None:
    copy.settings = rules
    path = copy.accept("--adopt")
    copy.call("import_dump.py", "-d", path)
    assert copy.records() == expected(path, "releases", copy.day_name(), **rules)


def test_recleaning_leaves_where_a_record_is_from(copy: Copy) -> None:
    path = copy.accept("--adopt")
    copy.call("import_dump.py", "-d", path)
    copy.settings = {"REMOVE_FIELDS": "notes"}
    copy.call("maintain_store.py", "--reclean")
    assert copy.records() == expected(path, "releases", copy.day_name(), REMOVE_FIELDS="notes")


@pytest.mark.parametrize("remote", [False, pytest.param(True, marks=pytest.mark.long)])
def test_segments_are_imported_into_their_repositories(
    run: Run, tmp_path: Path, environment: dict[str, str], remote: bool
) -> None:
    world = World()
    world.add("releases", [1, 2, 999_999, 1_000_000, 1_000_001, 3_500_000])
    copy = Copy(run, tmp_path, environment, world)
    copy.settings = {"STORE_LAYOUT": "submodules"}
    there = tmp_path / "there"
    if remote:
        there.mkdir()
        copy.settings["STORE_REMOTE"] = str(there)
    path = copy.accept("--adopt")
    copy.call("import_dump.py", "-d", path)
    if remote:
        shutil.rmtree(tmp_path / "state" / "store")
        copy.call("worker.py", "--until-empty")
        copy.call("maintain_store.py")
    assert copy.records() == expected(path, "releases", copy.day_name())
    names = {part.prefix for part in copy.store.parts()}
    assert names == {"releases/00/", "releases/01/", "releases/03/"}
    assert copy.call("maintain_store.py", "--check") == ""
    world.remove("releases", [1_000_000])
    world.edit("releases", [3_500_000])
    path = copy.month("--adopt", "--force")
    copy.call("import_dump.py", "-d", path, "--force")
    assert copy.records().keys() == {1, 2, 999_999, 1_000_001, 3_500_000}
    assert {segment_of(i) for i, day in copy.days().items() if day == copy.day_name()} == {3}


def test_where_the_ledger_says_that_there_is_a_store_none_is_made(copy: Copy) -> None:
    """Its disk was not mounted: only what had changed would have been in the new one."""
    copy.call("import_dump.py", "-d", copy.accept("--adopt"))
    store = copy.folder / "state" / "store"
    store.rename(store.with_name("mounted elsewhere"))
    copy.world.edit("releases", sorted(copy.world.alive["releases"])[:3])
    path = copy.month("--adopt")
    for script in (("import_dump.py", "-d", path), ("worker.py", "--until-empty")):
        said = copy.call(*script, code=78)
        assert f"there is no store, but the ledger says that {RECORDS} records are in it" in said
        assert not store.exists()


@pytest.mark.long
def test_none_is_made_either_where_the_disk_of_the_remote_is_not_mounted(copy: Copy) -> None:
    there = copy.folder / "there"
    there.mkdir()
    copy.settings = {"STORE_LAYOUT": "submodules", "STORE_REMOTE": str(there)}
    copy.call("import_dump.py", "-d", copy.accept("--adopt"))
    shutil.rmtree(copy.folder / "state" / "store")
    there.rename(copy.folder / "mounted elsewhere")
    there.mkdir()
    copy.world.edit("releases", sorted(copy.world.alive["releases"])[:3])
    said = copy.call("import_dump.py", "-d", copy.month("--adopt"), code=78)
    assert f"it is empty, but {copy.folder}" in said
    assert not list(there.iterdir())
    there.rmdir()
    (copy.folder / "mounted elsewhere").rename(there)
    copy.call("import_dump.py", "-d", copy.month("--adopt"))
    assert len(copy.records()) == RECORDS


@pytest.mark.long
def test_a_converted_store_is_imported_into_as_before(copy: Copy) -> None:
    copy.call("import_dump.py", "-d", copy.accept("--adopt"))
    ids = sorted(copy.records())
    copy.call("maintain_store.py", "--to-submodules")
    copy.settings = {"STORE_LAYOUT": "submodules"}
    copy.world.edit("releases", ids[:3])
    copy.call("import_dump.py", "-d", copy.month("--adopt"))
    assert [i for i, day in copy.days().items() if day == copy.day_name()] == ids[:3]
    assert copy.call("maintain_store.py", "--check") == ""


def test_with_a_remote_it_counts_when_it_is_pushed(copy: Copy, tmp_path: Path) -> None:
    remote = tmp_path / "remote.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(remote)], check=True)
    copy.settings = {"STORE_REMOTE": str(remote)}
    path = copy.accept("--adopt")
    copy.call("import_dump.py", "-d", path)
    names = Repository(remote).run("ls-tree", "-r", "--name-only", "main").decode().split()
    assert set(names) == {record_path("releases", i) for i in copy.world.alive["releases"]}
    remote.rename(tmp_path / "away.git")
    copy.world.edit("releases", sorted(copy.world.alive["releases"])[:2])
    path = copy.month("--adopt")
    before = copy.states()
    process = subprocess.Popen(
        [sys.executable, ROOT / "bin/import_dump.py", "-d", path],
        env=copy.environment | copy.settings,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    assert "cannot be reached" in process.stderr.readline()
    process.terminate()
    assert process.wait(60) in (1, 69)
    assert copy.states() == before
    (tmp_path / "away.git").rename(remote)
    copy.call("import_dump.py", "-d", path)
    assert len(Repository(remote).run("log", "--format=%s", "main").splitlines()) == 2


def test_a_second_one_at_once_waits(copy: Copy) -> None:
    path = copy.accept("--adopt")
    lock = Path(copy.environment["STATE_DIR"]) / "import_dump.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [sys.executable, ROOT / "bin/import_dump.py", "-v", "-d", path],
            env=copy.environment | copy.settings,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        assert "already running as process unknown: waiting" in process.stderr.readline()
    assert process.wait(60) == 0
    assert copy.records()


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    run: Run, tmp_path: Path, environment: dict[str, str]
) -> None:
    copy = Copy(run, tmp_path, environment, invented(1_500))
    path = copy.accept("--adopt")
    largest = max(file.stat().st_size for file in (tmp_path / "state").iterdir())
    limit = largest + 100_000
    done = subprocess.run(
        [sys.executable, ROOT / "bin/import_dump.py", "-d", path],
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
    )
    assert done.returncode == 69, done.stderr
    assert done.stderr.count("\n") == 1
    assert "no space left" in done.stderr
    copy.call("import_dump.py", "-d", path)
    assert copy.records() == expected(path, "releases", copy.day_name())


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_killed_anywhere_it_goes_on(copy: Copy, number: int) -> None:
    path = copy.accept("--adopt")
    chance = random.Random(number)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, ROOT / "bin/import_dump.py", "-q", "-d", path],
            env=copy.environment,
            stderr=subprocess.PIPE,
        )
        try:
            process.wait(0.3 + chance.random() * 1.5)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        assert process.wait(60) in (-number, 0, 1)
    copy.call("import_dump.py", "-d", path)
    assert copy.records() == expected(path, "releases", copy.day_name())
    assert copy.states() == {"imported": RECORDS}
    assert copy.commits() == [f"releases: {RECORDS} imported"]


def test_a_lost_ledger_knows_again_what_a_dump_brought(copy: Copy) -> None:
    path = copy.accept()
    copy.call("import_dump.py", "-d", path)
    ids = sorted(copy.records())
    copy.commit_as_worker(ids[:4])
    (copy.folder / "state" / "crawler.db").unlink()
    copy.call("seed_queue.py", "--rebuild-ledger", "--adopt", "-n", f"{path}.hashes")
    assert copy.states() == {"imported": RECORDS - 4, "stored": 4}
    assert copy.call("maintain_store.py", "--check") == ""
    copy.call("discogs_xml_split.py", "-d", path, "-r", f"{path}.again", "--verify")
    commits = copy.commits()
    copy.call("import_dump.py", "-d", path)
    assert copy.commits() == commits
    assert copy.states() == {"imported": RECORDS - 4, "stored": 4}


@pytest.mark.long
def test_a_ledger_that_is_lost_after_a_conversion_knows_what_a_dump_brought(copy: Copy) -> None:
    path = copy.accept()
    copy.call("import_dump.py", "-d", path)
    copy.commit_as_worker(sorted(copy.records())[:4])
    copy.call("maintain_store.py", "--to-submodules")
    copy.settings = {"STORE_LAYOUT": "submodules"}
    (copy.folder / "state" / "crawler.db").unlink()
    copy.call("seed_queue.py", "--rebuild-ledger", "--adopt", "-n", f"{path}.hashes")
    assert copy.states() == {"imported": RECORDS - 4, "stored": 4}


def test_a_lost_ledger_of_last_month_is_brought_up_to_date(copy: Copy) -> None:
    copy.call("import_dump.py", "-d", copy.accept("--adopt"))
    ids = sorted(copy.records())
    copy.world.edit("releases", ids[:3])
    path = copy.month("--adopt")
    (copy.folder / "state" / "crawler.db").unlink()
    copy.call("seed_queue.py", "--rebuild-ledger", "--adopt", "-n", f"{path}.hashes")
    copy.call("discogs_xml_split.py", "-d", path, "-r", f"{path}.again", "--verify")
    copy.call("import_dump.py", "-d", path)
    assert [i for i, day in copy.days().items() if day == copy.day_name()] == ids[:3]


def test_a_branch_of_a_worker_wins_over_an_import(copy: Copy) -> None:
    path = copy.accept("--adopt")
    ids = sorted(copy.world.alive["releases"])
    settings = config.load(environ=copy.environment)
    side = layouts.open_store(settings, branch="side")
    changes = [Edit(i, exact_json.dumps({"id": i})) for i in ids[:3]]
    side.commit("releases", changes, lambda: ids, {"Source": "api"})
    copy.call("import_dump.py", "-d", path)
    copy.call("maintain_store.py", "--merge")
    assert [i for i, day in copy.days().items() if day is None] == ids[:3]


def test_an_older_ledger_is_upgraded(tmp_path: Path) -> None:
    import sqlite_utils

    from discogs_crawler.ledger.schema import MIGRATIONS

    path = tmp_path / "crawler.db"
    older = sqlite_utils.Database(path, strict=True)
    MIGRATIONS.apply(older, stop_before="know_imported_records")
    older.execute("INSERT INTO releases (id, alive, misses) VALUES (7, 1, 0), (8, NULL, 1)")
    older.close()
    with database.open(path) as ledger:
        ledger.db.execute("UPDATE releases SET imported = 3, misses = 0 WHERE id = 8")
        states = ledger.db.execute("SELECT id, state FROM releases").fetchall()
        assert states == [(7, "stored"), (8, "imported")]
        assert ledger.db.execute("SELECT stored, imported, gone FROM progress").fetchall() == [
            (1, 1, 0)
        ]
        assert ledger.db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("layout", ["single", pytest.param("submodules", marks=pytest.mark.long)])
def test_a_store_put_back_behind_an_import_is_found_at_once(copy: Copy, layout: str) -> None:
    """No worker has ever run. What the import brought is for the next import to bring again."""
    copy.settings["STORE_LAYOUT"] = layout
    copy.call("import_dump.py", "-d", copy.accept())
    parts = [part.repository for part in copy.store.parts()]
    before = {part: part.tip("refs/heads/main") for part in parts}
    ids = sorted(copy.world.alive["releases"])
    copy.world.edit("releases", ids[:3])
    copy.world.remove("releases", ids[5:6])
    copy.world.add("releases", [ids[-1] + 1])
    path = copy.month()
    copy.call("import_dump.py", "-d", path)
    whole = copy.records()
    for part, tip in before.items():
        assert tip
        part.run("update-ref", "refs/heads/main", tip)
    assert copy.records() != whole
    for command in (
        ["seed_queue.py"],
        ["import_dump.py", "-d", path],
        ["worker.py", "--until-empty"],
        ["maintain_store.py"],
    ):
        assert "--refetch" in copy.call(*command, code=78)
    wants = copy.ledger("SELECT id, due, reason, since FROM releases")
    said = copy.call("maintain_store.py", "--refetch")
    assert "for import_dump.py to look at" in said
    assert "wanted again" not in said
    assert copy.ledger("SELECT id, due, reason, since FROM releases") == wants
    copy.call("import_dump.py", "-d", path)
    assert copy.records() == whole
    assert copy.call("maintain_store.py", "--check") == ""
    assert copy.call("maintain_store.py", "--refetch") == ""
