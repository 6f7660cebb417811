"""Progress on stderr: on a terminal rate, share done and ETA; elsewhere nothing."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

# Seconds between two looks of a count.
LOOK_S = 0.2

# Columns of a terminal on which a bar, the share, the ETA and the rate fit one line. What does not
# fit is begun on a new line with every look.
WHOLE = 80
_NARROW = "%(label)s  %(info)s"


@contextlib.contextmanager
def bar(label: str, total: int, unit: str, scale: float = 1) -> Iterator[Callable[[int], None]]:
    """Show how much of `total` is done; the block calls the function with what it did since.

    `unit` and `scale` are for the rate: `bar("split", size, "MB/s", 1e6)` counts bytes. A `total`
    of 0 is not known, and nothing is shown.
    """
    if not total or not sys.stderr.isatty():
        yield lambda done: None
        return
    # Only a terminal waits for it: scripts that cron starts need not.
    import click

    started = time.monotonic()
    finished = 0
    with click.progressbar(
        length=total,
        label=label,
        file=sys.stderr,
        update_min_steps=max(1, total // 1000),
        show_eta=_columns() >= WHOLE,
        bar_template="%(label)s  [%(bar)s]  %(info)s" if _columns() >= WHOLE else _NARROW,
        item_show_func=lambda rate: rate,
    ) as shown:

        def advance(done: int) -> None:
            nonlocal finished
            finished += done
            rate = finished / scale / max(time.monotonic() - started, 0.001)
            shown.update(done, f"{rate:,.0f} {unit}")

        yield advance


@contextlib.contextmanager
def count(label: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Show how much is done if the total is not known; otherwise as `bar`.

    Nothing is shown if stdout is a terminal too: the output there shows enough.
    """
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield lambda done: None
        return
    started = shown = time.monotonic()
    finished = 0
    width = min(_columns(), WHOLE) - 1

    def advance(done: int) -> None:
        nonlocal finished, shown
        finished += done
        now = time.monotonic()
        if now - shown > LOOK_S:
            shown = now
            rate = finished / (now - started)
            line = f"{label}  {finished:,} {unit}  {rate:,.0f} {unit}/s"
            print(f"\r{line[:width]:<{width}}", end="", file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        if shown != started:
            print(f"\r{'':<{width}}\r", end="", file=sys.stderr, flush=True)


def _columns() -> int:
    return os.get_terminal_size(sys.stderr.fileno()).columns or WHOLE
