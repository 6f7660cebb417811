"""Files that are there whole or not at all, and locks that die with their process."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from discogs_crawler.errors import ConfigurationError, TryLater
from discogs_crawler.files import atomic_write
from discogs_crawler.locks import exclusive


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "result"
    with atomic_write(target) as file:
        file.write(b"half")
        assert not target.exists()
        file.write(b"whole")
    assert target.read_bytes() == b"halfwhole"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(target) as file:
        file.write(b"new")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_stays_a_link_and_a_pipe_or_device_is_not_replaced(tmp_path: Path) -> None:
    """`stats.py --html /dev/null`, run by root, left a machine without /dev/null."""
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "page")
    (tmp_path / "disk").mkdir()
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "page").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"), atomic_write(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


def test_a_lock_file_that_leads_to_another_file_spares_that(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("42 days of work")
    (tmp_path / "seed.lock").symlink_to(precious)
    os.mkfifo(tmp_path / "pipe.lock")
    for lock in ("seed.lock", "pipe.lock"):
        with pytest.raises(ConfigurationError, match=f"{lock}: it is not a lock file"):
            with exclusive(tmp_path / lock, "seed"):
                pass
    assert precious.read_text() == "42 days of work"


def test_the_second_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "state" / "seed.lock"
    code = (
        "import pathlib, sys, time; from discogs_crawler.locks import exclusive\n"
        "with exclusive(pathlib.Path(sys.argv[1]), 'seed'): \n"
        " print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TryLater, match=f"seed is already running as process {holder.pid}"):
            with exclusive(lock, "seed"):
                pass
        threading.Timer(0.3, holder.kill).start()
        with exclusive(lock, "seed", patience_s=30):
            assert holder.wait(10) < 0, "whoever is patient comes next"
    with exclusive(lock, "seed"):
        pass
