"""Progress: on a terminal only, and only where the answer itself does not show it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

BAR = """
from discogs_crawler.cli import progress
with progress.bar("split", 1_000_000, "MB/s", 1e6) as advance:
    for _ in range(10):
        advance(100_000)
"""
COUNT = """
import time
from discogs_crawler.cli import progress
with progress.count("export", "changes") as advance:
    for _ in range(4):
        time.sleep(0.1)
        advance(1_000)
"""


def shown_on_a_terminal(code: str, columns: int = 80) -> str:
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=terminal
    ) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                shown += os.read(reader, 4096)
            except OSError:
                break
        process.wait()
    os.close(reader)
    assert process.returncode == 0
    return shown.decode()


def test_a_bar_shows_the_share_and_the_rate() -> None:
    shown = shown_on_a_terminal(BAR)
    assert "split" in shown
    assert "100%" in shown
    assert "MB/s" in shown


def test_a_count_is_shown_and_taken_away() -> None:
    shown = shown_on_a_terminal(COUNT)
    assert re.search(r"[234],000 changes", shown)
    assert shown.endswith("\r")


@pytest.mark.parametrize("code", [BAR, COUNT])
@pytest.mark.parametrize("columns", [40, 80])
def test_no_line_is_longer_than_the_terminal(code: str, columns: int) -> None:
    shown = shown_on_a_terminal(code, columns)
    assert re.search(r"100%|,000 changes", shown)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[?0-9]*[a-zA-Z]", "", shown))
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("code", [BAR, COUNT])
def test_without_a_terminal_nothing_is_printed(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
