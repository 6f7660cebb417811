"""What the API and the dump site have in common: a server that runs in a thread of its own."""

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

# A hanging request is let go of when the server stops, at the latest after this.
HANG_S = 600


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is no reason to print anything."""


class Loopback:
    """Answers from the moment it is made until it is closed. Also a context manager."""

    def __init__(
        self,
        handler: type[BaseHTTPRequestHandler],
        host: str,
        port: int,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        """Each request's handler has this server as `owner`."""
        self.stopping = threading.Event()
        owned = type("Handler", (handler,), {"owner": self})
        self._server = _Threads((host, port), owned)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme, name = "https" if certificate else "http", "localhost" if certificate else host
        self.port = self._server.server_address[1]
        self.url = f"{scheme}://{name.replace('0.0.0.0', '127.0.0.1')}:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()

    def hang(self) -> None:
        """Say nothing until the server stops."""
        self.stopping.wait(HANG_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
