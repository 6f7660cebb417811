"""When will it be done? The honest answer, by class."""

from collections.abc import Mapping, Sequence

from discogs_crawler.clock import DAY_S


def etas(
    classes: Sequence[str],
    backlog: Mapping[str, int],
    arriving: Mapping[str, float],
    per_day: float,
) -> dict[str, int | None]:
    """Seconds until all ids of each class that are due now will have been answered.

    A class is served when those above it are empty, so it waits for their backlog and for what
    joins them meanwhile. `per_day` answers come in a day. None: at this rate the classes above take
    everything, for ever. 0: nothing to do.
    """
    result: dict[str, int | None] = {}
    before, taken = 0, 0.0
    for reason in classes:
        own = backlog.get(reason, 0)
        before += own
        free = per_day - taken
        if own == 0:
            result[reason] = 0
        else:
            result[reason] = round(before / free * DAY_S) if free > 0 else None
        taken += arriving.get(reason, 0.0)
    return result
