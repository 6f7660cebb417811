"""What Redis's errors mean for the user, and how long to wait until it is back."""

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import redis
from redis.backoff import AbstractBackoff, ExponentialBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError
from redis.retry import Retry

from discogs_crawler.errors import ConfigurationError, CrawlerError, Unavailable

log = logging.getLogger(__name__)

# Enough for a restart of the server, or a failover to a replica.
PATIENCE_S = 20

# A server that answers that it is loading its file deserves more: 1 GB takes about 10 s.
LOADING_PATIENCE_S = 180

# Error code (in scripts it stands somewhere in the text), what to raise, what to say. Classes of
# redis-py lose the code from the text, so they are named beside it.
_MEANINGS: tuple[tuple[str, tuple[str, ...], type[CrawlerError], str], ...] = (
    (
        "WRONGPASS|NOAUTH",
        ("AuthenticationError", "AuthorizationError", "AuthenticationWrongNumberOfArgsError"),
        ConfigurationError,
        "refuses the user or the password of REDIS_URL",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED\] certificate verify failed",
        (),
        ConfigurationError,
        "shows a certificate that we do not trust ({detail}); name the one of its CA: "
        "REDIS_URL=rediss://...?ssl_ca_certs=FILE",
    ),
    (
        "NOPERM",
        ("NoPermissionError",),
        ConfigurationError,
        "does not let the user of REDIS_URL do this: {detail}",
    ),
    (
        "READONLY",
        ("ReadOnlyError",),
        ConfigurationError,
        "is a read-only replica; REDIS_URL must name the primary",
    ),
    (
        # What Lua and Redis say of a value in which a script finds no number and no such word.
        "FOREIGN|WRONGTYPE|attempt to|bad argument|table index is|(?=increment or|bit is not)|"
        "(?=(?:hash value|value|min or max) is not an? )|(?=resulting score|Invalid stream ID)",
        (),
        ConfigurationError,
        "has foreign data under our keys ({detail}); set another REDIS_PREFIX, or delete them: "
        "seed_queue.py then queues everything again",
    ),
    (
        "LAYOUT",
        (),
        ConfigurationError,
        "has a queue of another version ({detail}); let seed_queue.py of that version save its "
        "results, then delete its keys: the next seed_queue.py queues everything again",
    ),
    (
        "OOM",
        ("OutOfMemoryError",),
        Unavailable,
        "is out of memory; raise its maxmemory or free some",
    ),
    ("LOADING", ("BusyLoadingError",), Unavailable, "is still loading its data; try again later"),
    ("NOSCRIPT", ("NoScriptError",), Unavailable, "was restarted in between; try again"),
    ("MISCONF", (), Unavailable, "cannot save its data, and so accepts none; is its disk full?"),
    (
        "CLUSTERDOWN|MASTERDOWN|NOREPLICAS|BUSY|TRYAGAIN",
        ("ClusterDownError", "MasterDownError", "TryAgainError"),
        Unavailable,
        "cannot do it now: {detail}",
    ),
)


class Patience(Retry):
    """Try again with growing pauses for PATIENCE_S; not after a wrong password or certificate."""

    def __init__(self) -> None:
        super().__init__(ExponentialBackoff(cap=1, base=0.02), -1)

    def call_with_retry(
        self,
        do: Callable[[], Any],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> Any:
        backoff: AbstractBackoff = self._backoff
        started, failures = time.monotonic(), 0
        while True:
            try:
                return do()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                failures += 1
                if is_retryable and not is_retryable(error):
                    raise
                if with_failure_count:
                    fail(error, failures)
                else:
                    fail(error)
                if time.monotonic() - started > _patience_s(error):
                    raise
                log.debug("waiting for Redis: %s", error)
                time.sleep(backoff.compute(failures))


def _patience_s(error: Exception) -> float:
    if isinstance(error, AuthenticationError | AuthorizationError):
        return 0
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return 0
    return LOADING_PATIENCE_S if isinstance(error, BusyLoadingError) else PATIENCE_S


@contextlib.contextmanager
def explained(client: redis.Redis) -> Iterator[None]:
    """Turn what redis-py raises in the block into one line and an exit code.

    Unavailable (69) if Redis does not answer or cannot do it now, ConfigurationError (78) if it is
    useless to wait, or if its data cannot be parsed in the block. Anything else is a bug and is
    not changed.
    """
    try:
        yield
    except redis.RedisError as error:
        meaning = explain(error, where(client))
        if meaning is None:
            raise
        raise meaning from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Raised by the parsing of a text that we did not write.
        said = f"{type(error).__name__}: {str(error)[:80]}"
        meaning = explain(redis.RedisError(f"FOREIGN {said}"), where(client))
        raise meaning or error from error


def explain(error: redis.RedisError, server: str) -> CrawlerError | None:
    """The meaning of an error of redis-py, about `server`; None for a bug."""
    text = " ".join(str(error).split())
    for codes, classes, raised, meaning in _MEANINGS:
        match = re.search(rf"\b(?:{codes})\b *([^;]*)", text)
        if match or type(error).__name__ in classes:
            detail = match[1] if match else text
            return raised(f"{server} {meaning.format(detail=_without_position(detail))}")
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return Unavailable(f"{server} does not answer: {text}")
    return None


def _without_position(detail: str) -> str:
    """Without where in a script (Redis >= 7) or in Python's ssl module it happened."""
    return re.sub(r",? *script: .*| *\(_ssl\.c:\d+\)", "", detail).strip(" .:")


def where(client: redis.Redis) -> str:
    """The server as the user knows it, without secrets."""
    known = client.connection_pool.connection_kwargs
    address = known.get("path") or f"{known.get('host', 'localhost')}:{known.get('port', 6379)}"
    return f"Redis at {address}"
