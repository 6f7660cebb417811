"""HTTP answers that end: a server may be slow, but not for ever.

urllib3's timeouts are for one read, and are never reached by a server that sends a byte now and
then, or without a pause what is no content: `100 Continue`, trailers, empty members of gzip.
"""

import http.client
import io
import math
import time
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class _Paced(io.RawIOBase):
    """The bytes of one answer from a socket; TimeoutError if they take too long."""

    def __init__(self, raw: io.RawIOBase, patience_s: float) -> None:
        self._raw, self._patience_s = raw, patience_s
        self._until, self._count, self._total = time.monotonic() + patience_s, 0, 0
        self.least_b = self.most_b = math.inf

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int | None:
        now = time.monotonic()
        if now > self._until:
            if self._count < self.least_b:
                raise TimeoutError("too slow")
            self._until, self._count = now + self._patience_s, 0
        if self._total > self.most_b:
            raise TimeoutError("endless")
        count: int | None = self._raw.readinto(target)
        self._count += count or 0
        self._total += count or 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def pools(
    patience_s: float, least_b: float = math.inf, most_b: float = math.inf
) -> dict[str, type[HTTPConnectionPool]]:
    """By scheme, pools whose answers take `patience_s` at most, and a read's timeout.

    Once its headers have arrived an answer may go on as long as `least_b` bytes arrive in each
    `patience_s`, up to `most_b` in all.
    """

    class Response(http.client.HTTPResponse):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._paced = _Paced(self.fp.detach(), patience_s)
            self.fp = io.BufferedReader(self._paced)

        def begin(self) -> None:
            super().begin()
            self._paced.least_b, self._paced.most_b = least_b, most_b

    class Plain(HTTPConnection):
        response_class = Response

    class Secure(HTTPSConnection):
        response_class = Response

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
