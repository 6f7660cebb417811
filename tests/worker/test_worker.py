"""worker.py as its users run it: signals, exit codes, what it says, and what it never says."""

import contextlib
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from discogs_crawler import config
from discogs_crawler.broker.messages import Result
from discogs_crawler.broker.queue import Queue
from discogs_crawler.errors import (
    EXIT_CONFIGURATION,
    EXIT_DONE,
    EXIT_PARTLY,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
)
from discogs_crawler.ledger import consumers
from discogs_crawler.ledger import database as ledger
from discogs_crawler.store.layouts import open_store
from tests.conftest import ROOT, Run
from tests.discogs.api import Api
from tests.discogs.quota import Quota
from tests.discogs.world import invented

TOKEN = "kzQmXvWpLrTsYbNdFgHj"
WORKER = [sys.executable, str(ROOT / "bin" / "worker.py")]


@pytest.fixture
def api() -> Iterator[Api]:
    with Api(invented(60), Quota(50_000, 50_000, 1)) as server:
        yield server


@pytest.fixture
def environment(environment: dict[str, str], api: Api) -> dict[str, str]:
    return environment | {
        "DISCOGS_API": api.url,
        "DISCOGS_TOKEN": TOKEN,
        "RATE_WINDOW_S": "2",
        "COMMIT_SECONDS": "0.3",
        "RETRY_DELAYS": "0s,0s",
    }


@pytest.fixture
def queue(environment: dict[str, str], redis_client: redis.Redis) -> Queue:
    return Queue(redis_client, "releases", prefix="discogs", lease_s=600)


@pytest.fixture
def ids(api: Api) -> list[int]:
    return sorted(api.world.alive["releases"])


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(environment: dict[str, str], redis_client: redis.Redis) -> Iterator[Start]:
    """Start a worker that runs beside the test."""
    with contextlib.ExitStack() as stack:

        def call(*flags: str, **extra: str) -> "subprocess.Popen[str]":
            process = subprocess.Popen(
                [*WORKER, *flags],
                env=environment | extra,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield call


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def results(queue: Queue) -> list[Result]:
    return [result for _, result in queue.results("0", 10_000)[1]]


def stored(environment: dict[str, str]) -> set[int]:
    return set(open_store(config.load(environ=environment)).ids("releases"))


# Ends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(n, marks=pytest.mark.long) for n in (signal.SIGINT, signal.SIGHUP)),
    ],
)
def test_a_signal_commits_what_is_fetched_and_gives_the_rest_back(
    environment: dict[str, str],
    api: Api,
    queue: Queue,
    ids: list[int],
    start: Start,
    number: signal.Signals,
) -> None:
    api.latency_s = 0.04
    queue.push("new", ids)
    worker = start(COMMIT_SECONDS="60")
    until(lambda: len(api.journal.since()) >= 15)
    worker.send_signal(number)
    assert worker.communicate(timeout=20) == ("", "")
    assert worker.returncode == EXIT_DONE
    asked = api.journal.asked()
    assert stored(environment) == set(asked) == {result.id for result in results(queue)}
    assert queue.leased() == []
    assert sum(queue.depths().values()) == len(ids) - len(asked)


def test_a_second_signal_ends_it_at_once_and_loses_nothing(
    environment: dict[str, str], api: Api, queue: Queue, ids: list[int], start: Start
) -> None:
    api.faults.set_everywhere("hang")
    queue.push("new", ids)
    worker = start("-v", RATE_WINDOW_S="60", RATE_IDENTITY="a", LEASE_S="1")
    until(lambda: len(api.journal.since()) >= 1)
    worker.send_signal(signal.SIGINT)
    assert worker.stderr is not None
    while "finishing what is under way" not in worker.stderr.readline():
        pass
    began = time.monotonic()
    worker.send_signal(signal.SIGINT)
    _, said = worker.communicate(timeout=20)
    assert time.monotonic() - began < 5, "the API hangs for 30 s"
    assert worker.returncode == EXIT_PARTLY
    assert "Traceback" not in said
    api.faults.set_everywhere("")
    assert start("--until-empty").wait(30) == EXIT_DONE
    assert Counter(result.outcome for result in results(queue)) == {"stored": len(ids)}


def test_killed_workers_lose_no_id(
    environment: dict[str, str], api: Api, queue: Queue, ids: list[int], start: Start
) -> None:
    api.latency_s = 0.01
    queue.push("new", ids)
    for more in (5, 15, 30):
        worker = start(LEASE_S="1", COMMIT_EVERY="5")
        asked = len(api.journal.since())
        until(lambda want=asked + more: len(api.journal.since()) >= want)
        worker.kill()
        worker.wait()
    last = start("--until-empty", LEASE_S="1")
    last.wait(30)
    assert last.returncode == EXIT_DONE
    assert sorted(result.id for result in results(queue)) == ids, "each has exactly one result"
    assert stored(environment) == set(ids)
    log = open_store(config.load(environ=environment)).repository.run("fsck", "--strict")
    assert b"error" not in log


def test_a_worker_that_was_frozen_does_not_overwrite_what_others_did_meanwhile(
    environment: dict[str, str], api: Api, queue: Queue, ids: list[int], start: Start
) -> None:
    queue.push("new", ids[:5])
    frozen = start("-v", LEASE_S="1", COMMIT_SECONDS="60")
    until(lambda: len(api.journal.since()) >= 5)
    time.sleep(0.1)
    frozen.send_signal(signal.SIGSTOP)
    api.world.edit("releases", ids[:5])
    assert start("--until-empty", LEASE_S="1").wait(30) == EXIT_DONE
    tip = open_store(config.load(environ=environment)).tip()
    frozen.send_signal(signal.SIGCONT)
    frozen.send_signal(signal.SIGTERM)
    frozen.communicate(timeout=20)
    assert frozen.returncode == EXIT_DONE
    assert open_store(config.load(environ=environment)).tip() == tip
    assert len(results(queue)) == 5


def test_a_time_limit_ends_it_in_order(queue: Queue, start: Start, run: Run) -> None:
    began = time.monotonic()
    assert run("worker.py", "--max-seconds", "1").returncode == EXIT_DONE
    assert time.monotonic() - began < 6


def test_until_empty_says_by_its_exit_code_whether_something_is_left(
    api: Api, queue: Queue, ids: list[int], run: Run
) -> None:
    api.faults.plan("releases", ids[0], "500")
    queue.push("new", ids[:3])
    done = run("worker.py", "--until-empty", "--max-seconds", "2", RETRY_DELAYS="1h")
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_PARTLY, "", "")
    assert [delayed.attempts for delayed in queue.delayed()] == [1]
    assert len(results(queue)) == 2


def test_a_refused_token_is_one_line_and_78(
    api: Api, queue: Queue, ids: list[int], run: Run
) -> None:
    api.faults.set_everywhere("401")
    queue.push("new", ids)
    done = run("worker.py")
    assert done.returncode == EXIT_CONFIGURATION
    (line,) = done.stderr.splitlines()
    assert line.startswith("worker.py: the API refuses us, check DISCOGS_TOKEN: HTTP 401")
    assert sum(queue.depths().values()) == len(ids)


def test_the_token_is_not_sent_in_the_clear(queue: Queue, ids: list[int], run: Run) -> None:
    done = run("worker.py", DISCOGS_API="http://api.example.com")
    assert done.returncode == EXIT_CONFIGURATION
    assert done.stderr.count("\n") == 1
    assert "the token would travel in the clear" in done.stderr
    assert TOKEN not in done.stderr


@pytest.mark.long
def test_no_redis_is_69(run: Run, tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/nothing.sock"
    done = run("worker.py", "--check", REDIS_URL=url)
    assert done.returncode == EXIT_UNAVAILABLE
    assert done.stdout.splitlines()[-1].startswith(f"BAD  Redis     Redis at {tmp_path}")


@pytest.mark.parametrize(
    "flags",
    [
        ["--segments", "3-1"],
        ["--branch", "../main"],
        ["--threads", "0"],
        *(
            pytest.param(flags, marks=pytest.mark.long)
            for flags in (
                ["--segments", "x"],
                ["--limit", "0"],
                ["--max-seconds", "soon"],
                ["--kind", "songs"],
                ["--nonsense"],
            )
        ),
    ],
)
def test_a_wrong_flag_is_64_and_one_line(run: Run, flags: list[str]) -> None:
    done = run("worker.py", *flags)
    assert done.returncode == EXIT_USAGE
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert flags != ["--segments", "3-1"] or "3-1: a range must ascend" in done.stderr


# What it says ------------------------------------------------------------------------------------


def test_success_is_quiet_and_v_logs_a_line_for_each_commit(
    queue: Queue, ids: list[int], run: Run
) -> None:
    queue.push("new", ids[:10])
    done = run("worker.py", "--until-empty")
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_DONE, "", "")
    queue.push("new", ids[10:20])
    done = run("worker.py", "--until-empty", "-v", COMMIT_SECONDS="60")
    lines = [line for line in done.stderr.splitlines() if " added" in line]
    assert len(lines) == 1
    assert lines[0].startswith("worker.py: releases: 10 stored; 10 added, 0 changed, 0 removed as ")
    assert "\x1b" not in done.stderr


def test_check_looks_at_everything(
    environment: dict[str, str], api: Api, queue: Queue, run: Run
) -> None:
    with consumers.opened(Path(environment["STATE_DIR"], "crawler.db")):
        pass  # an export on a machine of workers
    done = run("worker.py", "--check")
    assert done.returncode == EXIT_DONE, done.stdout
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", what] for what in ("settings", "ledger", "store", "Redis", "API")
    ]
    assert "50000 requests a minute, with a token" in lines[-1]
    assert TOKEN not in done.stdout


def test_check_says_what_is_wrong_and_goes_on(api: Api, run: Run) -> None:
    done = run("worker.py", "--check", DISCOGS_API="http://127.0.0.1:1")
    assert done.returncode == EXIT_UNAVAILABLE
    bad = [line for line in done.stdout.splitlines() if line.startswith("BAD")]
    assert bad == ["BAD  API       http://127.0.0.1:1: no connection: Connection refused"]


def test_check_asks_the_remote_and_changes_nothing(
    environment: dict[str, str], api: Api, run: Run, tmp_path: Path
) -> None:
    """A wrong address was found only when the first batch had been fetched."""
    remote = tmp_path / "remote.git"
    done = run("worker.py", "--check", STORE_REMOTE=str(remote))
    assert done.returncode == EXIT_UNAVAILABLE
    [bad] = [line for line in done.stdout.splitlines() if line.startswith("BAD")]
    assert bad.startswith("BAD  remote    STORE_REMOTE *** cannot be reached: ")
    assert str(remote) not in done.stdout
    subprocess.run(["git", "init", "-q", "--bare", str(remote)], check=True)
    done = run("worker.py", "--check", STORE_REMOTE=str(remote))
    assert "ok   remote    STORE_REMOTE answers\n" in done.stdout
    assert not (Path(environment["STATE_DIR"]) / "store").exists()
    many = {"STORE_REMOTE": str(tmp_path), "STORE_LAYOUT": "submodules"}
    assert "ok   remote" in run("worker.py", "--check", **many).stdout
    assert not (tmp_path / "discogs.git").exists()


@pytest.mark.skipif(not shutil.which("tmux"), reason="tmux is not installed")
def test_where_the_ledger_says_that_there_is_a_store_none_is_made(
    queue: Queue, ids: list[int], run: Run, environment: dict[str, str]
) -> None:
    """Its disk was not mounted: what was stored meanwhile was in the way of the real one."""
    store = Path(environment["STATE_DIR"]) / "store"
    assert run("seed_queue.py", "--ids", ids[0]).returncode == EXIT_DONE
    assert run("worker.py", "--until-empty").returncode == EXIT_DONE
    store.rename(store.with_name("mounted elsewhere"))
    for flag in ("--until-empty", "--check"):
        done = run("worker.py", flag)
        assert done.returncode == EXIT_CONFIGURATION
        assert f"{store}: there is no store, but the ledger says that 1 records" in (
            done.stdout + done.stderr
        )
        assert not store.exists()
    store.symlink_to("mounted elsewhere")
    assert run("worker.py", "--until-empty").returncode == EXIT_DONE


def test_on_a_terminal_of_80_columns_one_line_says_how_it_goes(
    environment: dict[str, str], api: Api, queue: Queue, ids: list[int], tmp_path: Path
) -> None:
    api.quota.limit, api.quota.window_s = 60, 60
    api.latency_s = 0.02
    queue.push("backfill", range(1, 900_000))
    tmux = ["tmux", "-S", str(tmp_path / "tmux.sock"), "-f", "/dev/null"]
    settings = shlex.join(f"{name}={value}" for name, value in environment.items())
    command = f"env -i TERM=screen {settings} RATE_WINDOW_S=60 {shlex.join(WORKER)} -v; sleep 60"
    subprocess.run([*tmux, "new-session", "-d", "-x", "80", "-y", "10", command], check=True)

    def screen() -> list[str]:
        shown = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True)
        return [line.rstrip() for line in shown.stdout.splitlines() if line.strip()]

    def last() -> str:
        return (screen() or [""])[-1]

    try:
        until(lambda: " stored" in last() and "quota 1" in last() and " left" in last())
        shown = screen()
        assert [line for line in shown if "waiting" in line] == [shown[-1]], "one line"
        assert len(shown[-1]) < 80
        assert shown[-1].startswith("releases ")
        assert "/60; 899,9" in shown[-1]
        until(lambda: any(" added, " in line for line in screen()[:-1]))
        subprocess.run([*tmux, "send-keys", "C-c"], check=True)
        until(lambda: "ids went back into the queue" in last())
        assert not any("waiting" in line for line in screen()), "the line is gone at the end"
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)


# What it never says ------------------------------------------------------------------------------


def test_the_token_is_nowhere(
    environment: dict[str, str],
    api: Api,
    queue: Queue,
    ids: list[int],
    start: Start,
    redis_client: redis.Redis,
    tmp_path: Path,
) -> None:
    secret = tmp_path / "token"
    secret.write_text(f"{TOKEN}\n")
    ledger.open(Path(environment["STATE_DIR"]) / "crawler.db").close()
    for record_id, fault in zip(ids, ["500", "html", "reset", "cut", "404", "moved"], strict=False):
        api.faults.plan("releases", record_id, fault)
    api.faults.plan("releases", ids[30], "401")
    queue.push("new", ids)
    api.latency_s = 0.02
    worker = start("-vv", DISCOGS_TOKEN="", DISCOGS_TOKEN_FILE=str(secret))
    until(lambda: len(api.journal.since()) >= 10)
    argv = Path(f"/proc/{worker.pid}/cmdline").read_bytes()
    said = "".join(worker.communicate(timeout=30))
    assert worker.returncode == EXIT_CONFIGURATION
    assert all(request.token for request in api.journal.since()), "it was read from the file"
    assert "HTTP 401" in said
    haystacks = {"argv": argv, "output": said.encode()}
    for path in Path(environment["STATE_DIR"]).rglob("*"):
        if path.is_file():
            haystacks[str(path)] = path.read_bytes()
    for key in redis_client.scan_iter("*"):
        haystacks[repr(key)] = key + (redis_client.dump(key) or b"")
    repository = open_store(config.load(environ=environment)).repository
    haystacks["git"] = repository.run("log", "-p", "--format=fuller", "main")
    with sqlite3.connect(Path(environment["STATE_DIR"]) / "crawler.db") as database:
        haystacks["sqlite"] = "\n".join(database.iterdump()).encode()
    assert len(haystacks["git"]) > 1_000
    assert b"HTTP 404" in haystacks["output"]
    assert [where for where, text in haystacks.items() if TOKEN.encode() in text] == []
