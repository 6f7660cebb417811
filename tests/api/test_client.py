"""What each answer of the API means, row by row, against a server that gives it."""

import contextlib
import gzip
import logging
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from discogs_crawler import config
from discogs_crawler.api import exact_json
from discogs_crawler.api.client import Answer, Client
from discogs_crawler.cli import logs
from discogs_crawler.errors import BadData, ConfigurationError
from tests.discogs.api import Api
from tests.discogs.quota import Quota
from tests.discogs.world import KINDS, invented

TOKEN = "kzQmXvWpLrTsYb"
WINDOW_S = "0.6"


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with Api(invented(20, KINDS), Quota(10_000, 10_000, 1)) as server:
        yield server


def client_of(url: str, **extra: str) -> Client:
    environment = {
        "ENV_FILE": "/dev/null",
        "STATE_DIR": "/nonexistent",
        "DISCOGS_API": url,
        "DISCOGS_TOKEN": TOKEN,
        "RATE_WINDOW_S": WINDOW_S,
    }
    return Client(config.load(environ=environment | extra))


@pytest.fixture(scope="module")
def client(api: Api) -> Client:
    return client_of(api.url)


def first(api: Api, kind: str = "releases") -> int:
    return min(api.world.alive[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_comes_with_what_is_left_of_the_quota(api: Api, client: Client, kind: str) -> None:
    answer = client.fetch(kind, first(api, kind))
    assert (answer.outcome, answer.status, answer.reason) == ("record", 200, "")
    assert answer.document is not None
    assert answer.document["id"] == str(first(api, kind))
    assert answer.limit == 10_000
    assert answer.remaining is not None
    assert answer.remaining < 10_000


@pytest.mark.parametrize(
    ("fault", "outcome", "status", "reason"),
    [
        ("html", "transient", 200, "HTTP 200 with an HTML page"),
        ("empty", "transient", 200, "HTTP 200 with an empty body"),
        ("cut", "transient", 200, "HTTP 200 with a body that was cut off"),
        ("cut-json", "transient", 200, "HTTP 200 with a body of "),
        ("not-gzip", "transient", 200, "HTTP 200 with a body that is not the gzip it claims to be"),
        ("flood", "transient", 200, "HTTP 200 with a body of more than 4 MB"),
        ("hang-body", "transient", 200, "HTTP 200 with no answer in time"),
        ("wrong-id", "transient", 200, "HTTP 200 with the id "),
        ("500", "transient", 500, "HTTP 500: An internal server error"),
        ("502", "transient", 502, "HTTP 502: The Discogs API is undergoing maintenance"),
        ("503-html", "transient", 503, "HTTP 503 with an HTML page"),
        ("520-html", "transient", 520, "HTTP 520 with an HTML page"),
        ("404-html", "transient", 404, "HTTP 404 with an HTML page"),
        ("404", "gone", 404, "HTTP 404: That release does not exist"),
        ("moved", "merged", 301, "merged into "),
        ("401", "refused", 401, "HTTP 401: Invalid consumer token"),
        ("403-json", "forbidden", 403, "HTTP 403: You don't have permission"),
        ("403-html", "blocked", 403, "HTTP 403 with an HTML page"),
        ("429", "too fast", 429, "HTTP 429: You are making requests too quickly."),
        ("429-empty", "too fast", 429, "HTTP 429 with an empty body"),
        ("odd-headers", "record", 200, ""),
        ("no-headers", "record", 200, ""),
    ],
)
def test_each_answer_has_its_meaning_and_the_next_is_not_harmed_by_it(
    api: Api, client: Client, fault: str, outcome: str, status: int, reason: str
) -> None:
    record_id = first(api)
    api.faults.plan("releases", record_id, fault)
    answer = client.fetch("releases", record_id)
    assert (answer.outcome, answer.status, answer.arrived) == (outcome, status, True)
    assert answer.reason.startswith(reason)
    assert "\n" not in answer.reason
    assert client.fetch("releases", record_id).outcome == "record"


def test_any_number_of_useless_bodies_leaves_connections_for_the_next(
    api: Api, client: Client
) -> None:
    record_id = first(api)
    api.faults.plan("releases", record_id, *["flood"] * 5)
    for _ in range(5):
        assert client.fetch("releases", record_id).outcome == "transient"
    assert client.fetch("releases", record_id).outcome == "record"


@pytest.mark.parametrize(
    ("fault", "reason"), [("hang", "no answer in time"), ("reset", "no connection: ")]
)
def test_without_any_answer_it_is_not_known_when_the_request_was_counted(
    api: Api, client: Client, fault: str, reason: str
) -> None:
    api.faults.plan("releases", first(api), fault)
    answer = client.fetch("releases", first(api))
    assert (answer.outcome, answer.status, answer.arrived) == ("transient", 0, False)
    assert answer.reason.startswith(reason)


def test_the_number_of_nothing_is_gone(client: Client) -> None:
    assert client.fetch("artists", 999_999_999).outcome == "gone"


def test_the_front_page_greets(client: Client) -> None:
    assert client.greet().outcome == "record"


def test_we_introduce_ourselves_and_show_the_token(api: Api, client: Client) -> None:
    client.fetch("releases", first(api))
    seen = api.journal.since()[-1]
    assert seen.token
    assert seen.agent.startswith("crawler_for_discogs/")


# Answers that the stand-in does not give ---------------------------------------------------------

Speak = Callable[[bytes], str]


@pytest.fixture
def speak() -> Iterator[Speak]:
    """A server that says given bytes to whoever connects, then closes."""
    with contextlib.ExitStack() as stack:

        def start(said: bytes) -> str:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def serve() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = server.accept()
                        with connection:
                            connection.recv(65_536)
                            connection.sendall(said)

            threading.Thread(target=serve, daemon=True).start()
            return f"http://127.0.0.1:{server.getsockname()[1]}"

        yield start


def http(status: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def told(speak: Speak, said: bytes, kind: str = "releases", record_id: int = 5) -> Answer:
    return client_of(speak(said)).fetch(kind, record_id)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"id": 5, "title": "t", "x": NaN}', "NaN is not JSON"),
        (b'{"id": "5", "title": "t"}', "the id 5, not 5"),
        (b'{"id": 5.0, "title": "t"}', "the id 5.0, not 5"),
        (b'{"title": "t"}', "the id None, not 5"),
        (b'{"id": 5, "name": "n"}', "an object that has no title: not one of the releases"),
        (b'{"id": "a\\nb\\ud800\\u001b", "title": "t"}', "the id a b\ufffd\ufffd, not 5"),
        (b'[{"id": 5}]', "JSON that is not an object"),
        (b'{"id": 5, "title": "t", "id": 5}', "a key occurs twice"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"id": 5, "title": "\xff"}', "not UTF-8"),
    ],
)
def test_what_is_not_the_record_is_no_record(speak: Speak, body: bytes, why: str) -> None:
    answer = told(speak, http("200 OK", body))
    assert answer.outcome == "transient"
    assert why in answer.reason


def test_a_label_is_not_taken_for_an_artist(speak: Speak) -> None:
    body = b'{"id": 5, "name": "n", "resource_url": "https://api.discogs.com/labels/5"}'
    assert told(speak, http("200 OK", body), "labels").outcome == "record"
    answer = told(speak, http("200 OK", body), "artists")
    assert answer.reason == "HTTP 200 with one of the labels, not of the artists"


@pytest.mark.parametrize(
    ("location", "successor"),
    [
        ("/releases/7", 7),
        ("https://api.discogs.com/releases/7?x=1", 7),
        ("https://www.discogs.com/release/7-Some-Title", 7),
        ("/releases/5", 0),
        ("/masters/7", 0),
        ("/login", 0),
        ("/releases/99999999999", 0),
        ("http://[", 0),
        ("", 0),
    ],
)
@pytest.mark.parametrize("status", [301, 302, 308])
def test_only_a_redirect_to_another_record_of_the_kind_is_a_merger(
    speak: Speak, status: int, location: str, successor: int
) -> None:
    answer = told(speak, http(f"{status} Elsewhere", Location=location))
    assert (answer.outcome, answer.successor) == (
        ("merged", successor) if successor else ("transient", 0)
    )


@pytest.mark.parametrize(
    ("headers", "counts"),
    [
        ({"X_Discogs_Ratelimit": "60", "X_Discogs_Ratelimit_Remaining": "7"}, (60, 7)),
        ({"x_discogs_ratelimit": "25", "x_discogs_ratelimit_remaining": " 0 "}, (25, 0)),
        ({"X_Discogs_Ratelimit": "60"}, (None, None)),
        ({"X_Discogs_Ratelimit": "0", "X_Discogs_Ratelimit_Remaining": "0"}, (None, None)),
        ({"X_Discogs_Ratelimit": "60", "X_Discogs_Ratelimit_Remaining": "61"}, (None, None)),
        ({"X_Discogs_Ratelimit": "-1", "X_Discogs_Ratelimit_Remaining": "x"}, (None, None)),
        ({"X_Discogs_Ratelimit": "60", "X_Discogs_Ratelimit_Remaining": "\x1c 5"}, (None, None)),
        ({"X_Discogs_Ratelimit": "9" * 50, "X_Discogs_Ratelimit_Remaining": "1"}, (None, None)),
    ],
)
def test_the_quota_is_believed_only_in_plain_numbers(
    speak: Speak, headers: dict[str, str], counts: tuple[int | None, int | None]
) -> None:
    answer = told(speak, http("404 Not Found", b'{"message": "no"}', **headers))
    assert answer.outcome == "gone"
    assert (answer.limit, answer.remaining) == counts


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("120", 120.0), ("soon", None), ("-5", None), ("\x1c 5", None), ("", None)],
)
def test_retry_after_is_read_where_it_is_a_number(
    speak: Speak, text: str, seconds: float | None
) -> None:
    answer = told(speak, http("429 Too Many Requests", Retry_After=text))
    assert answer.retry_after_s == seconds


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nX-Discogs-"])
def test_what_is_not_http_is_a_failure_like_any_other(speak: Speak, said: bytes) -> None:
    answer = told(speak, said)
    assert answer.outcome == "transient"
    assert len(answer.reason) < 200


def test_malformed_headers_are_no_news_for_the_terminal(
    speak: Speak, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        logs.configure("worker.py")
        answer = told(speak, b"HTTP/1.1 404 X\r\nBro\x00ken\r\nContent-Length: 2\r\n\r\n{}")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert answer.status == 404
    assert capsys.readouterr().err == ""


def test_a_server_that_repeats_the_token_does_not_get_it_into_our_logs(speak: Speak) -> None:
    body = f'{{"message": "bad header: Discogs token={TOKEN}"}}'.encode()
    assert told(speak, http("500 Oops", body)).reason == "HTTP 500: bad header: Discogs token=***"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nX-Discogs: ", b"a"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (CHUNKED + b"1;", b"a"),
        (CHUNKED + b"0\r\n", b"X-Trailer: a\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", gzip.compress(b"")),
    ],
    ids=["body", "header", "continue", "chunk", "trailer", "gzip"],
)
def test_an_endless_trickle_ends(first: bytes, rest: bytes) -> None:
    """Each piece comes in time; the whole never would, and would hold the worker for ever."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def trickle() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65_536)
                connection.sendall(first)
                while not ended.wait(0.02):
                    connection.sendall(rest)

        threading.Thread(target=trickle, daemon=True).start()
        threading.Timer(10, ended.set).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        answer = client_of(url).fetch("releases", 5)
        assert not ended.is_set()
        ended.set()
    assert answer.reason.endswith("no answer in time")


def test_an_early_hint_does_not_leave_its_answer_to_the_next_request() -> None:
    """That would be the 404 of another id."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65_536)
                    connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
                    if connection.recv(65_536):  # what belongs to the first comes now
                        connection.sendall(http("404 Not Found", b'{"message": "no"}'))

        threading.Thread(target=serve, daemon=True).start()
        client = client_of(f"http://127.0.0.1:{server.getsockname()[1]}")
        verdicts = [client.fetch("releases", number).outcome for number in (5, 6)]
    assert verdicts == ["transient", "transient"]


@pytest.mark.parametrize(
    "said",
    [
        http("500 Oops", b'{"message": "%b"}' % (b"x" * 190 + TOKEN.encode())),
        http("302 Found", Location=f"/{'x' * 70}{TOKEN}"),
        http("200 OK", b'{"id": 5, "title": "%b"}' % TOKEN.encode()),
    ],
    ids=["message", "location", "record"],
)
def test_no_part_of_a_repeated_token_is_told_or_stored(speak: Speak, said: bytes) -> None:
    answer = told(speak, said)
    assert answer.outcome == "transient"
    assert TOKEN[:8] not in answer.reason


def test_a_small_answer_cannot_take_all_memory(speak: Speak) -> None:
    many = b'{"id": 5, "title": "t", "x": [%b0]}' % (b"{}," * 1_000_000)
    assert "more values than a record has" in told(speak, http("200 OK", many)).reason
    deep = b'{"id": 5, "title": "t", "x": %b%b}' % (b"[" * 100, b"]" * 100)
    document = told(speak, http("200 OK", deep)).document
    with pytest.raises(BadData, match="too deeply"):
        exact_json.dumps(document)


# The way there -----------------------------------------------------------------------------------


def test_nobody_listens(speak: Speak) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    answer = client_of(f"http://127.0.0.1:{port}").fetch("releases", 5)
    assert answer == Answer("transient", reason="no connection: Connection refused", arrived=False)


def test_a_name_that_does_not_resolve_is_a_failure_like_any_other() -> None:
    answer = client_of("https://api.discogs.invalid").fetch("releases", 5)
    assert answer.outcome == "transient"
    assert answer.reason == "no address found for the host's name"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    found = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-out", found[0], "-keyout", found[1]),
        ],
        check=True,
        capture_output=True,
    )
    return found


def test_tls_is_verified(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with Api(invented(3), certificate=certificate) as server:
        answer = client_of(server.url).fetch("releases", 1)
        assert answer.outcome == "transient"
        assert answer.reason == "TLS failed: self-signed certificate"
        assert not server.journal.since(), "the token has not been sent"

        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        assert client_of(server.url).fetch("releases", 1).status in (200, 404)

        other_name = server.url.replace("localhost", "127.0.0.1")
        reason = client_of(other_name).fetch("releases", 1).reason
        assert reason.startswith("TLS failed: ")
        assert "127.0.0.1" in reason


def test_ipv6_works() -> None:
    with socket.socket(socket.AF_INET6) as server:
        try:
            server.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(http("404 Not Found", b'{"message": "no"}'))

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://[::1]:{server.getsockname()[1]}"
        assert client_of(url).fetch("releases", 5).outcome == "gone"


@pytest.mark.parametrize(
    "url", ["http://api.discogs.com", "http://10.0.0.1:80", "http://127.0.0.1.example.com"]
)
def test_the_token_does_not_travel_in_the_clear(url: str) -> None:
    with pytest.raises(ConfigurationError, match="in the clear") as caught:
        client_of(url)
    assert TOKEN not in str(caught.value)
    client_of(url, DISCOGS_TOKEN="")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "[::1]"])
def test_to_this_machine_itself_the_token_may_go_in_the_clear(host: str) -> None:
    client_of(f"http://{host}:1234/api")


@pytest.mark.parametrize(
    "url", ["https://me:secret@api.discogs.com", "https://x:99999999", "https://x/?a=b"]
)
def test_an_address_is_an_address(url: str) -> None:
    with pytest.raises(ConfigurationError, match="DISCOGS_API") as caught:
        client_of(url)
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize("token", ["kzQm XvWp", "kzQm\r\nX-Evil: 1", "kzQmé"])
def test_a_token_that_cannot_be_one_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ConfigurationError, match="DISCOGS_TOKEN") as caught:
        client_of("https://api.discogs.com", DISCOGS_TOKEN=token)
    assert "kzQm" not in str(caught.value)
