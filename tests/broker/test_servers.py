"""What the crawler needs of Redis it has with every server that there is on this machine.

The suite runs with the first of them. To try others put their folders on PATH, and `--long`.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from discogs_crawler.broker import private_server
from discogs_crawler.broker.connect import about, connect
from discogs_crawler.errors import ConfigurationError, Unavailable
from tests.broker.test_private_server import Start, connected, settings_of, start  # noqa: F401
from tests.conftest import ROOT

CONTRACTS = ("test_queue.py", "test_limiter.py", "test_private_server.py", "test_redis_tls.py")

IN_USE, *OTHERS = dict.fromkeys(program.resolve() for program in private_server.servers())


def version(program: Path) -> str:
    """Such as `Redis 7.0.15`."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    name, _, number, *_ = said.stdout.split() or ("does", "not", "run")
    return f"{name} {number.removeprefix('v=')}"


def with_first(program: Path, folder: Path) -> dict[str, str]:
    """The environment in which `program` is the server that is found."""
    (folder / "redis-server").symlink_to(program)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.skipif(not OTHERS, reason=f"the only server here is {IN_USE}, which runs the suite")
@pytest.mark.long
@pytest.mark.parametrize("program", OTHERS, ids=version)
def test_the_contracts_hold_with_every_other_server(program: Path, tmp_path: Path) -> None:
    files = [str(ROOT / "tests" / "broker" / name) for name in CONTRACTS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *files],
        env=with_first(program, tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def number(program: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in version(program).split()[1].split("."))


Connect = Callable[[Path], redis.Redis]


@pytest.fixture
def connect_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Let another program be the private server of one state folder from now on."""
    settings = settings_of(tmp_path / "state")

    def connect_to(program: Path) -> redis.Redis:
        private_server.stop(settings)
        monkeypatch.setattr(private_server, "find_server", lambda: program)
        return connect(settings)

    yield connect_to
    private_server.stop(settings)


def test_a_newer_server_goes_on_with_the_data_of_an_older_one(connect_to: Connect) -> None:
    oldest, *_, newest = sorted([IN_USE, IN_USE, *OTHERS], key=number)
    connect_to(oldest).set("here", 1)
    assert connect_to(newest).get("here") == b"1"


@pytest.mark.parametrize("program", [IN_USE, *OTHERS], ids=version)
def test_what_runs_is_said_with_its_program(connect_to: Connect, program: Path) -> None:
    assert re.fullmatch(rf"{re.escape(version(program))} \(/.+\)", about(connect_to(program)))


def test_an_older_server_says_that_the_data_are_of_a_newer_one(connect_to: Connect) -> None:
    *others, newest = sorted([IN_USE, *OTHERS], key=number)
    older = [program for program in others if (7,) <= number(program) < number(newest)[:1]]
    if not older:
        pytest.skip("no two servers here of which one refuses the data of the other")
    connect_to(newest).set("here", 1)
    with pytest.raises(Unavailable, match=r"of a newer server than .* run seed_queue\.py"):
        connect_to(older[0])


def test_a_cluster_is_refused(tmp_path: Path, start: Start) -> None:  # noqa: F811
    port = start("--cluster-enabled", "yes")
    with pytest.raises(ConfigurationError, match="part of a Redis Cluster, which is not supported"):
        connected(tmp_path, f"redis://127.0.0.1:{port}/0")
