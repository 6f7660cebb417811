"""Dumps arrive whole and verified, or not at all, from a site with bad manners."""

import calendar
import contextlib
import gzip
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from discogs_crawler import clock
from discogs_crawler.config import Settings
from discogs_crawler.dumps import download
from discogs_crawler.errors import BadData, TryLater, Unavailable, UsageError
from tests.conftest import ROOT, Run
from tests.discogs.site import Site

RELEASES = "discogs_20261001_releases.xml.gz"
CONTENT = gzip.compress(os.urandom(300_000), 1)


@pytest.fixture(params=["ranges honoured", "ranges ignored"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with Site(ranges=request.param == "ranges honoured") as site:
        yield site


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRY_WAITS_S", (0, 0))


@pytest.fixture
def fetch(settings: Settings, site: Site, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Download as if it were the given day: `fetch("20261005")`."""

    def call(
        day: str = "20261005", kinds: tuple[str, ...] = ("releases",), date: int | None = None
    ):  # type: ignore[no-untyped-def]
        instant = calendar.timegm(time.strptime(day, "%Y%m%d"))
        monkeypatch.setattr(clock, "OFFSET_S", instant - time.time())
        mine = settings.__class__(**{**vars(settings), "dump_site": site.url})
        return [path.name for path in download.fetch(mine, list(kinds), date)]

    return call


def in_folder(settings: Settings) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in settings.dump_dir.iterdir()}


def asked(site: Site) -> list[str]:
    return [request.kind for request in site.journal.since()]


def test_a_dump_arrives_under_its_name_with_the_time_of_its_upload(settings, site, fetch):
    uploaded = calendar.timegm((2026, 10, 1, 19, 16, 59))
    site.publish(20261001, {"releases": CONTENT}, modified=uploaded)
    assert fetch() == [RELEASES]
    assert in_folder(settings) == {RELEASES: CONTENT}
    assert (settings.dump_dir / RELEASES).stat().st_mtime == uploaded
    assert asked(site) == ["index", "discogs_20261001_CHECKSUM.txt", RELEASES]


def test_nothing_new_costs_one_request(site, fetch):
    site.publish(20261001, {"releases": CONTENT})
    fetch()
    site.journal.clear()
    assert fetch("20261025") == [RELEASES]
    assert asked(site) == ["index"]


def test_a_dump_of_a_date_that_is_here_costs_no_request(site, fetch):
    site.publish(20261001, {"releases": CONTENT})
    fetch()
    site.journal.clear()
    assert fetch(date=20261001) == [RELEASES]
    assert asked(site) == []


def test_a_month_without_its_checksum_file_is_not_complete(site, fetch):
    site.publish(20261001, {"releases": CONTENT})
    site.publish(20261101, {"releases": CONTENT}, checksum=False)
    assert fetch("20261103") == [RELEASES]


def test_a_missing_month_and_the_turn_of_the_year_leave_the_last_dump(site, fetch):
    site.publish(20261001, {"releases": CONTENT})
    assert fetch("20270115") == [RELEASES]


def test_a_kind_that_a_month_lacks_comes_from_the_month_before(site, fetch):
    site.publish(20260901, {"releases": CONTENT, "labels": CONTENT})
    site.publish(20261001, {"releases": CONTENT})
    names = fetch(kinds=("labels", "releases"))
    assert names == ["discogs_20260901_labels.xml.gz", RELEASES]


def test_a_dump_that_the_site_has_lost_is_not_replaced_by_an_older_one(settings, site, fetch):
    site.publish(20260901, {"releases": CONTENT})
    site.publish(20261001, {"releases": CONTENT})
    fetch()
    del site.files[RELEASES]
    assert fetch() == [RELEASES]
    assert set(in_folder(settings)) == {RELEASES}


def test_nothing_published_yet_is_a_reason_to_try_later(site, fetch):
    with pytest.raises(TryLater, match="not published yet"):
        fetch()
    for day in (20261201, 20260901):
        with pytest.raises(TryLater, match=f"{day} is not published yet"):
            fetch(date=day)


def test_a_date_that_has_no_dump_is_a_mistake(site, fetch):
    for day in (20260301, 20260201, 20251201):
        site.publish(day, {"releases": CONTENT})
    others = "no dump of releases of 20260302; of that year it has 20260201, 20260301"
    with pytest.raises(UsageError, match=others):
        fetch(date=20260302)
    with pytest.raises(UsageError, match="of that year it has none"):
        fetch(date=20080309)


@pytest.mark.parametrize("fault", ["short", "cut"])
def test_a_connection_that_is_cut_is_taken_up_again(settings, site, fetch, fault):
    site.publish(20261001, {"releases": CONTENT})
    site.plan(RELEASES, fault)
    fetch()
    assert in_folder(settings) == {RELEASES: CONTENT}


@pytest.mark.parametrize("fault", ["short", "cut"])
def test_a_run_goes_on_where_the_last_one_was_cut_off(settings, site, fetch, fault):
    if not site.ranges:
        pytest.skip("there is nothing to go on from")
    site.publish(20261001, {"releases": CONTENT})
    site.plan(RELEASES, "cut", "cut", "cut", fault)
    with pytest.raises(Unavailable, match="goes on from here"):
        fetch()
    assert RELEASES not in in_folder(settings)
    fetch()
    assert in_folder(settings) == {RELEASES: CONTENT}


def test_a_file_that_does_not_match_never_gets_its_name(settings, site, fetch):
    site.publish(20261001, {"releases": CONTENT})
    site.plan(RELEASES, *["corrupt"] * 3)
    with pytest.raises(BadData, match="SHA-256 does not match"):
        fetch()
    assert in_folder(settings) == {}
    assert asked(site).count(RELEASES) <= 3


def test_a_damaged_file_is_fetched_afresh(settings, site, fetch):
    site.publish(20261001, {"releases": CONTENT})
    site.plan(RELEASES, "corrupt")
    fetch()
    assert in_folder(settings) == {RELEASES: CONTENT}


@pytest.mark.parametrize("file", ["index", "discogs_20261001_CHECKSUM.txt", RELEASES])
def test_a_page_with_status_200_is_not_taken_for_the_file(settings, site, fetch, file):
    site.publish(20261001, {"releases": CONTENT})
    site.plan(file, "html")
    with pytest.raises(Unavailable, match="answered with"):
        fetch()
    assert RELEASES not in in_folder(settings)
    assert fetch() == [RELEASES]


def test_a_pause_that_a_wrong_clock_noted_ends_with_it(site, fetch):
    site.publish(20261001, {"releases": CONTENT})
    site.plan("index", "429")
    with pytest.raises(TryLater):
        fetch("20271005")
    assert fetch() == [RELEASES]


def test_who_is_shut_out_for_an_hour_does_not_ask_for_an_hour(site, fetch, monkeypatch):
    site.publish(20261001, {"releases": CONTENT})
    site.plan("index", "429")
    with pytest.raises(TryLater, match=r"until 2026-10-05T00:59:3"):
        fetch()
    with pytest.raises(TryLater, match="asked us to wait until"):
        fetch()
    assert len(site.journal.since()) == 1
    assert fetch("20261006") == [RELEASES]


def test_a_pause_beyond_what_a_site_can_ask_for_is_no_pause(site, fetch, settings):
    """A clock that was a year ahead wrote it down, or a disk that was full."""
    site.publish(20261001, {"releases": CONTENT})
    settings.dump_dir.mkdir(parents=True)
    (settings.dump_dir / ".not-before").write_text("9" * 18)
    assert fetch() == [RELEASES]


def test_a_refused_address_is_told_at_once(site, fetch):
    site.plan("index", "403")
    with pytest.raises(Unavailable, match="refuses this address"):
        fetch()


def test_a_site_that_is_down_is_unavailable(site, fetch):
    site.publish(20261001, {"releases": CONTENT})
    site.plan(RELEASES, "503", "503", "503")
    with pytest.raises(Unavailable, match="HTTP 503"):
        fetch()
    site.close()
    with pytest.raises(Unavailable, match="the index"):
        fetch()


def test_an_empty_checksum_file_makes_no_month(site, fetch):
    site.publish(20261001, {"releases": CONTENT})
    site.publish_checksum(20261001, "")
    with pytest.raises(TryLater, match="does not name it yet"):
        fetch()


def test_a_reissued_file_is_not_pieced_together_from_two(settings, site, fetch):
    site.publish(20261001, {"releases": CONTENT})
    site.plan(RELEASES, "cut", "cut", "cut")
    with pytest.raises(Unavailable):
        fetch()
    other = gzip.compress(b"other" * 50_000)
    site.publish(20261001, {"releases": other})
    fetch()
    assert in_folder(settings) == {RELEASES: other}


def test_a_dump_of_the_future_is_not_the_newest_for_ever(site, fetch):
    site.publish(20261001, {"releases": CONTENT})
    site.publish(20261201, {"releases": CONTENT})
    assert fetch() == [RELEASES]


def test_an_upload_in_the_future_is_no_upload_after_every_fetch(settings, site, fetch):
    site.publish(20261001, {"releases": CONTENT}, modified=calendar.timegm((2099, 1, 1, 0, 0, 0)))
    fetch()
    assert (settings.dump_dir / RELEASES).stat().st_mtime <= clock.now()


def test_a_file_without_an_end_does_not_fill_the_disk(settings, site, fetch):
    site.publish(20261001, {"releases": CONTENT})
    page = site.index("data/2026/")
    site.index = lambda prefix: page.replace("300.1 kB", "100.1 kB")
    with pytest.raises(Unavailable, match="far more than its index says"):
        fetch()
    assert list(in_folder(settings).values()) == [b""]


def trickle(server: socket.socket, said: bytes, rest: bytes, pause_s: float) -> None:
    """Say something to whoever connects, then the rest again and again, for ten seconds."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65_536)
                connection.sendall(said)
                ends = time.monotonic() + 10
                while time.monotonic() < ends:
                    connection.sendall(rest)
                    time.sleep(pause_s)


@pytest.mark.parametrize(
    ("said", "rest", "pause_s", "why"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n<pre>", b" ", 0.02, "the index: Read timed out"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"a", 0.02, "the index: Read timed out"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.02, "the index: Read timed out"),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", b"a" * 65_536, 0, "redirects us too often"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
            b"a",
            1,
            "the index: No host",
        ),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n", b"a", 1, "the index: "),
    ],
    ids=["body", "header", "continue", "endless redirect", "file", "nonsense"],
)
def test_a_hostile_site_does_not_hold_us(
    settings, monkeypatch, said: bytes, rest: bytes, pause_s: float, why: str
):
    """Neither by its slowness nor with a body that nobody wants."""
    monkeypatch.setattr(download, "PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        hostile = (server, said, rest, pause_s)
        threading.Thread(target=trickle, args=hostile, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        mine = settings.__class__(**{**vars(settings), "dump_site": url})
        started = time.monotonic()
        with pytest.raises(Unavailable, match=why):
            download.fetch(mine, ["releases"], None)
        assert time.monotonic() - started < 5


def test_from_tls_nobody_sends_us_to_where_anybody_can_answer(settings, tmp_path, monkeypatch):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-out", certificate, "-keyout", key]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Site() as site, socket.create_server(("localhost", 0)) as server:
        said = f"HTTP/1.1 302 Found\r\nLocation: {site.url}\r\n\r\n".encode()
        secure = context.wrap_socket(server, server_side=True)
        hostile = (secure, said, b"", 10)
        threading.Thread(target=trickle, args=hostile, daemon=True).start()
        url = f"https://localhost:{secure.getsockname()[1]}/"
        mine = settings.__class__(**{**vars(settings), "dump_site": url})
        with pytest.raises(Unavailable, match="redirects us to an address without TLS"):
            download.fetch(mine, ["releases"], None)
        assert not site.journal.since()
        secure.close()


def test_old_dumps_and_what_is_named_after_them_are_removed(settings):
    settings.dump_dir.mkdir(parents=True)
    dates = ("20260801", "20260901", "20261001")
    for date in dates:
        for end in ("", ".hashes"):
            (settings.dump_dir / f"discogs_{date}_releases.xml.gz{end}").touch()
    (settings.dump_dir / f".discogs_{dates[0]}_releases.xml.gz.0badc0de.part").touch()
    (settings.dump_dir / f"discogs_{dates[0]}_labels.xml.gz").touch()
    (settings.dump_dir / f"discogs_{dates[0]}_releases.xml.gz.d").mkdir()
    (settings.dump_dir / f"a-copy-of-discogs_{dates[0]}_releases.xml.gz").touch()
    download.remove_old(settings.dump_dir, "releases", 2, [])
    assert sorted(path.name for path in settings.dump_dir.iterdir()) == [
        "a-copy-of-discogs_20260801_releases.xml.gz",
        "discogs_20260801_labels.xml.gz",
        "discogs_20260801_releases.xml.gz.d",
        "discogs_20260901_releases.xml.gz",
        "discogs_20260901_releases.xml.gz.hashes",
        "discogs_20261001_releases.xml.gz",
        "discogs_20261001_releases.xml.gz.hashes",
    ]


def test_a_killed_download_is_resumed(environment: dict[str, str], tmp_path: Path) -> None:
    content = gzip.compress(os.urandom(2_000_000), 1)
    with Site(ranges=True) as site:
        site.publish(20261001, {"releases": content})
        site.chunk_s = 0.01
        command = [sys.executable, str(ROOT / "bin" / "download_dump.py")]
        command += ["--dump-site", site.url, "--date", "20261001"]
        folder = tmp_path / "state" / "dumps"
        with subprocess.Popen(command, env=environment) as process:
            deadline = time.monotonic() + 30
            while not any(p.stat().st_size > 0 for p in folder.glob(".*.part")):
                assert time.monotonic() < deadline
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        assert [path.suffix for path in folder.iterdir()] == [".part"]
        site.chunk_s = 0
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        assert (folder / RELEASES).read_bytes() == content
        assert len(list(folder.iterdir())) == 1


def test_the_script_prints_paths_and_nothing_else(run: Run, tmp_path: Path) -> None:
    with Site() as site:
        site.publish(20261001, {"releases": CONTENT, "labels": CONTENT})
        arguments = ["--date", "20261001", "--dump-site", site.url, "labels", "releases"]
        done = run("download_dump.py", *arguments)
    folder = tmp_path / "state" / "dumps"
    assert done.stdout == f"{folder}/discogs_20261001_labels.xml.gz\n{folder}/{RELEASES}\n"
    assert (done.stderr, done.returncode) == ("", 0)


def test_an_old_dump_that_was_asked_for_stays(run: Run, tmp_path: Path) -> None:
    with Site() as site:
        for date in ("20260801", "20260901", "20261001"):
            site.publish(int(date), {"releases": CONTENT})
        for date in ("20261001", "20260901", "20260801"):
            done = run("download_dump.py", "--dump-site", site.url, "--date", date)
            assert Path(done.stdout.strip()).exists()


def test_bad_arguments_are_refused_in_one_line(run: Run) -> None:
    for arguments in (
        ["vinyl"],
        ["--date", "soon"],
        ["--date", "20261332"],
        ["--keep", "0"],
        ["--date", "19991201"],
    ):
        done = run("download_dump.py", *arguments)
        assert done.returncode == 64
        assert done.stderr.count("\n") == 1
        assert arguments[-1] in done.stderr


def test_a_second_run_waits_until_the_first_has_ended(environment) -> None:
    with Site() as site:
        site.publish(20261001, {"releases": CONTENT})
        site.plan(RELEASES, "hang")
        command = [sys.executable, str(ROOT / "bin" / "download_dump.py"), "--date", "20261001"]
        command += ["--dump-site", site.url]
        with subprocess.Popen(command, env=environment) as first:
            deadline = time.monotonic() + 30
            while RELEASES not in asked(site):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with subprocess.Popen(
                [*command, "-v"], env=environment, stderr=subprocess.PIPE, text=True
            ) as second:
                assert second.stderr is not None
                is_waiting = f"already running as process {first.pid}: waiting"
                assert is_waiting in second.stderr.readline()
                first.kill()
                assert second.wait(60) == 0
