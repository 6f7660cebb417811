"""When a worker that runs for ever should end: a signal, or a time that has passed."""

import logging
import signal
import threading
import time
from types import FrameType

log = logging.getLogger(__name__)


class Stop:
    """Asked for by SIGTERM, Ctrl-C or a closed terminal, or because the time is up.

    A second signal raises KeyboardInterrupt wherever the main thread is.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self._asked = threading.Event()
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds

    def __bool__(self) -> bool:
        return self._asked.is_set() or self._left(1) <= 0

    def wait(self, seconds: float) -> bool:
        """Sleep; True, at once, when it is time to end."""
        self._asked.wait(max(0, self._left(seconds)))
        return bool(self)

    def listen(self) -> None:
        """Take over the signals; one that our starter ignores (nohup) stays ignored."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _left(self, at_most: float) -> float:
        if self._deadline is None:
            return at_most
        return min(at_most, self._deadline - time.monotonic())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked.is_set():
            raise KeyboardInterrupt
        self._asked.set()
        log.info("%s: finishing what is under way", signal.Signals(number).name)
