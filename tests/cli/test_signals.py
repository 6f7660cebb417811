"""Told to end, however early, a script ends as its --help says, and nothing of it is left."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from discogs_crawler.errors import EXIT_DONE, EXIT_PARTLY
from tests.cli.test_exit_codes import ARGUMENTS, SCRIPTS
from tests.conftest import ROOT
from tests.machines import wait_until


def blocks(process: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    [mask] = re.findall(r"^SigBlk:\s*(\w+)$", status, re.MULTILINE)
    return bool(int(mask, 16) >> number - 1 & 1)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(n, marks=pytest.mark.long) for n in (signal.SIGINT, signal.SIGHUP)),
    ],
)
def test_a_signal_before_a_script_listens_is_heard_when_it_does(
    environment: dict[str, str], redis_client: object, tmp_path: Path, number: signal.Signals
) -> None:
    # They wait for their settings as long as nobody writes there.
    os.mkfifo(tmp_path / "settings")
    (tmp_path / "dump.xml").write_text("<releases></releases>\n")
    started = {}
    for script in SCRIPTS:
        command = [sys.executable, str(ROOT / "bin" / script), *ARGUMENTS[script]]
        if script == "worker.py":
            command.remove("--until-empty")
        started[script] = subprocess.Popen(
            command,
            env=environment | {"ENV_FILE": str(tmp_path / "settings")},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    for process in started.values():
        wait_until(lambda pid=process.pid: blocks(pid, number), lambda: "it listens late")
        process.send_signal(number)
    ends = {}
    for script, process in started.items():
        while process.poll() is None:
            try:
                settings = os.open(tmp_path / "settings", os.O_WRONLY | os.O_NONBLOCK)
                os.close(settings)
            except OSError:  # nobody reads it just now
                time.sleep(0.01)
        ends[script] = (process.returncode, *process.communicate())
    interrupted = {
        script: (EXIT_PARTLY, "", f"{script}: interrupted; run it again to go on\n")
        for script in SCRIPTS
    }
    assert ends == interrupted | {"worker.py": (EXIT_DONE, "", "")}


def is_alive(process: str) -> bool:
    """Whether it runs; what nobody has waited for yet has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes() != b""
    except OSError:
        return False


PROGRAM = """
import pathlib, subprocess, sys
from discogs_crawler.cli import command

def main(flags, settings):
    command.terminate_like_interrupt()
    subprocess.Popen(
        ["sh", "-c", "trap '' TERM; sleep 60 & echo $! $$ > started; wait; wait"],
        start_new_session=True,
    )
    while True:  # where a signal meets us before we know the process that we have started
        pass

command.script(main, command.parser("A script."))
"""


def test_no_process_is_left_wherever_a_signal_meets_a_script(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment |= {"PYTHONPATH": str(ROOT / "lib")}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, stderr=subprocess.PIPE
    ) as running:
        wait_until((tmp_path / "started").exists, lambda: "it does not start")
        wait_until(
            lambda: len((tmp_path / "started").read_text().split()) == 2, lambda: "nobody is there"
        )
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == EXIT_PARTLY
    for process in (tmp_path / "started").read_text().split():
        assert not is_alive(process)


IN_A_FINALIZER = """
import pathlib, sys, time
from discogs_crawler.cli import command

class Closing:
    def __del__(self):
        pathlib.Path("closing").touch()
        time.sleep(60)

class HalfMade:
    def __init__(self):
        time.sleep(60)
        self.name = "whole"

    def __del__(self):
        print(self.name)

def main(flags, settings):
    command.terminate_like_interrupt()
    Closing()
    HalfMade()
    return 0

command.script(main, command.parser("A script."))
"""


def test_a_signal_that_meets_a_finalizer_ends_the_script_too(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment |= {"PYTHONPATH": str(ROOT / "lib")}
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_FINALIZER],
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        wait_until((tmp_path / "closing").exists, lambda: "it does not start")
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=20)
    assert (running.returncode, said) == (
        EXIT_PARTLY,
        "-c: interrupted; run it again to go on\n",
    )
