"""export_changes.py --into: who follows the state file gets each change once, whatever happens."""

import gzip
import hashlib
import http.server
import json
import os
import random
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils

from discogs_crawler.ledger import consumers
from tests.conftest import ROOT
from tests.plain_git import Record, SingleStore, SubmoduleStore, record

SCRIPT = ROOT / "bin" / "export_changes.py"
FOLLOW = ROOT / "lib" / "discogs_crawler" / "data" / "examples" / "follow.py"
DAY_S = 86_400

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

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._environment = environment
        self._always = ("--consumer", "web", "--into", str(folder))

    def __call__(
        self, *arguments: object, fault: tuple[int, str] | None = None, day: int = 0
    ) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(SCRIPT)]
        if fault is not None:
            command = [sys.executable, "-c", FAULTS, str(SCRIPT), *map(str, fault)]
        return subprocess.run(
            [*command, *self._always, *map(str, arguments)],
            env=self._environment | {"CLOCK_OFFSET_S": str(day * DAY_S)},
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
            assert change["revision"] == about["to"]
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
    assert export().returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == [
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
    assert list(folder.iterdir()) == []
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
    (tmp_path / "elsewhere").rmdir()
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


def story(chance: random.Random, store: SingleStore | SubmoduleStore) -> None:
    """A commit of random changes."""
    if not any(store.folder.glob("refs/heads/*")):
        store.commit({("releases", 99): record(99)})
    there = [number for _, number in (store.records() if chance.random() < 0.7 else ())]
    changes: dict[Record, bytes | None] = {
        ("releases", chance.randrange(1, 40)): record(chance.randrange(1000)) for _ in range(3)
    }
    if there:
        changes[("releases", chance.choice(there))] = None
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
        done = export("--keep", 3, fault=(nth, mode), day=day)
        assert done.returncode in (0, 69, -signal.SIGKILL), done.stderr
        assert "Traceback" not in done.stderr
        reader.read()
        assert export("--keep", 3, day=day).returncode == 0
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


@pytest.mark.long
@pytest.mark.parametrize("layout", ["single", "submodules"])
def test_killed_at_random_hundreds_of_times(
    environment: dict[str, str], export: Exporter, folder: Path, layout: str
) -> None:
    root = Path(environment["STATE_DIR"]) / "store"
    store = (
        SingleStore(root / "discogs.git")
        if layout == "single"
        else SubmoduleStore(root / "discogs.git")
    )
    where = ("--repository", str(store.folder))
    chance, reader = random.Random(layout), Reader(folder)
    for _ in range(200):
        story(chance, store)
        limit = ("--limit", str(chance.randrange(1, 4))) if chance.random() < 0.3 else ()
        command = [
            sys.executable,
            str(SCRIPT),
            "--consumer",
            "web",
            "--into",
            str(folder),
            *where,
            *limit,
        ]
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(chance.uniform(0.05, 0.5))
            except subprocess.TimeoutExpired:
                process.kill()
        reader.read()
    assert export(*where).returncode == 0
    reader.read()
    assert agrees(reader, store)


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


@pytest.fixture
def published(folder: Path) -> Iterator[str]:
    """The folder on a plain web server: the URL of the state."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: object) -> None:
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/web.state.json"
        server.shutdown()


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
    folder.mkdir()
    code, said = follow(published, database)
    assert code == 1
    assert "HTTP 404" in said
    for number in range(4):
        story(chance, store)
        assert export().returncode == 0
        if number == 2:
            follow(published, database, kill_after=0.35)
        assert follow(published, database) == (0, "")
        assert followed(database) == {k: json.loads(v) for k, v in store.records().items()}
    story(chance, store)
    assert export().returncode == 0
    last = folder / "web-000000005.jsonl.gz"
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    code, said = follow(published, database)
    assert code == 1
    assert "damaged on its way" in said
    last.write_bytes(whole)
    export("--reset", "start")
    story(chance, store)
    export()
    code, said = follow(published, database)
    assert code == 1
    assert "begin again with the baseline" in said
    database.unlink()
    assert follow(published, database) == (0, "")
    assert followed(database) == {k: json.loads(v) for k, v in store.records().items()}
    shutil.rmtree(folder)
