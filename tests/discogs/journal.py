"""Every request that a stand-in got, with its time."""

import threading
import time
from bisect import bisect_right
from typing import NamedTuple


class Request(NamedTuple):
    """One request; `kind` and `id` are empty and 0 where it did not ask for a record."""

    number: int
    wall: float
    """Epoch seconds at arrival."""
    monotonic: float
    client: str
    path: str
    kind: str
    id: int
    status: int
    """What was answered; 0 if nothing was."""
    fault: str
    token: bool
    agent: str


class Journal:
    """The requests in order of arrival."""

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._lock = threading.Lock()

    def note(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request._replace(number=len(self._requests)))

    def since(self, number: int = 0) -> list[Request]:
        """Those from the given number on, as of now."""
        with self._lock:
            return sorted(self._requests[number:], key=lambda request: request.monotonic)

    def asked(self, kind: str = "releases") -> list[int]:
        """The ids that were asked for, as often as they were."""
        return [request.id for request in self.since() if request.kind == kind]

    def clear(self) -> None:
        with self._lock:
            self._requests.clear()


def busiest(requests: list[Request], window_s: float) -> int:
    """The most requests of one client in any rolling window."""
    most = 0
    for client in {request.client for request in requests}:
        times = sorted(request.monotonic for request in requests if request.client == client)
        for index, start in enumerate(times):
            most = max(most, bisect_right(times, start + window_s - 1e-9) - index)
    return most


def arrived(client: str, path: str, agent: str, *, token: bool) -> Request:
    """A request that arrives now, of which the rest is not known yet."""
    return Request(0, time.time(), time.monotonic(), client, path, "", 0, 0, "", token, agent)
