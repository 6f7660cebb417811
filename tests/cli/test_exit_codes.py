"""Whatever exit code a script can be made to end with, its --help says so."""

import importlib.util
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from discogs_crawler import errors
from discogs_crawler.cli import command
from tests.conftest import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "bin").glob("*.py"))
BUG = errors.EXIT_BUG

ARGUMENTS = {
    "discogs_xml_split.py": ["-d", "dump.xml", "-r", "hashes"],
    "download_dump.py": ["releases"],
    "export_changes.py": ["--consumer", "x"],
    "import_dump.py": ["-d", __file__],
    "maintain_store.py": [],
    "seed_queue.py": [],
    "stats.py": [],
    "worker.py": ["--until-empty"],
}
DUMP = b'<releases>\n<release id="1"><title>A</title></release>\n</releases>\n'


def load(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / "bin" / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented(script: str) -> set[int]:
    text = (load(script).__doc__ or "").partition("Exit codes:")[2]
    return {int(code) for code in re.findall(r"(?:^|[,;.]) *(\d+) ", " ".join(text.split()))}


@pytest.fixture
def end(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., int]]:
    """Run a script in this process, in a folder with a dump; its exit code."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    ours = logging.getLogger("discogs_crawler").level
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signals[signal.SIGHUP] = signal.getsignal(signal.SIGHUP)
    (tmp_path / "dump.xml").write_bytes(DUMP)
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        monkeypatch.delenv(name)

    def run(script: str, *arguments: str, **extra: str) -> int:
        nowhere = {"DUMP_SITE": "http://127.0.0.1:9/", "DISCOGS_API": "http://127.0.0.1:9"}
        for name, value in (environment | nowhere | extra).items():
            monkeypatch.setenv(name, value)
        module = load(script)
        parser = module.arguments()
        parser.prog = script
        try:
            return command.run(module.main, parser, [*ARGUMENTS[script], *arguments])
        except SystemExit as exit_:
            return int(exit_.code or 0)

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("discogs_crawler").setLevel(ours)
    for number, handler in signals.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_codes_of_a_script_are_those_of_its_help(
    script: str, end: Callable[..., int], tmp_path: Path
) -> None:
    known = documented(script)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "crawler.db").write_bytes(b"no database at all" * 100)
    (tmp_path / "file").write_text("")
    codes = {
        "wrong usage": end(script, "--no-such-option"),
        "a wrong setting": end(script, LEASE_S="x"),
        "a damaged ledger": end(script, STATE_DIR=str(tmp_path / "damaged")),
        "a folder that cannot be": end(script, STATE_DIR=str(tmp_path / "file" / "state")),
    }
    assert codes["wrong usage"] == errors.EXIT_USAGE
    assert codes["a wrong setting"] == errors.EXIT_CONFIGURATION
    assert {why: code for why, code in codes.items() if code not in known} == {}
    assert errors.EXIT_PARTLY in known, "interrupted"
    assert BUG not in known


def test_interrupted_is_partly_done(
    end: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("discogs_crawler.config.make_state_dir", interrupt)
    assert end("seed_queue.py") == errors.EXIT_PARTLY


@pytest.mark.parametrize(
    ("script", "flag", "text", "why"),
    [
        ("download_dump.py", "--keep", "0", "it must be at least 1: '0'"),
        ("export_changes.py", "--limit", "-1", "it must be at least 1: '-1'"),
        ("seed_queue.py", "--refresh", "x", "it must be at least 1: 'x'"),
        ("worker.py", "--limit", "1_0", "it must be at least 1: '1_0'"),
        ("worker.py", "--max-seconds", "soon", "not a duration such as 90s, 5m, 3h or 2d: 'soon'"),
    ],
)
def test_a_flag_that_counts_says_what_it_takes(
    end: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    script: str,
    flag: str,
    text: str,
    why: str,
) -> None:
    assert end(script, flag, text) == errors.EXIT_USAGE
    line = f"{script}: argument {flag}: {why} (see {script} --help)\n"
    assert capsys.readouterr().err == line
