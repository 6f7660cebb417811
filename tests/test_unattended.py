"""What runs unattended: crontab.example and the systemd samples, each line as it would be run."""

import contextlib
import itertools
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import crontab
import pytest

from tests.conftest import ROOT, Run
from tests.discogs import dump
from tests.discogs.api import Api
from tests.discogs.quota import Quota
from tests.discogs.site import Site
from tests.discogs.world import invented

UNITS = ROOT / "lib" / "discogs_crawler" / "data" / "systemd"

# Every line that cron would run, by words that only it has: those of the worker, and the others.
BOOT, REVIVE = "&& tmux -L discogs -f /dev/null new-session", "has-session"
LINES = ("download", "--discover", "maintain_store.py$", "maintain_store.py --check")
LINES += ("stats", "export")


def cron_commands() -> list[str]:
    return [job.command for job in crontab.CronTab(tabfile=str(ROOT / "crontab.example"))]


def command_with(word: str) -> str:
    [found] = [
        c for c in cron_commands() if (c.endswith(word[:-1]) if word[-1] == "$" else word in c)
    ]
    return found


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


@pytest.fixture
def api() -> Iterator[Api]:
    with Api(invented(30), Quota(limit_without=100, window_s=2)) as api:
        yield api


@pytest.fixture
def checkout(tmp_path: Path, site: Site, api: Api, redis_socket: Path, redis_client) -> Path:
    """A checkout as a user has it, with a `.env` and nothing else."""
    folder = tmp_path / "crawler"
    for name in ("bin", "lib"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", folder)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / ".env").write_text(
        f"DUMP_SITE={site.url}\nDISCOGS_API={api.url}\nREDIS_URL=unix://{redis_socket}\n"
        "RATE_WINDOW_S=2\nCOMMIT_SECONDS=0.2\nRETRY_DELAYS=1s,1s,1s\n"
    )
    (folder / ".env").chmod(0o600)
    return folder


Cron = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cron(checkout: Path, tmp_path: Path) -> Cron:
    """Run a command as cron does: sh, a bare environment, the home folder, no terminal."""
    table = crontab.CronTab(tabfile=str(ROOT / "crontab.example"))
    environment = {"HOME": str(tmp_path), "LOGNAME": "you", "SHELL": "/bin/sh"}
    environment |= dict(table.env.items())
    environment |= {"CRAWLER": str(checkout), "TMUX_TMPDIR": str(tmp_path)}

    def call(command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["/bin/sh", "-c", command],
            env=environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return call


def outcome(done: "subprocess.CompletedProcess[str]") -> tuple[int, str]:
    return done.returncode, done.stdout + done.stderr


def stored(checkout: Path, *, imported: bool) -> int:
    """The number of records in the store that a dump brought, or the API."""
    command = ["git", "--git-dir", checkout / "var/store/discogs.git", "grep", "-F"]
    command += ["-l" if imported else "-L", '  "_dump": ', "main", "--", "releases"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return len(listed.stdout.splitlines())


def test_the_crontab_is_valid_and_escapes_every_percent_sign() -> None:
    table = crontab.CronTab(tabfile=str(ROOT / "crontab.example"))
    jobs = list(table)
    assert len(jobs) == len({BOOT, REVIVE, *LINES})
    assert all(job.is_valid() and job.is_enabled() for job in jobs)
    assert "%" not in (ROOT / "crontab.example").read_text()
    assert sorted(command_with(word) for word in (BOOT, REVIVE, *LINES)) == sorted(cron_commands())


@pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux here")
def test_the_lines_of_the_crontab_keep_a_crawler_and_say_nothing(checkout, cron, site, api) -> None:
    site.publish(int(time.strftime("%Y%m01")), {"releases": dump.compressed(api.world, "releases")})
    assert outcome(cron(command_with("download"))) == (0, "")
    assert stored(checkout, imported=True) == 30
    assert outcome(cron(command_with(BOOT))) == (0, "")
    try:
        assert outcome(cron(command_with(REVIVE))) == (0, "")
        deadline = time.monotonic() + 100
        while stored(checkout, imported=False) < 30:
            assert time.monotonic() < deadline, cron(
                "tmux -L discogs capture-pane -p -t discogs"
            ).stdout
            time.sleep(0.05)
    finally:
        cron("tmux -L discogs kill-server")
    for word in LINES:
        assert outcome(cron(command_with(word))) == (0, ""), word
    assert len((checkout / "var" / "changes.tsv").read_text().splitlines()) == 30
    assert (checkout / "var" / "stats.html").exists()
    assert sorted(api.journal.asked()) == sorted(api.world.alive["releases"])


@pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux here")
def test_a_worker_that_has_ended_is_started_again_and_mailed_why(checkout, cron, tmp_path) -> None:
    (tmp_path / ".tmux.conf").write_text("set -g remain-on-exit on\n")
    refused = checkout.parent / "refused"
    with (checkout / ".env").open("a") as file:
        file.write(f"STORE={refused}/store\n")
    refused.touch()
    try:
        code, said = outcome(cron(command_with(REVIVE)))
        assert (code, f"STORE {refused}/store" in said) == (0, True), said
        deadline = time.monotonic() + 30
        while cron("tmux -L discogs has-session -t =discogs").returncode == 0:
            assert time.monotonic() < deadline
        refused.unlink()
        assert "ok   store" in cron(command_with(REVIVE)).stdout
        assert outcome(cron(command_with(REVIVE))) == (0, "")
    finally:
        cron("tmux -L discogs kill-server")


def say_nothing(cron, words: Iterable[str]) -> None:
    for word in words:
        code, said = outcome(cron(command_with(word)))
        assert (said, code in (0, 75)) == ("", True), f"{word}: {code}"


def test_a_fresh_installation_says_nothing_in_any_order_of_lines(
    checkout, cron, redis_client
) -> None:
    words = [word for word in LINES if word != "download"]
    say_nothing(cron, reversed(words))
    shutil.rmtree(checkout / "var")
    redis_client.flushall()
    # The worker makes the store; then nobody has made the ledger.
    worker = [checkout / ".venv/bin/python", checkout / "bin/worker.py", "--until-empty"]
    subprocess.run(worker, cwd=checkout, stdin=subprocess.DEVNULL, check=True)
    say_nothing(cron, reversed(words))


@pytest.mark.long
def test_a_fresh_installation_says_nothing_in_every_order(
    checkout, cron, site, api, redis_client
) -> None:
    """Each line after each set of others: 192 runs, and 4,320 if each order of all was run whole.

    What differs by the order in which such a set was run is not seen.
    """
    site.publish(int(time.strftime("%Y%m01")), {"releases": dump.compressed(api.world, "releases")})
    var, kept = checkout / "var", checkout.parent / "kept"
    keys: dict[frozenset[str], dict[bytes, bytes]] = {frozenset(): {}}
    kept.mkdir()

    def folder(done: frozenset[str]) -> Path:
        return kept / "".join(str(int(word in done)) for word in LINES)

    for number in range(len(LINES)):
        for done in map(frozenset, itertools.combinations(LINES, number)):
            for word in LINES:
                if word in done:
                    continue
                shutil.rmtree(var, ignore_errors=True)
                if folder(done).exists():
                    shutil.copytree(folder(done), var)
                redis_client.flushall()
                for key, value in keys[done].items():
                    redis_client.restore(key, 0, value)
                say_nothing(cron, [word])
                after = done | {word}
                if after not in keys:
                    keys[after] = {key: redis_client.dump(key) for key in redis_client.scan_iter()}
                    if var.exists():
                        shutil.copytree(var, folder(after))


def test_a_dump_is_imported_although_confirmations_are_withheld(checkout, cron, site, api) -> None:
    site.publish(int(time.strftime("%Y%m01")), {"releases": dump.compressed(api.world, "releases")})
    assert outcome(cron(command_with("download"))) == (0, "")
    missing = sorted(api.world.alive["releases"])[:12]
    for number in missing:
        api.faults.plan("releases", number, "404")
    ids = " ".join(map(str, missing))
    for command in (f"bin/seed_queue.py --ids {ids}", f"bin/worker.py --limit {len(missing)}"):
        assert outcome(cron(f'cd "$CRAWLER" && {command}')) == (0, "")
    code, said = outcome(cron(command_with("download")))
    assert (code, said.count("\n"), "12 stored records answer 404" in said) == (0, 1, True)
    with contextlib.closing(sqlite3.connect(checkout / "var" / "crawler.db")) as ledger:
        runs = ledger.execute("SELECT script, exit_code FROM runs ORDER BY id DESC").fetchmany(2)
    assert runs == [("import_dump", 0), ("seed_queue", 0)]
    code, again = outcome(cron(command_with("--discover")))
    assert (code, again) == (1, said)


def test_a_job_that_fails_says_why_in_one_line(checkout, cron, site) -> None:
    assert outcome(cron(command_with("download"))) == (
        75,
        f"download_dump.py: a complete dump of releases is not published yet at {site.url}\n",
    )
    site.close()
    code, said = outcome(cron(command_with("download")))
    assert (code, said.count("\n")) == (69, 1)
    assert said.startswith(f"download_dump.py: {site.url}: the index: ")


def test_a_job_with_a_misspelled_setting_says_where(checkout, cron) -> None:
    with (checkout / ".env").open("a") as file:
        file.write("LEASES_S=5\n")
    for word in LINES:
        code, said = outcome(cron(command_with(word)))
        assert code == 78
        assert said.count("\n") == 1
        assert "line 7: there is no setting 'LEASES_S'; did you mean LEASE_S?" in said


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_finds_nothing_wrong_with_the_samples(tmp_path: Path) -> None:
    units = []
    for sample in sorted(UNITS.iterdir()):
        text = sample.read_text().replace("/opt/crawler_for_discogs", str(ROOT))
        (tmp_path / sample.name).write_text(text)
        units.append(tmp_path / sample.name)
    assert len(units) == 7
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in done.stderr.splitlines() if "discogs" in line] == []


def test_the_systemd_samples_and_the_crontab_run_the_same_commands() -> None:
    for name, word in (
        ("monthly", "download"),
        ("daily", "--discover"),
        ("maintenance", "maintain_store.py$"),
    ):
        command = command_with(word).removeprefix('cd "$CRAWLER" && ')
        unit = (UNITS / f"discogs-{name}.service").read_text().replace("$$", "$")
        assert command in unit
        assert (UNITS / f"discogs-{name}.timer").exists()


def test_systemd_starts_a_worker_again_after_all_that_may_pass() -> None:
    unit = (UNITS / "discogs-worker.service").read_text().splitlines()
    assert "RestartPreventExitStatus=64" in unit
    assert "RestartSec=10min" in unit  # a token that is refused is not used every minute


class _Watcher(BaseHTTPRequestHandler):
    pings: list[str]
    status = 200

    def do_GET(self) -> None:
        self.pings.append(self.path)
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def watcher() -> Iterator[type[_Watcher]]:
    """A dead man's switch which notes its pings."""
    handler = type("Watcher", (_Watcher,), {"pings": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        handler.url = f"http://127.0.0.1:{server.server_port}/secret-key"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield handler
        server.shutdown()


def test_a_dead_mans_switch_is_told_of_start_and_success(run: Run, site, watcher) -> None:
    site.publish(20261001, {"releases": dump.compressed(invented(3), "releases")})
    arguments = ("download_dump.py", "--date", "20261001", "--dump-site", site.url)
    done = run(*arguments, HEALTHCHECK_URL=watcher.url + "/{script}")
    assert (done.returncode, done.stderr) == (0, "")
    assert watcher.pings == ["/secret-key/download-dump/start", "/secret-key/download-dump"]


def test_a_dead_mans_switch_is_told_of_failure_but_not_of_try_later(
    run: Run, site, watcher
) -> None:
    done = run("download_dump.py", "vinyl", "--dump-site", site.url, HEALTHCHECK_URL=watcher.url)
    assert done.returncode == 64
    assert watcher.pings.pop() == "/secret-key/fail"
    done = run("download_dump.py", "--dump-site", site.url, HEALTHCHECK_URL=watcher.url)
    assert done.returncode == 75
    assert watcher.pings.pop() == "/secret-key/start"


def test_a_dead_mans_switch_is_told_of_a_worker_without_end_only_when_it_fails(
    run: Run, api, redis_socket, redis_client, watcher, tmp_path
) -> None:
    """Its start would be waited for, and the check beside it is no sign of life."""
    settings = {"DISCOGS_API": api.url, "REDIS_URL": f"unix://{redis_socket}"}
    settings["HEALTHCHECK_URL"] = watcher.url
    run("worker.py", "--check", **settings)
    assert watcher.pings == []
    assert run("worker.py", "--until-empty", **settings).returncode == 0
    assert watcher.pings == ["/secret-key/start", "/secret-key"]
    (tmp_path / "file").touch()
    assert run("worker.py", STORE=tmp_path / "file" / "store", **settings).returncode == 78
    assert watcher.pings[2:] == ["/secret-key/fail"]


def test_a_dead_mans_switch_that_is_dead_itself_is_only_a_warning(run: Run, site, watcher) -> None:
    site.publish(20261001, {"releases": dump.compressed(invented(3), "releases")})
    arguments = ("download_dump.py", "--date", "20261001", "--dump-site", site.url)
    watcher.status = 500
    for url in (watcher.url, "http://127.0.0.1:1/secret-key"):
        done = run(*arguments, HEALTHCHECK_URL=url)
        assert done.returncode == 0
        assert done.stderr.count("HEALTHCHECK_URL could not be pinged") == 2
        assert "secret-key" not in done.stderr


def test_a_dead_mans_switch_that_says_very_much_is_not_listened_to(run: Run, site) -> None:
    def answer_without_end(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = server.accept()
                with caller, contextlib.suppress(OSError):
                    caller.recv(4096)
                    caller.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    while True:
                        caller.sendall(b"x" * 65_536)

    site.publish(20261001, {"releases": dump.compressed(invented(3), "releases")})
    arguments = ("download_dump.py", "--date", "20261001", "--dump-site", site.url)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer_without_end, args=(server,), daemon=True).start()
        done = run(*arguments, HEALTHCHECK_URL=f"http://127.0.0.1:{server.getsockname()[1]}/x")
        assert (done.returncode, done.stderr) == (0, "")
        server.shutdown(socket.SHUT_RDWR)


def test_a_dump_is_split_again_only_if_it_or_its_hashes_have_changed(run: Run, tmp_path) -> None:
    target, result = tmp_path / "discogs_20261001_releases.xml.gz", tmp_path / "hashes"
    arguments = ("discogs_xml_split.py", "-v", "-d", target, "-r", result)
    skipped = "was split before, into this very file"
    dump.write(target, invented(5), "releases")
    assert skipped not in run(*arguments).stderr
    assert skipped in run(*arguments).stderr
    result.write_bytes(result.read_bytes()[:100])
    assert skipped not in run(*arguments).stderr
    dump.write(target, invented(6), "releases")
    assert skipped not in run(*arguments).stderr
    assert result.read_bytes().count(b"\n") == 6
