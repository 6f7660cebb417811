"""When a worker that runs for ever has to end: a signal, or a time that has passed."""

import logging
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

log = logging.getLogger(__name__)

# Signals that ask a script to end. Each script blocks them until it listens: until then it has done
# nothing, but would end with an exit code that is not documented. The last is ours.
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)

# How long, when it is time to end, we still wait for a remote: a batch takes a second or two.
GRACE_S = 5

# Python swallows what a handler raises in a finalizer (`__del__`): then it is raised again so much
# later, until it is heard.
AGAIN_S = 0.01

# How often a sleeper looks. An event would wake it at once, but its lock may be held by the very
# thread that the signal interrupts.
LOOK_S = 0.05


def listen(handler: Callable[[int, FrameType | None], None]) -> None:
    """Let `handler` get the signals that ask us to end, also those sent before this call.

    What our parent process ignores (nohup) stays ignored.
    """

    def heard(number: int, frame: FrameType | None) -> None:
        sys.unraisablehook = _ask_again
        handler(number, frame)

    for number in ASKING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, heard)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)


def _ask_again(swallowed: "sys.UnraisableHookArgs") -> None:
    # Anything else is about an object that the interrupt has left half made.
    if swallowed.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)


class Stop:
    """Asked for by SIGTERM, Ctrl-C or a closed terminal, or because the time is up.

    A second signal raises KeyboardInterrupt wherever the main thread is.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self._asked = False
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._grace_until: float | None = None

    def __bool__(self) -> bool:
        return self._asked or self._left(1) <= 0

    def ask(self) -> None:
        """It is time to end."""
        self._asked = True

    def wait(self, seconds: float) -> bool:
        """Sleep; True, almost at once, when it is time to end."""
        until = time.monotonic() + seconds
        while not self and (left := until - time.monotonic()) > 0:
            time.sleep(min(LOOK_S, left))
        return bool(self)

    def is_overdue(self) -> bool:
        """Whether even what is under way is to be given up now.

        For those who wait for somebody else to ask, again and again: it is from GRACE_S after
        the first who asked when it was time to end.
        """
        if not self:
            return False
        if self._grace_until is None:
            self._grace_until = time.monotonic() + GRACE_S
        return time.monotonic() >= self._grace_until

    def listen(self) -> None:
        """Take over the signals."""
        listen(self._on_signal)

    def _left(self, at_most: float) -> float:
        if self._deadline is None:
            return at_most
        return min(at_most, self._deadline - time.monotonic())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        log.info("%s: finishing what is under way", signal.Signals(number).name)
