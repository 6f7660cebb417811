"""What the texts say one can look at is there, and there is no more: ledger, queue, numbers."""

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from discogs_crawler import clock
from discogs_crawler.broker.limiter import Limiter
from discogs_crawler.broker.messages import CLASSES, Result
from discogs_crawler.broker.queue import Queue
from discogs_crawler.records import KINDS
from tests.conftest import ROOT, Run
from tests.invented_ledger import invent
from tests.readme import LIB, TEXTS, blocks, section, shown

LEDGER = section("Questions", f"{LIB}/ledger/README.md")
QUEUE = TEXTS[f"{LIB}/broker/README.md"]
NUMBERS = section("The numbers as JSON", f"{LIB}/ledger/README.md")
COMMANDS = re.findall(r"^\| .* \| `([A-Z]+ [^`]*)` \|$", QUEUE, re.M)


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> sqlite3.Connection:
    path = tmp_path_factory.mktemp("invented") / "crawler.db"
    invent(path, 30_000, int(clock.now()))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE releases SET alive = since WHERE reason = 'changed'")
    connection.commit()
    return connection


def names(connection: sqlite3.Connection, kind: str) -> set[str]:
    rows = connection.execute("SELECT name FROM sqlite_schema WHERE type = ?", (kind,))
    return {name for (name,) in rows if not name.startswith(("_", "sqlite_"))}


def test_each_question_to_the_ledger_is_answered(invented: sqlite3.Connection) -> None:
    queries = re.findall(r"`(SELECT [^`]*)`", LEDGER)
    answers = {query: invented.execute(query).fetchone() for query in queries}
    assert [query for query, row in answers.items() if row is None] == []
    named = set(re.findall(r"FROM (\w+)", " ".join(queries)))
    assert named | set(re.findall(r"`(stale_\w+)`", LEDGER)) == names(invented, "view")


def test_the_tables_of_the_ledger_are_those_named(invented: sqlite3.Connection) -> None:
    [sentence] = re.findall(r"made of the tables (.*?)\.\n", LEDGER, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", sentence)) == names(invented, "table")


def test_the_schema_explains_every_column(invented: sqlite3.Connection) -> None:
    unexplained = []
    for table in names(invented, "table"):
        (sql,) = invented.execute(
            "SELECT sql FROM sqlite_schema WHERE name = ?", (table,)
        ).fetchone()
        for row in invented.execute(f"PRAGMA table_xinfo({table})"):
            if not re.search(rf"\b{row[1]} [^\n]*-- \S", sql):
                unexplained.append(f"{table}.{row[1]}")
    assert unexplained == []


@pytest.fixture
def full(redis_client: redis.Redis) -> redis.Redis:
    """A Redis with an id in every place where one can be."""
    queue = Queue(redis_client, "releases", prefix="discogs", lease_s=600)
    for number, reason in enumerate(CLASSES):
        queue.push(reason, range(13_000_000 + 10 * number, 13_000_000 + 10 * number + 4))
    queue.push("changed", range(14_000_000, 14_000_009))
    Queue(redis_client, "releases", prefix="discogs", lease_s=-1).claim("killed:0", 1, {14})
    delayed, completed, *_ = queue.claim("first:1", 4, {13})
    queue.delay(delayed, 300, count_attempt=True)
    queue.complete([(completed, Result(completed.id, "manual", "stored", 200, 1))])
    queue.give_back(queue.claim("second:2", 4, {14}, branch="a"))
    queue.freeze_segments("a")
    limiter = Limiter(redis_client, "shared", prefix="discogs", window_s=60)
    permit = limiter.lend(1)
    assert permit is not None
    limiter.answered(permit, 60, 40, "good")
    return redis_client


def test_each_question_to_the_queue_is_answered(full: redis.Redis, redis_socket: Path) -> None:
    client = shutil.which("redis-cli") or str(Path(sys.executable).with_name("redis-cli"))
    if not Path(client).exists():
        pytest.skip("there is no redis-cli here")
    for command in COMMANDS:
        done = subprocess.run(
            [client, "-s", str(redis_socket), *command.split()], capture_output=True, text=True
        )
        assert done.stdout.strip() not in ("", "0"), command
        assert not re.search("ERR|WRONGTYPE", done.stdout), command


def test_the_queue_can_be_asked_without_redis_cli(
    full: redis.Redis, redis_socket: Path, tmp_path: Path
) -> None:
    """Which the wheel of `[embedded]` does not bring."""
    (tmp_path / "var" / "redis").mkdir(parents=True)
    (tmp_path / "var" / "redis" / "redis.sock").symlink_to(redis_socket)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    [block] = [block.text for block in blocks("sh") if block.marker == "run: lookups"]
    for command in {command.split()[0]: command for command in COMMANDS}.values():
        asked = f"{block}\necho --\nask {command}"
        done = subprocess.run(["sh", "-c", asked], cwd=tmp_path, capture_output=True, text=True)
        about, _, answer = done.stdout.partition("--\n")
        assert "'generation': " in about, done.stderr
        assert answer.strip() not in ("", "0", "[]", "{}", "set()", "None"), command


def test_the_keys_of_redis_are_those_named(full: redis.Redis) -> None:
    named = {command.split()[1] for command in COMMANDS}
    found = {key.decode() for key in full.scan_iter("*")}
    assert named <= found
    described = {
        re.sub(r":14$", ":13", re.sub(r":pending:\w+", ":pending:changed", key)) for key in found
    }
    assert described == named


def test_the_keys_of_redis_are_those_that_its_scripts_explain() -> None:
    lib = ROOT / "lib" / "discogs_crawler"
    headers = [
        (lib / "broker" / name).read_text().partition("]]")[0]
        for name in ("queue.lua", "limiter.lua")
    ]
    explained = re.findall(r"^  :(\w+)", "".join(headers), re.MULTILINE)
    named = {command.split()[1].split(":")[2] for command in COMMANDS}
    assert named - {"shared"} | {"permits", "foreign", "state"} == set(explained) - {"scratch"}


def test_what_stats_prints_is_shown_line_by_line(
    full: redis.Redis, invented: sqlite3.Connection, environment: dict[str, str], run: Run
) -> None:
    """The same words in the same lines; the figures are those of a larger ledger."""
    state = Path(environment["STATE_DIR"])
    state.mkdir()
    with sqlite3.connect(state / "crawler.db") as target:
        invented.backup(target)
    done = run("stats.py")
    assert (done.returncode, done.stderr) == (0, "")
    [printed] = [pair.output for pair in shown() if pair.command == "bin/stats.py"]
    found = {words(line) for line in done.stdout.splitlines()}
    assert [line for line in printed.splitlines() if words(line) not in found] == [], done.stdout
    check_fields(json.loads(run("stats.py", "--json").stdout))


def words(line: str) -> str:
    """A line without its figures, and without what depends on them."""
    line = re.sub(r"crawler1.*|first:1.*", "", line)
    line = re.sub(r"(?<=\d )(days|h|s|min|MB|GB|kB)\b", "", line)
    return " ".join(re.findall(r"[A-Za-z_]+", line))


def check_fields(document: dict[str, Any]) -> None:
    """The table of fields has those of the JSON and no others."""
    rows = re.findall(r"^\| `(.*)` \| (.*) \|$", NUMBERS, re.MULTILINE)
    fields = {name: meaning for names, meaning in rows for name in names.split("`, `")}
    assert [name.removesuffix("[]") for name in fields] == list(document)
    for name, part in (
        ("quota", document["quota"]),
        ("kinds[]", document["kinds"][0]),
        ("consumers[]", document["consumers"][0]),
    ):
        assert fields[name].strip("`").split() == list(part)


def test_kinds_and_classes_of_the_readme_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (?:yes|no) \|$", section("seed_queue.py"), re.M)
    assert tuple(rows) == CLASSES
    assert f"({', '.join(CLASSES)})" in (ROOT / LIB / "data" / "metadata.yaml").read_text()
    for kind in KINDS:
        assert f"`{kind}`" in LEDGER
