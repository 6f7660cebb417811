"""Several machines: one Redis, one remote, a ledger on the first, and everything goes wrong."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlite_utils

from discogs_crawler import clean, config, exact_json
from discogs_crawler.records import record_path
from tests.conftest import ROOT
from tests.discogs import dump
from tests.discogs.api import Api
from tests.discogs.journal import busiest
from tests.discogs.quota import Quota
from tests.discogs.world import invented

RECORDS = 300
WINDOW_S = 2.0
LIMIT = 40
PATIENCE_S = 90


class Cable:
    """What connects a machine with Redis; it can be cut and mended."""

    def __init__(self, plug: Path, server: Path) -> None:
        self._server = server
        self._whole = True
        self._ends: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(plug))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole = False
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole = True

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            if not self._whole:
                near.close()
                continue
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(self._server))
            self._ends += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=_carry, args=(source, target), daemon=True).start()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Host:
    """A machine: its state folder, its cable, and the worker on it."""

    def __init__(self, name: str, folder: Path, redis_socket: Path, **settings: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.cable = Cable(self.folder / "redis.sock", redis_socket)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "ENV_FILE": os.devnull,
            "STATE_DIR": str(self.folder / "state"),
            "REDIS_URL": f"unix://{self.folder}/redis.sock",
            "RATE_WINDOW_S": str(WINDOW_S),
            "COMMIT_EVERY": "20",
            "COMMIT_SECONDS": "0.2",
            "LEASE_S": "3",
            "RETRY_DELAYS": "1s,1s,1s",
            **settings,
        }

    def run(self, script: str, *args: object) -> None:
        command = [sys.executable, ROOT / "bin" / script, *map(str, args)]
        subprocess.run(command, env=self.environment, check=True, timeout=100)

    def start_worker(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, str(ROOT / "bin" / "worker.py")]
        with (self.folder / "worker.log").open("wb") as log:
            return subprocess.Popen([*command, "-v"], env=self.environment, stderr=log)

    def log(self) -> str:
        return (self.folder / "worker.log").read_text()


@pytest.fixture
def api() -> Iterator[Api]:
    quota = Quota(limit_without=LIMIT, window_s=WINDOW_S)
    with Api(invented(RECORDS), quota, host="0.0.0.0") as api:
        yield api


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    folder = tmp_path / "remote.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", folder], check=True)
    return folder


def wait_until(holds: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.02)


def stored(remote: Path) -> dict[str, bytes]:
    """The records in the remote, by path."""

    def git(*args: str, **options: object) -> bytes:
        command = ["git", "--git-dir", str(remote), *args]
        return subprocess.run(command, stdout=subprocess.PIPE, check=False, **options).stdout  # type: ignore[call-overload]

    names = git("ls-tree", "-r", "--name-only", "main", "releases/").decode().split()
    return {name: git("show", f"main:{name}") for name in names}


def count(remote: Path) -> int:
    command = ["git", "--git-dir", str(remote), "ls-tree", "-r", "--name-only", "main", "releases/"]
    return subprocess.run(command, capture_output=True, check=False).stdout.count(b"\n")


@pytest.mark.long
def test_three_machines_lose_nothing_when_one_is_cut_off_and_one_dies(
    tmp_path: Path, api: Api, remote: Path, redis_socket: Path, redis_client: object
) -> None:
    def machine(name: str, identity: str, address: str) -> Host:
        return Host(
            name,
            tmp_path,
            redis_socket,
            STORE_REMOTE=str(remote),
            RATE_IDENTITY=identity,
            DISCOGS_API=f"http://{address}:{api.port}",
        )

    # The first two share an address and so a quota; the third has one of its own.
    first, second = (
        machine("first", "office", "127.0.0.1"),
        machine("second", "office", "127.0.0.1"),
    )
    third = machine("third", "cellar", "127.0.0.2")
    target = tmp_path / "discogs_20261101_releases.xml.gz"
    dump.write(target, api.world, "releases")
    first.run("discogs_xml_split.py", "-d", target, "-r", tmp_path / "hashes")

    def logs() -> str:
        return "\n".join(f"{h.folder.name}:\n{h.log()}" for h in (first, second, third))

    def all_say(word: str) -> bool:
        return all(word in host.log() for host in (first, second, third))

    workers = [each.start_worker() for each in (first, second, third)]
    try:
        wait_until(lambda: all_say("Redis"), logs)
        first.run("seed_queue.py", "-n", tmp_path / "hashes")
        wait_until(lambda: all_say("stored"), logs)
        third.cable.cut()
        workers[1].send_signal(signal.SIGKILL)
        before = count(remote)
        wait_until(lambda: count(remote) > before, logs)
        third.cable.mend()
        wait_until(lambda: count(remote) == RECORDS, logs)
        for worker in (workers[0], workers[2]):
            worker.terminate()
            assert worker.wait(PATIENCE_S) == 0, logs()
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()

    first.run("seed_queue.py")
    rows = list(sqlite_utils.Database(tmp_path / "first/state/crawler.db")["releases"].rows)
    assert {row["id"] for row in rows} == set(api.world.alive["releases"])
    assert all(row["alive"] and row["due"] is None for row in rows)

    requests = api.journal.since()
    assert {request.status for request in requests} == {200}
    assert busiest(requests, WINDOW_S * 0.99) <= LIMIT
    assert len({request.client for request in requests}) == 2

    rules = clean.rules_for(config.load(environ=first.environment), "releases")
    expected = {
        record_path("releases", number): clean.clean(
            exact_json.loads(
                json.dumps(api.world.document("releases", number, 1), ensure_ascii=False).encode()
            ),
            rules,
        )
        for number in api.world.alive["releases"]
    }
    assert stored(remote) == expected
    assert not (tmp_path / "third/state/crawler.db").exists()
