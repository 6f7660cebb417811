"""Redis behind TLS, with the user of the README who may do only what the crawler needs."""

import contextlib
import re
import select
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from discogs_crawler.broker import private_server
from discogs_crawler.errors import EXIT_CONFIGURATION, EXIT_DONE
from tests.conftest import ROOT, Run
from tests.discogs import dump
from tests.discogs.api import Api
from tests.discogs.quota import Quota
from tests.discogs.world import invented
from tests.machines import wait_until

PASSWORD = "Hk7-qWzR4tYp"

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")


class Certificate(NamedTuple):
    """One that signs itself, for 127.0.0.1."""

    key: Path
    pem: Path


def make_certificate(folder: Path, name: str) -> Certificate:
    made = Certificate(folder / f"{name}.key", folder / f"{name}.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += [
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=first",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    command += ["-keyout", str(made.key), "-out", str(made.pem)]
    subprocess.run(command, check=True, capture_output=True)
    return made


def options_of_the_readme() -> list[str]:
    """The lines of redis.conf that the README shows, as flags of the server."""
    text = (ROOT / "README.md").read_text()
    [block] = re.findall(r"```text\n(\s+bind 127\.0\.0\.1\n.*?)```", text, re.DOTALL)
    options: list[str] = []
    for line in block.strip().splitlines():
        name, *values = line.replace("LONG-PASSWORD", PASSWORD).split()
        options += [f"--{name}", *values]
    return options


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a server that is configured as the README says."""
    folder = tmp_path_factory.mktemp("redis")
    path = folder / "redis.sock"
    command = [str(private_server.find_server()), "--port", "0", "--unixsocket", str(path)]
    command += ["--dir", str(folder), *options_of_the_readme()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        wait_until(path.exists, lambda: "redis-server does not start")
        yield path
        running.kill()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "server")


@pytest.fixture(scope="module")
def tls_port(server: Path, certificate: Certificate) -> Iterator[int]:
    """A TLS listener before that server: not every build of Redis has its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.pem, certificate.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = (listener, context, server)
        threading.Thread(target=_accept, args=arguments, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, context: ssl.SSLContext, server: Path) -> None:
    with contextlib.suppress(OSError):
        while True:
            near, _ = listener.accept()
            threading.Thread(target=_serve, args=(near, context, server), daemon=True).start()


def _serve(near: socket.socket, context: ssl.SSLContext, server: Path) -> None:
    """Hand on what comes, in one thread: a TLS connection may not be used by two."""
    with contextlib.suppress(OSError), near, socket.socket(socket.AF_UNIX) as far:
        with context.wrap_socket(near, server_side=True) as client:
            far.connect(str(server))
            while True:
                ready = [client] if client.pending() else select.select([client, far], [], [])[0]
                for source in ready:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    (far if source is client else client).sendall(data)


def url(port: int, ca: Path, password: str = PASSWORD) -> str:
    return f"rediss://crawler:{password}@127.0.0.1:{port}/0?ssl_ca_certs={ca}"


@pytest.fixture
def api() -> Iterator[Api]:
    with Api(invented(8), Quota(50_000, 50_000, 1)) as api:
        yield api


def test_the_user_of_the_readme_may_do_all_that_the_scripts_do(
    tmp_path: Path, run: Run, api: Api, tls_port: int, certificate: Certificate
) -> None:
    settings = {
        "REDIS_URL": url(tls_port, certificate.pem),
        "DISCOGS_API": api.url,
        "RATE_WINDOW_S": "2",
        "COMMIT_SECONDS": "0.2",
    }
    target = tmp_path / "discogs_20261101_releases.xml.gz"
    dump.write(target, api.world, "releases")
    for script, *arguments in (
        ("discogs_xml_split.py", "-d", target, "-r", tmp_path / "hashes"),
        ("worker.py", "--check"),
        ("seed_queue.py", "-n", tmp_path / "hashes"),
        ("seed_queue.py", "--ids", "1"),
        ("worker.py", "--until-empty"),
        ("worker.py", "--until-empty", "--branch", "a", "--segments", "0"),
        ("seed_queue.py",),
        ("stats.py",),
        ("maintain_store.py",),
        ("maintain_store.py", "--check"),
    ):
        done = run(script, *arguments, **settings)
        assert done.returncode == EXIT_DONE, f"{script} {arguments}\n{done.stdout}{done.stderr}"
        assert PASSWORD not in done.stdout + done.stderr
    assert sorted(set(api.journal.asked())) == sorted(api.world.alive["releases"])


def test_a_wrong_certificate_and_a_wrong_password_are_told_in_a_line(
    tmp_path: Path, run: Run, api: Api, tls_port: int, certificate: Certificate
) -> None:
    stranger = make_certificate(tmp_path, "stranger")
    for address, words in (
        (url(tls_port, stranger.pem), "a certificate that we do not trust"),
        (url(tls_port, tmp_path / "missing.pem"), "ssl_ca_certs"),
        (url(tls_port, certificate.pem, "wrong-9431"), "refuses the user or the password"),
    ):
        done = run("worker.py", REDIS_URL=address, DISCOGS_API=api.url)
        assert done.returncode == EXIT_CONFIGURATION, done.stderr
        [line] = done.stderr.splitlines()
        assert words in line
        assert "wrong-9431" not in line
        assert PASSWORD not in line
