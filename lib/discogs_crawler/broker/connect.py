"""Connect to Redis: the one that REDIS_URL names, or the private server of the state folder."""

import logging
import os
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry
from redis.sentinel import Sentinel

from discogs_crawler.broker import private_server
from discogs_crawler.broker.limiter import Limiter
from discogs_crawler.broker.queue import Queue
from discogs_crawler.broker.redis_errors import Patience, explained, where
from discogs_crawler.config import Settings
from discogs_crawler.errors import ConfigurationError
from discogs_crawler.ledger_here import ledger_is_here

log = logging.getLogger(__name__)

# Exclusive ranges of streams came with it; what we use of Valkey is all in its first version.
OLDEST_SERVER = (6, 2)

# A script of ours takes milliseconds; a server that is silent for longer has gone.
REPLY_S = 30
CONNECT_S = 5

# redis-py 8.1 asks a connection that failed for its port; one over a Unix socket has none.
redis.UnixDomainSocketConnection.port = 0  # type: ignore[attr-defined]


def connect(settings: Settings, *, wait: bool = True) -> redis.Redis:
    """A client of our Redis (answers are bytes), which has answered and is fit for use.

    Waits for a server that is starting or loading, now and later. Unavailable when there is none,
    ConfigurationError when it refuses us, is too old, a replica, or may drop keys. Without `wait`
    it takes the server as it is: no patience, and a private one that does not run is not started.
    """
    options: dict[str, Any] = {
        "socket_timeout": REPLY_S,
        "socket_connect_timeout": CONNECT_S,
        "retry": Patience() if wait else Retry(NoBackoff(), 0),
        "retry_on_error": [redis.ConnectionError, redis.TimeoutError],
        "health_check_interval": 60,
    }
    if settings.redis_url is None:
        client = private_server.client(settings, options, start=wait)
    else:
        client = _client_of_url(settings.redis_url.reveal(), options)
    with explained(client):
        _check(client)
    return client


def _client_of_url(url: str, options: dict[str, Any]) -> redis.Redis:
    try:
        if url.startswith("redis+sentinel://"):
            return _client_of_sentinels(url, options)
        client = redis.Redis.from_url(url, **options)
    except (ValueError, TypeError):
        # The text of these errors may hold the password.
        raise ConfigurationError(
            "REDIS_URL must look like redis://[USER:PASSWORD@]HOST:PORT/0, rediss://..., "
            "unix:///path/to/redis.sock or redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/0"
        ) from None
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        file = client.connection_pool.connection_kwargs.get(name)
        if file and not os.access(file, os.R_OK):
            raise ConfigurationError(f"REDIS_URL names a file that cannot be read: {name}={file}")
    return client


def _client_of_sentinels(url: str, options: dict[str, Any]) -> redis.Redis:
    """The primary of `redis+sentinel://[USER:PASSWORD@]HOST:PORT[,...]/SERVICE[/DB]`.

    The user and password are those of Redis; `?sentinel_password=...` is that of the sentinels.
    """
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    service, _, db = parts.path.strip("/").partition("/")
    addresses = [(host, int(port)) for host, port in (h.rsplit(":", 1) for h in hosts.split(","))]
    if not service:
        raise ValueError(url)
    query = dict(parse_qsl(parts.query))
    sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]
        addresses,
        sentinel_kwargs={
            "password": query.get("sentinel_password"),
            "socket_timeout": CONNECT_S,
        },
    )
    client: redis.Redis = sentinel.master_for(
        service,
        username=unquote(user) or None,
        password=unquote(password) or None,
        db=int(db or 0),
        **options,
    )
    return client


def _check(client: redis.Redis) -> None:
    """Refuse a server on which the queue could lose ids."""
    client.ping()
    try:
        info = client.info()
    except NoPermissionError:
        return
    server = where(client)
    if int(info.get("cluster_enabled", 0)):
        raise ConfigurationError(
            f"{server} is part of a Redis Cluster, which is not supported: REDIS_URL must name a "
            "single server, or sentinels"
        )
    version = str(info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        raise ConfigurationError(
            f"{server} is version {version}; {oldest} is the oldest that works"
        )
    if info.get("role") == "slave" and int(info.get("slave_read_only", 1)):
        raise ConfigurationError(
            f"{server} is a read-only replica; REDIS_URL must name the primary"
        )
    policy = str(info.get("maxmemory_policy"))
    if policy.startswith("allkeys") and int(info.get("maxmemory", 0)):
        raise ConfigurationError(
            f"{server} drops keys when memory is short (maxmemory-policy {policy}); "
            "set it to noeviction"
        )
    if not int(info.get("aof_enabled", 0)):
        log.info("%s has no append-only file: after its restart ids are fetched again", server)


def about(client: redis.Redis) -> str:
    """What runs there: name, version, and the program as its machine knows it."""
    try:
        info = client.info()
    except NoPermissionError:
        return "a server of unknown version"
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version", info["redis_version"])
    return f"{name} {version} ({info['executable']})"


def queue_of(client: redis.Redis, settings: Settings, kind: str) -> Queue:
    """Return the queue of a kind, as the settings say."""
    return Queue(client, kind, prefix=settings.redis_prefix, lease_s=settings.lease_s)


def announce_store(settings: Settings, queue: Queue) -> None:
    """Tell the workers of all machines where records are committed, if the ledger is here."""
    if ledger_is_here(settings.database):
        queue.set_store(_store_of(settings))


def refuse_other_store(settings: Settings, queue: Queue) -> None:
    """ConfigurationError if records are committed elsewhere than the ledger's machine announced.

    The ledger would take for stored what its store never gets.
    """
    if ledger_is_here(settings.database):
        return
    theirs, ours = queue.store(), _store_of(settings)
    if theirs not in ("", ours):
        raise ConfigurationError(
            f"the machine with the ledger has {theirs}, this one {ours}: use the same on both, "
            "then run seed_queue.py there"
        )
    if theirs and not settings.store_remote and settings.redis_url:
        raise ConfigurationError(
            f"{settings.database}: there is no ledger; if it is lost, restore it; one on another "
            "machine cannot see records stored here: set STORE_REMOTE on both"
        )


def _store_of(settings: Settings) -> str:
    remote = "with" if settings.store_remote else "without"
    return f"STORE_LAYOUT={settings.store_layout} {remote} STORE_REMOTE"


def limiter_of(client: redis.Redis, settings: Settings) -> Limiter:
    """Return the quota of our identity, as the settings say."""
    return Limiter(
        client,
        settings.rate_identity,
        prefix=settings.redis_prefix,
        window_s=settings.rate_window_s,
        limit=settings.rate_limit,
    )
