"""export_changes.py --into: who follows the state file gets each change once, whatever happens."""

import dataclasses
import fcntl
import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils
import urllib3

from discogs_crawler.ledger import consumers
from discogs_crawler.records import KINDS
from tests.conftest import ROOT, make_ledger
from tests.plain_git import Record, SingleStore, SubmoduleStore, git, record

SCRIPT = ROOT / "bin" / "export_changes.py"
FOLLOW = ROOT / "lib" / "discogs_crawler" / "data" / "examples" / "follow.py"
DAY_S = 86_400

# Root may write anywhere, unless these are taken from it.
NOT_ANYWHERE = "--bounding-set=-dac_override,-dac_read_search"
UNPRIVILEGED = ["setpriv", NOT_ANYWHERE] if os.getuid() == 0 and shutil.which("setpriv") else []

# Fails or kills at the n-th call that changes a file or the database, before or after it.
FAULTS = """
import os, runpy, signal, sqlite3, sys
script, nth, mode, *arguments = sys.argv[1:]
left = int(nth)

def failing(real):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0 and mode == "error":
            raise OSError(28, "No space left on device")
        if left == 0 and mode == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = real(*args, **kwargs)
        if left == 0 and mode == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return call

for name in ("fsync", "fchmod", "rename", "unlink", "mkdir"):
    setattr(os, name, failing(getattr(os, name)))

class Connection(sqlite3.Connection):
    execute = failing(sqlite3.Connection.execute) if mode != "error" else sqlite3.Connection.execute

connect = sqlite3.connect
sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=Connection, **kwargs)
sys.argv = [script, *arguments]
try:
    runpy.run_path(script, run_name="__main__")
finally:
    if left > 0:
        print("all calls done", file=sys.stderr)
"""


@pytest.fixture
def store(environment: dict[str, str]) -> SingleStore:
    return SingleStore(Path(environment["STATE_DIR"]) / "store" / "discogs.git")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "published files"


class Exporter:
    """The script, for the consumer `web`."""

    def __init__(self, environment: dict[str, str], folder: Path, name: str = "web") -> None:
        self.environment = environment
        make_ledger(Path(environment["STATE_DIR"]) / "crawler.db")
        self._always = ("--consumer", name, "--into", str(folder))

    def __call__(
        self, *arguments: object, fault: tuple[int, str] | None = None, day: int = 0
    ) -> "subprocess.CompletedProcess[str]":
        command = [*UNPRIVILEGED, sys.executable, str(SCRIPT)]
        if fault is not None:
            command = [sys.executable, "-c", FAULTS, str(SCRIPT), *map(str, fault)]
        return subprocess.run(
            [*command, *self._always, *map(str, arguments)],
            env=self.environment | {"CLOCK_OFFSET_S": str(day * DAY_S)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def export(environment: dict[str, str], folder: Path) -> Exporter:
    return Exporter(environment, folder)


class Reader:
    """Obeys the state file: begins with the baseline, then takes each number once, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sequence: int | None = None
        self.records: dict[Record, Any] = {}
        self.announced: dict[str, str] = {}

    def read(self) -> None:
        """Take what was announced; nothing may be missing, or other than it was said to be."""
        path = self.folder / "web.state.json"
        if not path.exists():
            return
        state = json.loads(path.read_bytes())
        if self.sequence is None or self.sequence + 1 < state["first"]:
            assert state["baseline"], "nothing to begin with"
            self.records.clear()
            self._take(state["baseline"])
            assert state["baseline"]["sequence"] >= state["first"] - 1
            self.sequence = state["baseline"]["sequence"]
        for number in range(self.sequence + 1, state["sequence"] + 1):
            about = json.loads((self.folder / f"web-{number:09}.state.json").read_bytes())
            assert about["sequence"] == number
            self._take(about)
            self.sequence = number
        for number in range(state["first"], state["sequence"] + 1):
            assert (self.folder / f"web-{number:09}.jsonl.gz").exists()

    def _take(self, about: dict[str, Any]) -> None:
        packed = (self.folder / about["file"]).read_bytes()
        assert hashlib.sha256(packed).hexdigest() == about["sha256"]
        assert len(packed) == about["bytes"]
        assert self.announced.setdefault(about["file"], about["sha256"]) == about["sha256"]
        lines = gzip.decompress(packed).splitlines()
        assert len(lines) == about["changes"]
        for change in map(json.loads, lines):
            key = change["kind"], change["id"]
            assert change.get("previous", self.records.get(key)) == self.records.get(key)
            if change["status"] == "D":
                del self.records[key]
            else:
                assert (key in self.records) == (change["status"] == "M")
                self.records[key] = change["data"]


def agrees(reader: Reader, store: SingleStore | SubmoduleStore) -> bool:
    return reader.records == {key: json.loads(data) for key, data in store.records().items()}


def test_files_are_numbered_and_described(
    store: SingleStore, export: Exporter, folder: Path, environment: dict[str, str]
) -> None:
    first = store.commit({("releases", n): record(n) for n in (1, 2)})
    done = export()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    state = json.loads((folder / "web.state.json").read_bytes())
    packed = (folder / "web-000000001.jsonl.gz").read_bytes()
    described = {
        "sequence": 1,
        "file": "web-000000001.jsonl.gz",
        "from": None,
        "to": first,
        "changes": 2,
        "bytes": len(packed),
        "sha256": hashlib.sha256(packed).hexdigest(),
        "time": state["time"],
    }
    about = {"format": 1, "consumer": "web", "kind": "releases", "first": 1}
    assert state == {**about, **described, "baseline": described}
    lines = map(json.loads, gzip.decompress(packed).splitlines())
    assert [line["revision"] for line in lines] == [first, first]
    assert export().returncode == 0
    assert sorted(path.name for path in folder.glob("[!.]*")) == [
        "web-000000001.jsonl.gz",
        "web-000000001.state.json",
        "web.state.json",
    ]
    second = store.commit({("releases", 2): None, ("releases", 3): record(3)})
    assert export().returncode == 0
    state = json.loads((folder / "web.state.json").read_bytes())
    assert (state["sequence"], state["first"]) == (2, 1)
    assert (state["from"], state["to"], state["changes"]) == (first, second, 2)
    assert state["baseline"] == described
    listing = subprocess.run(
        [sys.executable, SCRIPT, "--list"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    row = listing.stdout.splitlines()[1]
    assert row.split()[-4:-2] == ["4", "2"]
    assert row.endswith(str(folder))


def test_who_comes_late_begins_with_a_baseline(
    store: SingleStore, export: Exporter, folder: Path
) -> None:
    store.commit({("releases", 1): record(1)})
    assert export("--from", "now").returncode == 0
    assert list(folder.glob("web*")) == []
    early, late = Reader(folder), Reader(folder)
    for number in range(2, 6):
        store.commit({("releases", number): record(number), ("releases", number - 1): None})
        assert export("--from", "now").returncode == 0
        early.read()
        assert agrees(early, store)
    late.read()
    assert agrees(late, store)
    assert late.announced["web-000000001.full.jsonl.gz"]


def test_old_files_go_when_a_younger_baseline_is_there(
    store: SingleStore, export: Exporter, folder: Path
) -> None:
    reader, slow = Reader(folder), Reader(folder)
    for day in range(0, 100, 10):
        store.commit(
            {("releases", day): record(day, str(day))}
            | ({("releases", day - 20): None} if day >= 20 else {})
        ) if day else store.commit({("releases", 999): record(999)})
        assert export("--keep", 25, day=day).returncode == 0
        state = json.loads((folder / "web.state.json").read_bytes())
        reader.read()
        assert agrees(reader, store)
        if day % 40 == 0:
            slow.read()
            assert agrees(slow, store)
        fresh = Reader(folder)
        fresh.read()
        assert agrees(fresh, store)
    numbers = [n for n in range(1, 30) if (folder / f"web-{n:09}.jsonl.gz").exists()]
    assert numbers == list(range(state["first"], 11))
    assert 3 <= len(numbers) <= 7
    assert len(list(folder.glob("*.full.jsonl.gz"))) == 1


def test_a_reset_is_a_gap_that_readers_see(
    store: SingleStore, export: Exporter, folder: Path
) -> None:
    reader = Reader(folder)
    begin = store.commit({("releases", 1): record(1)})
    export()
    store.commit({("releases", 1): None, ("releases", 2): record(2)})
    export()
    reader.read()
    for target in ("start", begin):
        assert export("--reset", target).returncode == 0
        store.commit({("releases", 3): record(3, target)})
        assert export().returncode == 0
        before = reader.sequence
        reader.read()
        assert agrees(reader, store)
        assert before is not None
        assert reader.sequence == before + 2


def test_an_export_elsewhere_would_be_missed_and_is_refused(
    store: SingleStore, export: Exporter, folder: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    store.commit({("releases", 1): record(1)})
    assert export().returncode == 0
    plain = [sys.executable, str(SCRIPT), "--consumer", "web"]
    done = subprocess.run(plain, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (64, "")
    assert "use another name" in done.stderr
    other = Exporter(environment, tmp_path / "elsewhere")
    done = other()
    assert done.returncode == 78
    assert "is the disk mounted?" in done.stderr
    assert not (tmp_path / "elsewhere").exists()
    folder.rename(tmp_path / "elsewhere")
    store.commit({("releases", 2): record(2)})
    assert other().returncode == 0
    reader = Reader(tmp_path / "elsewhere")
    reader.read()
    assert agrees(reader, store)


@pytest.mark.parametrize(
    "arguments", [("--format", "names"), ("-z",), ("--exec", "cat"), ("--keep", "0")]
)
def test_what_makes_no_sense_with_files_is_refused(
    store: SingleStore, export: Exporter, arguments: tuple[str, ...]
) -> None:
    assert export(*arguments).returncode == 64


def test_a_state_that_is_none_is_named(store: SingleStore, export: Exporter, folder: Path) -> None:
    store.commit({("releases", 1): record(1)})
    folder.mkdir()
    for text in ("", "{}", "[1]", '{"sequence": "x"}'):
        (folder / "web.state.json").write_text(text)
        done = export()
        assert done.returncode == 78
        assert "web.state.json" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_ledger_from_a_backup_goes_on_where_the_files_are(
    store: SingleStore, export: Exporter, folder: Path, environment: dict[str, str]
) -> None:
    database = Path(environment["STATE_DIR"]) / "crawler.db"
    backup = database.with_name("backup.db")
    reader = Reader(folder)
    for number in range(1, 6):
        store.commit({("releases", number): record(number)})
        assert export().returncode == 0
        reader.read()
        if number == 2:
            with consumers.opened(database) as db:
                db.execute("VACUUM INTO ?", (str(backup),))
    for suffix in ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    backup.rename(database)
    store.commit({("releases", 6): record(6)})
    done = export()
    assert done.returncode == 0
    assert "going on after number 5" in done.stderr
    late = Reader(folder)
    for each in (reader, late):
        each.read()
        assert agrees(each, store)
        assert each.sequence == 6


@pytest.fixture
def elsewhere(environment: dict[str, str], store: SingleStore, folder: Path) -> Exporter:
    """An exporter with a ledger of its own, into the same folder."""
    other = environment | {"STATE_DIR": environment["STATE_DIR"] + "2"}
    other["STORE"] = str(store.folder.parent)
    return Exporter(other, folder)


def test_two_ledgers_do_not_write_the_same_files(
    store: SingleStore, export: Exporter, elsewhere: Exporter, folder: Path
) -> None:
    store.commit({("releases", 1): record(1)})
    assert export().returncode == 0
    for _ in range(2):
        done = elsewhere()
        assert done.returncode == 78
        assert "it belongs to another export" in done.stderr
    with (folder / ".web.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        store.commit({("releases", 2): record(2)})
        done = export()
        assert done.returncode == 75
        assert "an export to web is already running" in done.stderr
    assert export().returncode == 0
    reader = Reader(folder)
    reader.read()
    assert agrees(reader, store)


def test_two_ledgers_that_have_both_got_somewhere_are_told_apart(
    store: SingleStore, export: Exporter, elsewhere: Exporter, folder: Path, tmp_path: Path
) -> None:
    for number in range(1, 4):
        store.commit({("releases", number): record(number)})
        assert export().returncode == 0
    files = tmp_path / "files"
    folder.rename(files)
    assert elsewhere().returncode == 0
    shutil.rmtree(folder)
    files.rename(folder)
    store.commit({("releases", 4): record(4)})
    assert elsewhere().returncode == 78
    assert export().returncode == 0


def test_forgotten_and_begun_again_is_a_gap_that_readers_see(
    store: SingleStore, export: Exporter, folder: Path, environment: dict[str, str]
) -> None:
    reader = Reader(folder)
    for number in range(1, 4):
        store.commit({("releases", number): record(number)})
        assert export().returncode == 0
    reader.read()
    forget = [sys.executable, str(SCRIPT), "--consumer", "web", "--forget"]
    for change in ({("releases", 1): None}, {("releases", 2): None}):
        subprocess.run(forget, env=environment, check=True)
        store.commit(change)
        before = reader.sequence
        assert before is not None
        assert export().returncode == 0
        reader.read()
        assert agrees(reader, store)
        assert reader.sequence == before + 2


def test_after_the_ledger_is_lost_the_numbers_go_on(
    store: SingleStore, export: Exporter, folder: Path, environment: dict[str, str]
) -> None:
    reader = Reader(folder)
    for number in range(1, 4):
        store.commit({("releases", number): record(number)})
        assert export().returncode == 0
    reader.read()
    state = Path(environment["STATE_DIR"])
    for path in state.glob("crawler.db*"):
        path.unlink()
    store.commit({("releases", 1): None})
    done = export()
    assert done.returncode == 78
    assert "the ledger knows nothing" in done.stderr
    assert not list(state.glob("crawler.db*"))
    make_ledger(state / "crawler.db")
    done = export()
    assert done.returncode == 78
    assert "remove this file" in done.stderr
    (folder / "web.state.json").unlink()
    assert export().returncode == 0
    reader.read()
    assert agrees(reader, store)
    assert reader.sequence == 5


@pytest.mark.parametrize("jump", [400, -400])
def test_a_clock_that_jumps_breaks_nothing_and_lets_old_files_go(
    store: SingleStore, export: Exporter, folder: Path, jump: int
) -> None:
    reader = Reader(folder)
    for number, day in enumerate((0, 2, jump, 4, 6, 12, 13)):
        store.commit({("releases", number): record(number), ("releases", number - 2): None})
        assert export("--kind", "all", "--keep", 3, day=day).returncode == 0
        for each in (reader, Reader(folder)):
            each.read()
            assert agrees(each, store)
    assert len(list(folder.glob("web-*.jsonl.gz"))) <= 4


def test_files_of_other_consumers_are_left_alone(
    store: SingleStore, export: Exporter, folder: Path, environment: dict[str, str]
) -> None:
    folder.mkdir()
    theirs = {".web-all-000000001.jsonl.gz.abc.tmp", ".web.x.state.json.abc.tmp", "web-1.jsonl.gz"}
    ours = {".web-000000001.jsonl.gz.abc.tmp", ".web.state.json.abc.tmp"}
    for name in theirs | ours:
        (folder / name).touch()
    store.commit({("releases", 1): record(1)})
    assert export().returncode == 0
    assert Exporter(environment, folder, "web-all")().returncode == 0
    names = {path.name for path in folder.iterdir()}
    assert theirs - names == {".web-all-000000001.jsonl.gz.abc.tmp"}
    assert ours & names == set()
    done = Exporter(environment, folder, "web-000000001")()
    assert done.returncode == 64


def test_with_what_was_lost_nobody_is_told_to_begin(
    store: SingleStore, export: Exporter, folder: Path
) -> None:
    for number in range(1, 5):
        store.commit({("releases", number): record(number)})
        assert export().returncode == 0
    (folder / "web-000000002.jsonl.gz").unlink()
    assert export().returncode == 0
    state = json.loads((folder / "web.state.json").read_bytes())
    assert (state["first"], state["baseline"]) == (3, None)
    store.commit({("releases", 5): record(5)})
    assert export().returncode == 0
    reader = Reader(folder)
    reader.read()
    assert agrees(reader, store)


@pytest.mark.skipif(not UNPRIVILEGED and os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_one_line(
    store: SingleStore, export: Exporter, folder: Path
) -> None:
    store.commit({("releases", 1): record(1)})
    folder.mkdir(mode=0o500)
    done = export()
    assert done.returncode == 69
    assert "Permission denied" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    folder.chmod(0o700)
    assert export().returncode == 0
    store.commit({("releases", 2): record(2)})
    folder.chmod(0o500)
    assert export().returncode == 69
    folder.chmod(0o700)
    assert export().returncode == 0
    reader = Reader(folder)
    reader.read()
    assert agrees(reader, store)


def test_a_folder_that_vanished_is_not_made_anew(
    store: SingleStore, export: Exporter, folder: Path, tmp_path: Path
) -> None:
    """It may be on a disk that is not mounted now."""
    store.commit({("releases", 1): record(1)})
    folder.symlink_to(tmp_path / "disk")
    done = export()
    assert (done.returncode, len(done.stderr.splitlines())) == (69, 1)
    (tmp_path / "disk").mkdir()
    assert export().returncode == 0
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    store.commit({("releases", 2): record(2)})
    for _ in range(2):
        done = export()
        assert done.returncode == 78
        assert "is the disk mounted?" in done.stderr
        assert not (tmp_path / "disk").exists()
    (tmp_path / "unmounted").rename(tmp_path / "disk")
    assert export().returncode == 0
    reader = Reader(folder)
    reader.read()
    assert agrees(reader, store)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm here")
def test_a_folder_may_be_on_another_file_system(
    store: SingleStore, environment: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        reader = Reader(Path(folder))
        for number in range(1, 4):
            store.commit({("releases", number): record(number)})
            assert Exporter(environment, Path(folder))().returncode == 0
            reader.read()
            assert agrees(reader, store)


def story(chance: random.Random, store: SingleStore | SubmoduleStore) -> None:
    """A commit of random changes."""
    if not any(store.folder.glob("refs/heads/*")):
        store.commit({("releases", 99): record(99)})
    there = [key for key in store.records() if key[1] < 1_000]
    changes: dict[Record, bytes | None] = {}
    for _ in range(3):
        number = chance.randrange(1, 40)
        kind = chance.choice(("releases", "releases", "artists"))
        changes[kind, number] = record(number, str(chance.random()))
    if chance.random() < 0.7:
        changes[chance.choice(there)] = None
    store.commit(changes)


def check_all_faults(
    store: SingleStore, export: Exporter, folder: Path, mode: str, chance: random.Random, step: int
) -> None:
    """Whichever call fails, the reader misses nothing; until a run makes fewer calls."""
    reader, nth, done = Reader(folder), 1 + chance.randrange(step), None
    day = 0
    while done is None or "all calls done" not in done.stderr:
        story(chance, store)
        day += 1
        done = export("--kind", "all", "--keep", 3, fault=(nth, mode), day=day)
        assert done.returncode in (0, 69, -signal.SIGKILL), done.stderr
        assert "Traceback" not in done.stderr
        reader.read()
        assert export("--kind", "all", "--keep", 3, day=day).returncode == 0
        for each in (reader, Reader(folder)):
            each.read()
            assert agrees(each, store)
        nth += 1 + chance.randrange(step)


@pytest.mark.parametrize("mode", ["error", "before", "after"])
def test_whichever_call_fails_nothing_is_missing(
    store: SingleStore, export: Exporter, folder: Path, mode: str
) -> None:
    check_all_faults(store, export, folder, mode, random.Random(mode), 20)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["error", "before", "after"])
@pytest.mark.parametrize("round_", range(3))
def test_every_call_fails_and_nothing_is_missing(
    store: SingleStore, export: Exporter, folder: Path, mode: str, round_: int
) -> None:
    check_all_faults(store, export, folder, mode, random.Random(f"{mode} {round_}"), 1)


# Calls of a run that FAULTS counts: about as many as it makes.
CALLS = 90


@dataclasses.dataclass
class Life:
    """A store in one of its ways, an exporter of it, and a reader that goes on through all."""

    store: SingleStore | SubmoduleStore
    export: Exporter
    reader: Reader
    arguments: tuple[str, ...]
    upstream: Path | None = None

    def agrees(self, reader: Reader) -> bool:
        kinds = KINDS if "all" in self.arguments else ("releases",)
        records = {key: json.loads(data) for key, data in self.store.records().items()}
        expected = {key: value for key, value in records.items() if key[0] in kinds}
        if "--skip-technical" not in self.arguments:
            return reader.records == expected
        # What technical commits add: a baseline has it.
        known = {key: value for key, value in expected.items() if key[1] < 1_000}
        return known == {k: v for k, v in reader.records.items() if k[1] < 1_000}

    def go_on(self, chance: random.Random, day: int) -> None:
        """A commit, an export that may fail or be killed; then look."""
        story(chance, self.store)
        if chance.random() < 0.2:
            self.store.commit({("releases", 1_000 + day): record(1_000 + day)}, technical=True)
        self.push()
        limit = ("--limit", chance.randrange(1, 4)) if chance.random() < 0.3 else ()
        mode = chance.choice(("error", "before", "after"))
        fault = (chance.randrange(1, CALLS), mode) if chance.random() < 0.8 else None
        done = self.export("--keep", 5, *self.arguments, *limit, fault=fault, day=day)
        assert done.returncode in (0, 69, -signal.SIGKILL), done.stderr
        assert "Traceback" not in done.stderr
        self.reader.read()
        if chance.random() < 0.3:
            assert self.export("--keep", 5, *self.arguments, day=day).returncode == 0
            for each in (self.reader, Reader(self.reader.folder)):
                each.read()
                assert self.agrees(each)

    def push(self) -> None:
        if self.upstream is not None:
            git(self.store.folder, "push", "--quiet", str(self.upstream), "main:main")


WAYS: dict[str, tuple[str, ...]] = {
    "single": ("--kind", "all", "--previous"),
    "submodules": ("--kind", "all"),
    "repository": (),
    "technical": ("--skip-technical",),
    "remote": ("--previous",),
}


@pytest.fixture
def life(environment: dict[str, str], folder: Path, tmp_path: Path, way: str) -> Life:
    root = Path(environment["STATE_DIR"]) / "store"
    arguments, upstream = WAYS[way], None
    store: SingleStore | SubmoduleStore
    if way == "submodules":
        environment = environment | {"STORE_LAYOUT": "submodules"}
        store = SubmoduleStore(root / "discogs.git")
    elif way == "repository":
        store = SubmoduleStore(tmp_path / "theirs" / "discogs.git")
        arguments = (*arguments, "--repository", f"file://{store.folder}")
    else:
        store = SingleStore(root / "discogs.git")
    if way == "remote":
        upstream = tmp_path / "upstream.git"
        git(tmp_path, "init", "--quiet", "--bare", str(upstream))
        environment = environment | {"STORE_REMOTE": f"file://{upstream}"}
    return Life(store, Exporter(environment, folder), Reader(folder), arguments, upstream)


@pytest.mark.parametrize("way", WAYS)
def test_random_histories_and_faults(life: Life, way: str) -> None:
    chance = random.Random(way)
    for day in range(3):
        life.go_on(chance, day)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_hundreds_of_random_histories_and_faults(life: Life, way: str) -> None:
    chance = random.Random(f"long {way}")
    for day in range(100):
        life.go_on(chance, day)


@pytest.mark.long
@pytest.mark.parametrize("way", ["single", "submodules"])
def test_killed_at_random_hundreds_of_times(life: Life, folder: Path, way: str) -> None:
    """At any moment, not only at calls."""
    chance = random.Random(way)
    for _ in range(200):
        story(chance, life.store)
        command = [sys.executable, str(SCRIPT), "--consumer", "web", "--into", str(folder)]
        with subprocess.Popen(
            [*command, *life.arguments], env=life.export.environment, stderr=subprocess.DEVNULL
        ) as process:
            try:
                process.wait(chance.uniform(0.05, 0.5))
            except subprocess.TimeoutExpired:
                process.kill()
        life.reader.read()
    assert life.export(*life.arguments).returncode == 0
    life.reader.read()
    assert life.agrees(life.reader)


@pytest.mark.parametrize("layout", ["single", "submodules"])
def test_all_kinds_in_both_layouts(
    tmp_path: Path, export: Exporter, folder: Path, layout: str
) -> None:
    root = tmp_path / "discogs.git"
    store = SingleStore(root) if layout == "single" else SubmoduleStore(root)
    where = ("--repository", str(store.folder), "--kind", "all")
    reader = Reader(folder)
    store.commit(
        {
            ("releases", 1): record(1),
            ("artists", 1): record(1),
            ("labels", 2_000_001): record(2_000_001),
        }
    )
    assert export(*where).returncode == 0
    store.commit({("releases", 1): None, ("masters", 5): record(5)})
    assert export(*where).returncode == 0
    reader.read()
    assert agrees(reader, store)


# As Apache with AddEncoding does, it says of .gz files that they are compressed on their way.
SERVER = """
import functools, http.server, sys

class Handler(http.server.SimpleHTTPRequestHandler):
    def end_headers(self):
        if self.path.endswith(".gz"):
            self.send_header("Content-Encoding", "gzip")
        super().end_headers()

handler = functools.partial(Handler, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
print(f"http://127.0.0.1:{server.server_port}/", flush=True)
server.serve_forever()
"""


@pytest.fixture
def published(folder: Path) -> Iterator[str]:
    """The folder on a web server: the URL of the state."""
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        match = re.search(r"http://[0-9.]+:[0-9]+/", server.stdout.readline())
        assert match is not None
        yield match[0] + "web.state.json"
        server.kill()


def follow(url: str, database: Path, *, kill_after: float | None = None) -> tuple[int, str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(database.parent)}
    command = [sys.executable, str(FOLLOW), url, str(database)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = process.communicate(timeout=kill_after)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()[1]
    return process.returncode, said


def followed(database: Path) -> dict[Record, Any]:
    rows = sqlite_utils.Database(database)["records"].rows
    return {(row["kind"], row["id"]): json.loads(row["data"]) for row in rows}


def test_the_follower_of_the_readme_gets_everything_once(
    store: SingleStore, export: Exporter, folder: Path, published: str, tmp_path: Path
) -> None:
    database = tmp_path / "music.db"
    chance = random.Random(5)
    code, said = follow(published, database)
    assert code == 1
    assert "HTTP 404" in said
    code, said = follow("http://127.0.0.1:1/web.state.json", database)
    assert (code, said.count("\n")) == (1, 1)
    assert said.endswith("run it again later\n")
    # A record with half of a surrogate pair, which is stored as an escape.
    store.commit({("labels", 1): b'{\n  "id": 1,\n  "name": "\\ud83c"\n}\n'})
    for number in range(4):
        story(chance, store)
        assert export("--kind", "all").returncode == 0
        if number == 2:
            follow(published, database, kill_after=0.35)
        assert follow(published, database) == (0, "")
        assert followed(database) == {k: json.loads(v) for k, v in store.records().items()}
    story(chance, store)
    assert export("--kind", "all").returncode == 0
    last = folder / "web-000000005.jsonl.gz"
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    code, said = follow(published, database)
    assert code == 1
    assert "damaged on its way" in said
    last.write_bytes(whole)
    export("--reset", "start")
    story(chance, store)
    export("--kind", "all")
    code, said = follow(published, database)
    assert code == 1
    assert "begin again with the baseline" in said
    database.unlink()
    assert follow(published, database) == (0, "")
    assert followed(database) == {k: json.loads(v) for k, v in store.records().items()}
    shutil.rmtree(folder)


def follow_here() -> str:
    """Run follow.py in this process, with the arguments in sys.argv; what it says at its end."""
    try:
        exec(compile(FOLLOW.read_bytes(), FOLLOW, "exec"), {})
    except SystemExit as end:
        return str(end.code)
    return ""


def test_a_follower_that_another_one_overtakes_takes_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, states = {}, {}
    for number in (1, 2, 3):
        line = {"kind": "releases", "id": 1, "status": "M", "data": {"text": number}}
        packed = gzip.compress(json.dumps(line).encode())
        sha256 = hashlib.sha256(packed).hexdigest()
        states[number] = {"file": f"{number}.gz", "sequence": number, "sha256": sha256}
        served[f"{number}.gz"] = packed
        served[f"web-{number:09}.state.json"] = json.dumps(states[number]).encode()
    last = {**states[3], "first": 1, "baseline": states[1]}
    served["web.state.json"] = json.dumps(last).encode()
    slow = {"2.gz"}

    def request(_: str, url: str, **_options: object) -> io.BytesIO:
        name = url.rpartition("/")[2]
        if name in slow:
            slow.clear()
            assert follow_here() == ""
        answer = io.BytesIO(served[name])
        answer.status = 200  # type: ignore[attr-defined]
        return answer

    monkeypatch.setattr(urllib3, "request", request)
    database = tmp_path / "music.db"
    monkeypatch.setattr(sys, "argv", [str(FOLLOW), "http://host/web.state.json", str(database)])
    assert "another" in follow_here()
    assert followed(database) == {("releases", 1): {"text": 3}}
