"""What the tests share: a real Redis server, temporary settings, scripts run as cron does."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import redis

from discogs_crawler import config
from discogs_crawler.broker import private_server
from discogs_crawler.config import Settings
from discogs_crawler.ledger import database
from discogs_crawler.ledger.rows import Row

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT.parent / "shared" / "discogs" / "samples"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the long form of the tests")
    parser.addoption("--examples", type=int, help="how many for each property [35; --long: 2000]")


def pytest_configure(config: pytest.Config) -> None:
    examples = config.getoption("--examples") or (2_000 if config.getoption("--long") else 35)
    hypothesis.settings.register_profile("suite", deadline=None, max_examples=examples)
    hypothesis.settings.load_profile("suite")
    # What whoever started the tests ignores (nohup, a job in the background) is not to be
    # ignored by what the tests start.
    for number, default in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        skip = pytest.mark.skip(reason="long form: bin/test --long")
        for item in items:
            if "long" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of real captures, which lies beside some checkouts."""
    if not SAMPLES.is_dir():
        pytest.skip("the real captures are not here")
    return SAMPLES


@pytest.fixture(scope="session")
def redis_socket() -> Iterator[Path]:
    """The socket of a real Redis server that lives as long as this test process."""
    with tempfile.TemporaryDirectory(prefix="crawler-redis-") as folder:
        socket = Path(folder) / "redis.sock"
        command = [str(private_server.find_server()), "--port", "0", "--unixsocket", str(socket)]
        command += ["--save", "", "--appendonly", "no", "--dir", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                _wait_for(redis.Redis(unix_socket_path=str(socket)))
                yield socket
            finally:
                server.kill()


def _wait_for(client: redis.Redis) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            client.ping()
            return
        except redis.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@pytest.fixture
def redis_client(redis_socket: Path) -> Iterator[redis.Redis]:
    """A client of the test server, with nothing in it."""
    client = redis.Redis(unix_socket_path=str(redis_socket))
    client.flushall()
    yield client
    client.close()


def program(folder: Path, name: str, script: str) -> str:
    """Make a program in `folder` of what `sh` is to do; the PATH on which it comes first."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def bare_environment(home: Path, state: Path) -> dict[str, str]:
    """The environment of a script that must find nothing of this machine's user."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "ENV_FILE": os.devnull,
        "STATE_DIR": str(state),
    }


@pytest.fixture
def environment(tmp_path: Path, redis_socket: Path, redis_client: redis.Redis) -> dict[str, str]:
    """A bare one with the test server, with nothing in it."""
    bare = bare_environment(tmp_path / "home", tmp_path / "state")
    return bare | {"REDIS_URL": f"unix://{redis_socket}"}


@pytest.fixture
def settings(environment: dict[str, str], redis_client: redis.Redis) -> Settings:
    """Settings for a crawler in a temporary folder, on the test server."""
    return config.load(environ=environment)


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(environment: dict[str, str], redis_client: redis.Redis) -> Run:
    """Run a script of `bin/` as cron does: `run("seed_queue.py", "-n", path, NAME="value")`."""

    def call(script: str, *args: object, **extra: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, str(ROOT / "bin" / script), *map(str, args)],
            env=environment | extra,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return call


def make_ledger(path: Path) -> None:
    """A ledger in which something was once, unless there is one."""
    if not path.exists():
        with database.open(path) as ledger, ledger.transaction():
            ledger.save("releases", [Row(1)])
