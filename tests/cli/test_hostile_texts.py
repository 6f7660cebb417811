"""Names and texts of others move no terminal, forge no line, and stop no report."""

import json
import logging
import os
from pathlib import Path

import pytest

from discogs_crawler import files
from discogs_crawler.cli import logs
from discogs_crawler.dumps import block_reader
from tests.conftest import Run

HOSTILE = "a\x1b[2Jb\nc\rd\u202ee\udcfff\x07\x9bg"
SHOWN = "a\ufffd[2Jb c d\ufffde\ufffdf\ufffd\ufffdg"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_log_line_stays_one_line_and_obeys_nobody(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        logs.configure("x.py", log_format=log_format)
        logging.getLogger("discogs_crawler").error("%s", HOSTILE)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    said = capsys.readouterr().err
    if log_format == "json":
        assert json.loads(said)["message"] == SHOWN
    assert said.count("\n") == 1
    assert SHOWN in said


def test_a_dump_of_any_name_is_split_and_shown(
    run: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    name = tmp_path / os.fsdecode(b"x\x1b[2J\xff\x01<b>.xml")
    name.write_text('<releases>\n<release id="1"><title>t</title></release>\n</releases>\n')
    page, metrics = tmp_path / "page.html", tmp_path / "metrics.prom"
    split = run("discogs_xml_split.py", "-v", "-d", name, "-r", tmp_path / "hashes")
    seed = run("seed_queue.py", "-n", tmp_path / "hashes")
    shown = run("stats.py"), run("stats.py", "--json")
    written = run("stats.py", "--html", page, "--prometheus", metrics)
    assert [done.returncode for done in (split, seed, *shown, written)] == [0] * 5
    for text in (split.stderr, *(done.stdout for done in shown), page.read_text()):
        assert "x\ufffd[2J" in text
        assert "\x1b" not in text
    assert "&lt;b&gt;" in page.read_text()
    assert "\x1b" not in metrics.read_text()


def test_a_name_for_an_open_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """`-r /dev/stdout > FILE` by root made a file of /dev/stdout."""
    link = tmp_path / "stdout"
    with (tmp_path / "file").open("wb") as file:
        link.symlink_to(f"/proc/self/fd/{file.fileno()}")
        with files.atomic_write(link) as target:
            target.write(b"text")
    assert link.is_symlink()
    assert (tmp_path / "file").read_bytes() == b"text"


def test_a_record_that_would_take_all_memory_is_damage(run: Run, tmp_path: Path) -> None:
    elements = "<a/>" * (block_reader.MAX_RECORD // 2)
    dump = tmp_path / "discogs_20261001_releases.xml"
    dump.write_text(f'<releases>\n<release id="1"><x>{elements}</x></release>\n</releases>\n')
    done = run("discogs_xml_split.py", "-d", dump, "-r", tmp_path / "hashes")
    assert done.returncode == 65
    assert "of more than 2097152 bytes" in done.stderr
