"""The verdict on a dump, as users see it: exit code, one line, and what is written."""

import gzip
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from discogs_crawler.dumps import split
from discogs_crawler.dumps.block_reader import BLOCK_SIZE
from discogs_crawler.dumps.split import SplitJob
from discogs_crawler.ledger import database as ledger
from tests.conftest import ROOT, Run
from tests.discogs import dump
from tests.discogs.world import invented
from tests.dumps.slow_split import our_split, slow_split

NAME = "discogs_20261101_releases.xml.gz"
GOOD = b"".join(
    [
        b"<releases>\n",
        *(b'<release id="%d"><title>%d</title></release>\n' % (n, n) for n in range(1, 201)),
        b"</releases>\n",
    ]
)
RESULT = slow_split(GOOD)
SEVENTH = f"byte {GOOD.find(GOOD.splitlines()[7])}"

# More than the blocks that are read ahead, and than the limit on files in the test of full disks.
LONG = b"<releases>\n" + b"".join(
    b'<release id="%d"><title>%d</title></release>\n' % (n, n) for n in range(1, 40_000)
)


def rows(state: Path) -> list[sqlite3.Row]:
    with sqlite3.connect(state / "crawler.db") as database:
        database.row_factory = sqlite3.Row
        return list(database.execute("SELECT * FROM dumps ORDER BY id"))


def test_a_dump_is_split_and_its_facts_reach_the_ledger(run: Run, tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(gzip.compress(GOOD))
    os.utime(path, (1793560000, 1793560000))
    done = run("discogs_xml_split.py", "-d", path, "-r", tmp_path / "result")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "result").read_bytes() == RESULT
    [row] = rows(tmp_path / "state")
    assert (row["file"], row["kind"], row["verdict"], row["records"]) == (
        NAME,
        "releases",
        "whole",
        200,
    )
    assert (row["first_id"], row["last_id"], row["damaged"]) == (1, 200, 0)
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).digest()
    assert row["result_sha256"] == hashlib.sha256(RESULT).digest()
    assert (row["not_before"], row["not_after"]) == (1793491200, 1793560000)
    [cache] = (tmp_path / "state" / "books").iterdir()
    assert hashlib.sha256(cache.read_bytes()).digest() == row["book_sha256"]


def test_splitting_the_same_dump_again_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(gzip.compress(GOOD))
    run("discogs_xml_split.py", "-d", tmp_path / NAME, "-r", tmp_path / "one")
    done = run("discogs_xml_split.py", "-v", "-d", tmp_path / NAME, "-r", tmp_path / "two")
    assert "was split before" in done.stderr
    assert "200 releases, ids 1 to 200 (0 unused between), 0 parsed" in done.stderr
    assert (tmp_path / "two").read_bytes() == RESULT


def _swap(old: bytes, new: bytes) -> bytes:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html><body>Not here</body></html>", "an HTML page"),
        (b"<html>\n<release id='1'/></html>", "an HTML page"),
        (b"\x00\x01\x02", "it is not XML"),
        (b"<songs>\n<song/></songs>", "its root element is <songs>"),
        (b"<artists><artist><id>1</id></artist></artists>", "by its name it holds releases"),
        (b"<releases/>", "it holds no records"),
        (b"<releases>\n</releases>", "it holds no records"),
        (GOOD[:-13], "the dump is cut off: its root element has no end"),
        (GOOD[:5000], "the dump is cut off in the middle of a record"),
        (GOOD + b"more", f"byte {len(GOOD)}: after the end of the root element: 'more'"),
        (GOOD + GOOD, "a second dump follows the end of the first"),
        (_swap(b'id="7"', b'id="6"'), "record 6, {7}: the id is there twice"),
        (_swap(b'id="7"', b'id="70"'), "record 70, "),
        (_swap(b' id="7"', b""), "{7}: a record without an id"),
        (_swap(b'id="7"', b'id="x"'), "{7}: a record's id is not an id"),
        (_swap(b'id="7"', b'id="0"'), "{7}: a record's id is not an id"),
        (_swap(b'id="7"', b'id="-7"'), "{7}: a record's id is not an id"),
        (_swap(b'id="7"', b'id=" 7"'), "{7}: a record's id is not an id"),
        (_swap(b'id="7"', b'id="7'), "{7}: a malformed start tag"),
        (_swap(b"7</title></release>", b"7</title>"), "{7}: the dump is cut off in the mi"),
        (_swap(b'<release id="7">', b"stray"), "{7}: no record, but 'stray"),
        (GOOD.replace(b"<title>", b"<title>&"), "more than 100 damaged records"),
        (b'<?xml version="1.0" encoding="ISO-8859-1"?>' + GOOD, "its encoding is ISO-8859-1"),
        (b'<!DOCTYPE r [<!ENTITY a "b">]>' + GOOD, "DOCTYPE"),
        (GOOD.replace(b"<releases>", b'<releases xmlns="u">'), "declares an XML namespace"),
        (
            b'<?xml version="1.0" encoding="UTF-8<\n\t"?>' + GOOD,
            "malformed before the first record",
        ),
    ],
)
def test_damage_of_the_whole_is_found_and_located(
    content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "discogs_20261101_releases.xml"
    path.write_bytes(content)
    (tmp_path / "result").write_bytes(b"the last month's")
    facts = split.examine(SplitJob(path, tmp_path / "result", tmp_path, lambda kind: None)).facts
    assert facts.verdict.startswith("damaged: ")
    assert said.replace("{7}", SEVENTH) in facts.verdict
    assert facts.verdict.isprintable()
    assert (facts.result_sha256, facts.hash_cache_sha256) == (None, None)
    assert facts.sha256 == hashlib.sha256(content).digest()
    assert (tmp_path / "result").read_bytes() == b"the last month's"
    assert not [*tmp_path.rglob("*tmp"), *tmp_path.rglob("*.book"), *tmp_path.rglob("*.new")]


@pytest.mark.parametrize("content", [GOOD[:5000], b"<html></html>"])
def test_a_damaged_dump_gives_one_line_and_no_result(
    content: bytes, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "discogs_20261101_releases.xml"
    path.write_bytes(content)
    done = run("discogs_xml_split.py", "-d", path, "-r", tmp_path / "result")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (65, "", 1)
    assert "discogs_20261101_releases.xml: damaged: " in done.stderr
    assert not (tmp_path / "result").exists()
    [row] = rows(tmp_path / "state")
    assert row["verdict"].startswith("damaged: ")
    assert row["sha256"] == hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(GOOD, mtime=0)[:-1],
        gzip.compress(GOOD, mtime=0)[:-8] + bytes(4) + gzip.compress(GOOD, mtime=0)[-4:],
        gzip.compress(GOOD, mtime=0)[:300],
        gzip.compress(GOOD, mtime=0) + b"garbage",
        gzip.compress(GOOD, mtime=0) + gzip.compress(GOOD, mtime=0),
        gzip.compress(b"", mtime=0),
    ],
)
def test_damaged_gzip_is_damage(content: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(content)
    report = split.examine(SplitJob(tmp_path / NAME, None, tmp_path, lambda kind: None))
    assert report.facts.verdict.startswith("damaged: ")


def test_gzip_that_is_cut_off_says_up_to_where_it_was_read(tmp_path: Path) -> None:
    for content in (GOOD, LONG):
        (tmp_path / NAME).write_bytes(gzip.compress(content)[:-1])
        report = split.examine(SplitJob(tmp_path / NAME, None, tmp_path, lambda kind: None))
        read = len(content) // BLOCK_SIZE * BLOCK_SIZE
        assert report.facts.verdict == f"damaged: byte {read}: the gzip data are cut off"


def test_a_check_gives_the_verdict_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(gzip.compress(GOOD))
    done = run("discogs_xml_split.py", "-d", tmp_path / NAME, "--check")
    assert done.returncode == 0
    assert f"{NAME}: whole: 200 releases, ids 1 to 200 (0 unused between)" in done.stdout
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [NAME]


@pytest.mark.parametrize("damage", [b"&", b"\x07", b"\xff", b"<i>", b"]]>"])
def test_a_damaged_record_is_reported_and_the_run_goes_on(
    damage: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = _swap(b"7</title>", damage + b"7</title>")
    path = tmp_path / "discogs_20261101_releases.xml"
    path.write_bytes(content)
    cache = None
    for _ in range(2):
        job = SplitJob(path, tmp_path / "result", tmp_path, lambda kind, cache=cache: cache)
        report = split.examine(job)
        cache = report.facts.hash_cache_sha256
        assert (report.facts.verdict, report.facts.damaged) == ("whole", 1)
        assert f"record 7, {SEVENTH}: damaged: " in caplog.text
        caplog.clear()
    assert report.counts.parsed == 1
    record = b'<release id="7"><title>' + damage + b"7</title></release>"
    lines = (tmp_path / "result").read_bytes().splitlines()
    assert lines[6] == b"7\t" + hashlib.sha1(record).hexdigest().encode()
    assert lines[:6] + lines[7:] == RESULT.splitlines()[:6] + RESULT.splitlines()[7:]


@pytest.mark.parametrize(
    "comment",
    [
        b'<!-- </release>\n<release id="300"></release>\n<release id="301"> -->',
        b'<!-- </release>\n<release id="x"></release>\n<release id="y"> -->',
        b'<!-- </release>\n<release id="7"> -->',
        b'<i><release id="8">inner</release>\n<release id="9"/></i>',
    ],
)
def test_what_only_looks_like_the_end_of_a_record_is_not(
    comment: bytes, run: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    content = _swap(b"7</title>", b"7</title>" + comment)
    path = tmp_path / "discogs_20261101_releases.xml"
    path.write_bytes(content)
    done = run("discogs_xml_split.py", "-d", path, "-r", tmp_path / "result")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "result").read_bytes() == slow_split(content)
    script = [sys.executable, str(ROOT / "bin" / "discogs_xml_split.py"), "-d", "-", "-r", "-"]
    piped = subprocess.run(
        script, input=content, env=environment, capture_output=True, timeout=60, check=False
    )
    assert (piped.returncode, piped.stdout) == (0, slow_split(content))


def test_standard_input_and_output_do(environment: dict[str, str]) -> None:
    script = [sys.executable, str(ROOT / "bin" / "discogs_xml_split.py"), "-d", "-", "-r", "-"]
    for content in (GOOD, gzip.compress(GOOD[:900]) + gzip.compress(GOOD[900:])):
        done = subprocess.run(
            script, input=content, env=environment, capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (0, RESULT)


def test_a_damaged_hash_cache_changes_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(gzip.compress(GOOD))
    run("discogs_xml_split.py", "-d", tmp_path / NAME, "-r", tmp_path / "result")
    [cache] = (tmp_path / "state" / "books").iterdir()
    cache.write_bytes(cache.read_bytes()[:-60] + bytes(60))
    done = run("discogs_xml_split.py", "-v", "-d", tmp_path / NAME, "-r", tmp_path / "again")
    assert "is damaged" in done.stderr
    assert "200 parsed" in done.stderr
    assert (tmp_path / "again").read_bytes() == RESULT


def test_raw_hashes_are_of_bytes_and_known_as_such(run: Run, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(gzip.compress(GOOD))
    run("discogs_xml_split.py", "--raw", "-d", tmp_path / NAME, "-r", tmp_path / "result")
    first = hashlib.sha1(b'<release id="1"><title>1</title></release>').hexdigest()
    assert (tmp_path / "result").read_text().splitlines()[0] == f"1\t{first}"
    assert rows(tmp_path / "state")[0]["canonical_version"] == 0


def test_all_is_parsed_with_verify(run: Run, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(gzip.compress(GOOD))
    run("discogs_xml_split.py", "-d", tmp_path / NAME, "-r", tmp_path / "result")
    done = run(
        "discogs_xml_split.py", "-v", "--verify", "-d", tmp_path / NAME, "-r", tmp_path / "two"
    )
    assert "200 parsed" in done.stderr
    assert (tmp_path / "two").read_bytes() == RESULT


def test_ids_out_of_order_are_sorted_and_it_is_said(run: Run, tmp_path: Path) -> None:
    lines = GOOD.splitlines(keepends=True)
    (tmp_path / NAME).write_bytes(
        gzip.compress(b"".join([lines[0], *reversed(lines[1:-1]), lines[-1]]))
    )
    done = run("discogs_xml_split.py", "-d", tmp_path / NAME, "-r", tmp_path / "result")
    assert "records out of order: 199" in done.stderr
    assert (tmp_path / "result").read_bytes() == RESULT
    assert rows(tmp_path / "state")[0]["result_sha256"] == hashlib.sha256(RESULT).digest()


def test_many_workers_give_the_result_of_none() -> None:
    dumped = dump.compressed(invented(4_000, ["artists"]), "artists")
    assert our_split(dumped, workers=2)[:2] == our_split(dumped, workers=1)[:2]


def _start(arguments: list[object], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    script = [sys.executable, str(ROOT / "bin" / "discogs_xml_split.py"), *map(str, arguments)]
    return subprocess.Popen(script, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_split_leaves_the_last_result(
    number: int, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "result").write_bytes(b"the last month's")
    with _start(["-d", "-", "-r", tmp_path / "result"], environment) as process:
        assert process.stdin
        process.stdin.write(LONG)
        process.stdin.flush()
        _until(lambda: list(tmp_path.glob(".result.*")))
        process.send_signal(number)
        process.wait(timeout=30)
    assert process.returncode in (1, -signal.SIGKILL)
    assert (tmp_path / "result").read_bytes() == b"the last month's"
    assert number == signal.SIGKILL or not list(tmp_path.glob(".result.*"))


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_full_disk_is_said_and_leaves_the_last_result(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / NAME).write_bytes(gzip.compress(LONG + b"</releases>\n"))
    (tmp_path / "result").write_bytes(b"the last month's")
    with ledger.open(tmp_path / "crawler.db"):
        pass
    # A limit on the size of files fails as a full disk does.
    script = f"ulimit -f 1200; exec {sys.executable} {ROOT}/bin/discogs_xml_split.py"
    done = subprocess.run(
        ["sh", "-c", f"{script} -d {tmp_path / NAME} -r {tmp_path / 'result'}"],
        env=environment | {"DATABASE": str(tmp_path / "crawler.db")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 69, done.stderr
    assert "File too large" in done.stderr
    assert (tmp_path / "result").read_bytes() == b"the last month's"


def test_wrong_arguments_are_said(run: Run, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(gzip.compress(GOOD))
    for arguments in (
        ["-d", tmp_path / NAME],
        ["-d", tmp_path / NAME, "-r", tmp_path / NAME],
        ["-d", tmp_path / NAME, "-r", tmp_path / "no" / "result"],
        ["-d", tmp_path / "nothing.xml", "-r", tmp_path / "result"],
        ["-d", tmp_path, "-r", tmp_path / "result"],
        ["-d", tmp_path / NAME, "-r", tmp_path],
        ["-d", tmp_path / NAME, "-r", ""],
    ):
        done = run("discogs_xml_split.py", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (64, 1), done.stderr
        assert "Errno" not in done.stderr


def test_a_dump_that_cannot_be_opened_gives_one_line_on_newer_pythons_too(
    environment: dict[str, str], tmp_path: Path
) -> None:
    script = [sys.executable, str(ROOT / "bin" / "discogs_xml_split.py"), "--check", "-d"]
    done = subprocess.run(
        [*script, str(tmp_path / "nothing.xml")],
        env=environment | {"PYTHONDEVMODE": "1"},  # says what Python 3.13 always says
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "Exception ignored" in done.stderr) == (64, False), done.stderr


def test_real_dumps_of_all_eras_and_kinds_are_split_as_lxml_would(samples: Path) -> None:
    for path in sorted((samples / "xml").iterdir()):
        if "head10000lines" in path.name:
            continue
        content = path.read_bytes()
        xml = gzip.decompress(content) if path.suffix == ".gz" else content
        assert our_split(content)[0] == slow_split(xml), path.name
