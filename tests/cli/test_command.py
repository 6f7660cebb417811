"""How a script ends: one line and an exit code, whatever happened."""

import argparse
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from discogs_crawler.cli import command
from discogs_crawler.config import Settings
from discogs_crawler.errors import (
    BadData,
    ConfigurationError,
    CrawlerError,
    PartlyDone,
    TryLater,
    Unavailable,
    UsageError,
)
from tests.conftest import ROOT


def end_with(error: BaseException, *argv: str) -> int:
    def main(flags: argparse.Namespace, settings: Settings) -> int:
        raise error

    parser = command.parser("A script.\n\nExample: none")
    parser.prog = "script.py"
    return command.run(main, parser, argv)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENV_FILE", "/dev/null")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PartlyDone("a"), 1),
        (UsageError("b"), 64),
        (BadData("c"), 65),
        (Unavailable("d"), 69),
        (CrawlerError("e"), 70),
        (TryLater("f"), 75),
        (ConfigurationError("g"), 78),
        (KeyboardInterrupt(), 1),
        (OSError(28, "No space left on device", "/some/file"), 69),
    ],
)
def test_an_expected_failure_is_one_line_and_its_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_with(error) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("script.py: ")
    assert printed.err.count("\n") == 1


def test_a_bug_says_so_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_with(ZeroDivisionError("x")) == 70
    printed = capsys.readouterr().err
    assert "bug" in printed
    assert "ZeroDivisionError" in printed


def test_a_secret_in_a_failure_is_blacked_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISCOGS_TOKEN", "hush-hush")
    end_with(RuntimeError("sent hush-hush"))
    printed = capsys.readouterr().err
    assert "hush-hush" not in printed
    assert "***" in printed


def test_logs_may_be_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_with(BadData("no\nsuch"), "--log-format", "json") == 65
    line = json.loads(capsys.readouterr().err)
    assert line["level"] == "error"
    assert line["script"] == "script.py"
    assert line["message"] == "no such"


def test_a_wrong_flag_is_one_line_and_64(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        end_with(BadData("never"), "--nonsense")
    assert ended.value.code == 64
    assert "--nonsense" in capsys.readouterr().err


def test_help_is_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        end_with(BadData("never"), "--help")
    assert ended.value.code == 0
    assert "A script.\n\nExample: none" in capsys.readouterr().out


@pytest.mark.parametrize(("damage", "code"), [(b"not a database, by no means", 65), (None, 69)])
def test_a_ledger_that_cannot_be_used_is_one_line(
    damage: bytes | None, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "crawler.db"
    if damage is None:
        path = tmp_path / "no folder" / "crawler.db"
    else:
        path.write_bytes(damage * 100)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        sqlite3.connect(path).execute("SELECT * FROM sqlite_master")
    assert end_with(caught.value) == code
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("redis_client")  # empties it
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("seed_queue.py --ids - <&-", 0, ""),
        ("worker.py --until-empty <&- >&- 2>&-", 0, ""),
        ("discogs_xml_split.py -d dump.xml -r - >&-", 69, "standard output is closed"),
        ("discogs_xml_split.py -d dump.xml --check >/dev/full", 69, "No space left on device"),
    ],
)
def test_a_stream_that_is_closed_or_full_is_no_bug(
    line: str, code: int, said: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "dump.xml").write_text('<releases>\n<release id="1"></release>\n</releases>\n')
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} {ROOT}/bin/{line}"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == (1 if said else 0)
