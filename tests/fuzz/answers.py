"""An API that sends given bytes, whatever they are, and the real client that asks it."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from discogs_crawler import config
from discogs_crawler.api.client import Answer, Client

TOKEN = "kzQmXvWpLrTsYb"
# Seconds in the rate window; a request has all of it for its body, half for each silence.
WINDOW_S = 2

RECORD = (
    b'{"id": 5, "title": "T", "resource_url": "https://api.discogs.com/releases/5",'
    b' "labels": [{"id": 7, "name": "n"}], "message": "x"}'
)
QUOTA = b"X-Discogs-Ratelimit: 60\r\nX-Discogs-Ratelimit-Remaining: 59\r\n"
STATUSES = (b"200 OK", b"200 OK", b"404 Not Found", b"403 Forbidden", b"429 X", b"500 X", b"301 X")

Tell = Callable[[bytes], Answer]


def reply(status: bytes, body: bytes, headers: bytes = QUOTA) -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, headers, len(body), body)


@contextlib.contextmanager
def listener() -> Iterator[Tell]:
    """The answer of a client that asked for release 5 and was sent given bytes."""
    said = [b""]
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_speak, args=(server, said), daemon=True).start()
        client = _client_of(server.getsockname()[1])

        def ask(new: bytes) -> Answer:
            said[0] = new
            return client.fetch("releases", 5)

        yield ask
        client.close()


def _speak(server: socket.socket, said: list[bytes]) -> None:
    """Send what is in `said` to whoever asks, then hang up."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65_536)
                connection.sendall(said[0])


def _client_of(port: int) -> Client:
    environment = {
        "ENV_FILE": "/dev/null",
        "STATE_DIR": "/nonexistent",
        "DISCOGS_API": f"http://127.0.0.1:{port}",
        "DISCOGS_TOKEN": TOKEN,
        "RATE_WINDOW_S": str(WINDOW_S),
    }
    return Client(config.load(environ=environment))
