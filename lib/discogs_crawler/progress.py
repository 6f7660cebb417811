"""Progress bars on stderr: on a terminal rate, ETA and share done; elsewhere nothing."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import click


@contextlib.contextmanager
def bar(label: str, total: int, unit: str, scale: float = 1) -> Iterator[Callable[[int], None]]:
    """Show how much of `total` is done; the block calls the function with what it did since.

    `unit` and `scale` are for the rate: `bar("split", size, "MB/s", 1e6)` counts bytes.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    started = time.monotonic()
    finished = 0
    with click.progressbar(
        length=total,
        label=label,
        file=sys.stderr,
        update_min_steps=max(1, total // 1000),
        item_show_func=lambda rate: rate,
    ) as shown:

        def advance(done: int) -> None:
            nonlocal finished
            finished += done
            rate = finished / scale / max(time.monotonic() - started, 0.001)
            shown.update(done, f"{rate:,.0f} {unit}")

        yield advance
