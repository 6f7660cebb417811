"""Machines of a test: each with a state folder, a worker, and cables that can be cut and mended."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from tests.conftest import ROOT, bare_environment

Cut = Literal["refused", "reset", "silent"]


class Cable:
    """A port of this machine's that leads to another address, until it is cut.

    Cut `refused`, nobody listens any more: a service that has ended. Cut `reset`, connections
    break, and new ones too: a firewall. Cut `silent`, nothing goes through and nobody says so: a
    network that has gone; what was on its way arrives when it is mended.
    """

    def __init__(self, target: str | tuple[str, int], source: str = "127.0.0.1") -> None:
        """`target`: the path of a Unix socket, or host and port; reached from `source`."""
        self._target, self._source = target, source
        self._ends: list[socket.socket] = []
        self._whole = threading.Event()
        self._whole.set()
        self._how: Cut = "silent"
        self.felt = threading.Event()
        """somebody has tried to use it since it was cut"""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._listen()

    def cut(self, how: Cut) -> None:
        self._how = how
        self.felt.clear()
        self._whole.clear()
        if how == "silent":
            return
        if how == "refused":
            _close(self._listener)
        for end in self._ends:
            _close(end)
        self._ends.clear()

    def mend(self) -> None:
        self._whole.set()
        if self._listener.fileno() < 0:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._listen()

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _pass(self) -> None:
        """Wait until it is mended; ConnectionError if it does not keep what is on its way."""
        if not self._whole.is_set():
            self.felt.set()
            if self._how != "silent":
                raise ConnectionError
            self._whole.wait()

    def _join(self, near: socket.socket) -> None:
        try:
            self._pass()
            far = self._reach()
        except OSError:
            _close(near)
            return
        self._ends += [near, far]
        for source, target in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _reach(self) -> socket.socket:
        if isinstance(self._target, str):
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._target)
            return far
        return socket.create_connection(self._target, source_address=(self._source, 0))

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._pass()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
            return
        for end in (source, target):
            _close(end)


def _close(end: socket.socket) -> None:
    """Close a socket in which another thread may be waiting."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


class Host:
    """A machine that reaches Redis, the API and the remote by a cable each."""

    def __init__(
        self,
        folder: Path,
        redis_socket: Path,
        api_port: int,
        remote_port: int,
        address: str = "127.0.0.1",
        remote: str = "remote.git",
        **settings: str,
    ) -> None:
        """`remote` is the path of STORE_REMOTE below what is served."""
        self.folder = folder
        self.folder.mkdir()
        self.cables = {
            "redis": Cable(str(redis_socket)),
            "api": Cable(("127.0.0.1", api_port), address),
            "remote": Cable(("127.0.0.1", remote_port)),
        }
        port = {name: cable.port for name, cable in self.cables.items()}
        self.environment = bare_environment(folder, folder / "state") | {
            "REDIS_URL": f"redis://127.0.0.1:{port['redis']}/0",
            "DISCOGS_API": f"http://127.0.0.1:{port['api']}",
            "STORE_REMOTE": f"git://127.0.0.1:{port['remote']}/{remote}",
            **settings,
        }

    def run(self, script: str, *args: object) -> None:
        command = [sys.executable, ROOT / "bin" / script, *map(str, args)]
        subprocess.run(command, env=self.environment, check=True, timeout=100)

    def start_worker(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, str(ROOT / "bin" / "worker.py")]
        with (self.folder / "worker.log").open("ab") as log:
            return subprocess.Popen([*command, "-v"], env=self.environment, stderr=log)

    def log(self) -> str:
        return f"{self.folder.name}:\n{(self.folder / 'worker.log').read_text()}"


@contextlib.contextmanager
def served(folder: Path) -> Iterator[int]:
    """A server of Git's own for the repositories in `folder`, which may be pushed to; its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    command = ["git", "daemon", "--export-all", "--enable=receive-pack", "--reuseaddr"]
    command += [f"--base-path={folder}", "--listen=127.0.0.1", f"--port={port}", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as daemon:
        try:
            wait_until(lambda: _answers(port), lambda: "git daemon does not start")
            yield port
        finally:
            # It hands SIGTERM on; killed, it would leave the process that listens.
            daemon.terminate()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(
    holds: Callable[[], bool], otherwise: Callable[[], str], patience_s: float = 90
) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.02)


def processes_in(folder: Path) -> list[str]:
    """The command lines that name the folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = file.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if str(folder) in line:
                found.append(line)
    return found
