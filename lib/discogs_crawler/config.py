"""Settings: flag > environment > `.env` > default, each known by one name everywhere.

SETTINGS is the one list of them; the README's table and `.env.example` are tested against it.
"""

import argparse
import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dotenv.parser import parse_stream

from discogs_crawler import CHECKOUT, __version__
from discogs_crawler.errors import ConfigurationError, UsageError

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

# More is a mistake, and leads to dates that no calendar has.
_LARGEST_NUMBER = 1_000_000
_LONGEST_S = 10 * 366 * 86_400


class Secret:
    """A text that is shown only by `reveal()`."""

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class Setting(NamedTuple):
    """One setting: its name, its default as one would write it in `.env`, how to read it."""

    name: str
    default: str
    parse: Callable[[str], Any]
    help: str

    @property
    def attribute(self) -> str:
        return self.name.lower()

    @property
    def flag(self) -> str:
        return "--" + self.attribute.replace("_", "-")

    @property
    def secret(self) -> bool:
        return self.parse in (Secret, _secret_url)


def _number(minimum: float, kind: type = int) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        if "_" in text or not text.isascii():
            raise ValueError("it must be a number in plain digits")
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(f"it must be a {'whole ' if kind is int else ''}number") from None
        if not minimum <= value <= _LARGEST_NUMBER:
            raise ValueError(f"it must be at least {minimum:g} and at most {_LARGEST_NUMBER}")
        return value

    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError("it must be one of: " + ", ".join(choices))
        return text

    return parse


def _matching(pattern: str, meaning: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(meaning)
        return text

    return parse


def _path(text: str) -> Path:
    path = _expand(text)
    if not path.is_absolute():
        raise ValueError("it must be an absolute path, because cron starts scripts anywhere")
    return path


def _expand(text: str) -> Path:
    """The path, with `~` and `~user` replaced; ValueError if that cannot be done."""
    if re.search(r"[\0-\x1f\x7f-\x9f\u2028\u2029]", text):
        raise ValueError("a path has no line feeds or other control characters")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("it begins with ~, and there is no such user's home") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[,\s]+", text) if word)


def parse_duration(text: str) -> int:
    """Seconds in `90`, `90s`, `5m`, `3h` or `2d`; ValueError otherwise."""
    match = re.fullmatch(r"([0-9]+)([smhd]?)", text.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"not a duration such as 90s, 5m, 3h or 2d: {text!r}")
    seconds = int(match[1]) * _UNITS_S[match[2] or "s"]
    if seconds > _LONGEST_S:
        raise ValueError(f"longer than ten years: {text!r}")
    return seconds


def _durations(text: str) -> tuple[int, ...]:
    return tuple(parse_duration(word) for word in _words(text))


_URL = _matching(r"https?://(?![/?#])[!-~]+", "it must be an http:// or https:// URL")


def _secret_url(text: str) -> Secret:
    return Secret(_URL(text))


_NAME = _matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "it may hold letters, digits and . _ - only")

SETTINGS = (
    Setting("STATE_DIR", "", _path, "folder of everything that no other setting puts elsewhere"),
    Setting("DATABASE", "", _path, "the ledger, a SQLite file [STATE_DIR/crawler.db]"),
    Setting("STORE", "", _path, "folder of the Git repositories [STATE_DIR/store]"),
    Setting("STORE_LAYOUT", "single", _one_of("single", "submodules"), "`single` or `submodules`"),
    Setting(
        "STORE_REMOTE",
        "",
        Secret,
        "Git URL that a commit must reach to count; with submodules the URL of a folder [none]",
    ),
    Setting(
        "STORE_BRANCH",
        "main",
        _matching(r"(?!.*(\.\.|//|/\.|\.lock(/|$)))[A-Za-z0-9][\w./-]*(?<![./])", "not a branch"),
        "the branch that consumers read",
    ),
    Setting("REDIS_URL", "", Secret, "redis://, rediss:// or unix:// URL [a private server]"),
    Setting("REDIS_PREFIX", "discogs", _NAME, "start of the name of every key in Redis"),
    Setting("DISCOGS_API", "https://api.discogs.com", _URL, "the API"),
    Setting("DISCOGS_TOKEN", "", Secret, "personal access token: 60 requests a minute, not 25"),
    Setting(
        "DISCOGS_USER_AGENT",
        f"crawler_for_discogs/{__version__} +https://github.com/armijnhemel/crawler_for_discogs",
        _matching(r"[!-~]+/[!-~]+( [ -~]+)?", "it must look like name/1.0 +https://contact"),
        "how we introduce ourselves: name/version +contact",
    ),
    Setting("DUMP_SITE", "https://data.discogs.com/", _URL, "where the monthly dumps are"),
    Setting("DUMP_DIR", "", _path, "folder of the dumps [STATE_DIR/dumps]"),
    Setting("RATE_IDENTITY", "shared", _NAME, "who shares one quota: one name per IP address"),
    Setting("RATE_LIMIT", "", _number(1), "requests in a window [what the API's headers say]"),
    Setting("RATE_WINDOW_S", "60", _number(0.01, float), "seconds in the rolling window"),
    Setting("COOLDOWN_DAYS", "7", _number(0, float), "days before a record is fetched again"),
    Setting("LEASE_S", "600", _number(1), "seconds a worker may keep an id without a sign of life"),
    Setting("RETRY_DELAYS", "1m,5m,30m,3h,12h", _durations, "waits between attempts at an id"),
    Setting("COMMIT_EVERY", "100", _number(1), "at most this many records in a commit"),
    Setting("COMMIT_SECONDS", "60", _number(0, float), "at most this many seconds between commits"),
    Setting("WORKER_THREADS", "2", _number(1), "requests under way at once in a worker"),
    Setting("REMOVE_FIELDS", "", _words, "more fields to remove from records, e.g. images,notes"),
    Setting("KEEP_FIELDS", "", _words, "fields to keep that would be removed, e.g. videos"),
    Setting(
        "CLEAN_PRESET",
        "default",
        _one_of("default", "public"),
        "`default`, or `public`: no restricted data",
    ),
    Setting(
        "GIT_AUTHOR_NAME",
        "crawler_for_discogs",
        _matching(r"[^<>\n\0]+", "not a name"),
        "author of the commits",
    ),
    Setting(
        "GIT_AUTHOR_EMAIL",
        "crawler_for_discogs@localhost",
        _matching(r"[^<>\s\0]+", "not an address"),
        "email address of that author",
    ),
    Setting(
        "HEALTHCHECK_URL",
        "",
        _secret_url,
        "pinged when a script in cron starts, succeeds or fails; {script} is its name",
    ),
    Setting("LOG_FORMAT", "text", _one_of("text", "json"), "`text` or `json`"),
)

BY_NAME = {setting.name: setting for setting in SETTINGS}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every setting, read and checked; None where there is neither a value nor a default."""

    state_dir: Path
    database: Path
    store: Path
    store_layout: str
    store_remote: Secret | None
    store_branch: str
    redis_url: Secret | None
    redis_prefix: str
    discogs_api: str
    discogs_token: Secret | None
    discogs_user_agent: str
    dump_site: str
    dump_dir: Path
    rate_identity: str
    rate_limit: int | None
    rate_window_s: float
    cooldown_days: float
    lease_s: int
    retry_delays: tuple[int, ...]
    commit_every: int
    commit_seconds: float
    worker_threads: int
    remove_fields: tuple[str, ...]
    keep_fields: tuple[str, ...]
    clean_preset: str
    git_author_name: str
    git_author_email: str
    healthcheck_url: Secret | None
    log_format: str
    env_file: Path | None = None
    warnings: tuple[str, ...] = ()

    def secrets(self) -> list[str]:
        """The texts that must never be printed; `logs` blacks them out."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return [value.reveal() for value in values if isinstance(value, Secret)]


def add_flags(parser: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    """Give `parser` a flag for each named setting but secrets, because `ps` shows flags."""
    group = parser.add_argument_group("settings (also from the environment and .env)")
    for name in names:
        setting = BY_NAME[name]
        default = f" [{setting.default}]" if setting.default else ""
        group.add_argument(
            setting.flag, dest=setting.attribute, metavar="VALUE", help=setting.help + default
        )


def load(
    flags: argparse.Namespace | None = None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """Read all settings; ConfigurationError names the first that is unknown or malformed.

    A value given as a flag and malformed is a UsageError. `NAME_FILE` names a file whose first
    line is the secret NAME.
    """
    env_file = _env_file(getattr(flags, "env_file", None), environ)
    from_file = _read_env_file(env_file)
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        flag = getattr(flags, setting.attribute, None)
        text = flag if flag is not None else _lookup(setting, environ, from_file, env_file)
        values[setting.attribute] = _parse(setting, text, UsageError if flag is not None else None)
    values["state_dir"] = values["state_dir"] or _default_state_dir(env_file, environ)
    for name, default in (("database", "crawler.db"), ("store", "store"), ("dump_dir", "dumps")):
        values[name] = values[name] or values["state_dir"] / default
    return Settings(**values, env_file=env_file, warnings=_warnings(env_file, from_file))


def _env_file(flag: str | None, environ: Mapping[str, str]) -> Path | None:
    """The `.env` in use: the one that is named, else the checkout's, else the user's."""
    named = flag or environ.get("ENV_FILE")
    if named:
        try:
            path = _expand(named).absolute()
        except ValueError as error:
            raise ConfigurationError(f"ENV_FILE is {named[:80]!r}: {error}") from None
        if not path.exists():
            raise ConfigurationError(f"{path}: this settings file does not exist")
        return path
    config = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    candidates = [config / "crawler_for_discogs" / ".env"]
    if (CHECKOUT / "setup.cfg").exists():
        candidates.insert(0, CHECKOUT / ".env")
    # What lies in a folder that we may not search (systemd's ProtectHome) is not there for us.
    return next((path for path in candidates if os.access(path, os.F_OK)), None)


def _read_env_file(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    allowed = set(BY_NAME) | {f"{s.name}_FILE" for s in SETTINGS if s.secret}
    values = {}
    try:
        with path.open(encoding="utf-8") as file:
            bindings = list(parse_stream(file))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: it is not UTF-8") from None
    for binding in bindings:
        where = f"{path}, line {binding.original.line}"
        if binding.error:
            raise ConfigurationError(f"{where}: not of the form NAME=VALUE")
        if binding.key is None:
            continue
        if binding.key not in allowed:
            close = difflib.get_close_matches(binding.key.upper(), allowed, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigurationError(f"{where}: there is no setting {binding.key[:60]!r}{hint}")
        if binding.value is None:
            raise ConfigurationError(f"{where}: {binding.key} has no value; write NAME=VALUE")
        values[binding.key] = binding.value
    return values


def _lookup(
    setting: Setting,
    environ: Mapping[str, str],
    from_file: Mapping[str, str],
    env_file: Path | None,
) -> str:
    for source in (environ, from_file):
        if source.get(setting.name):
            return source[setting.name]
        if setting.secret and source.get(setting.name + "_FILE"):
            base = env_file.parent if env_file and source is from_file else Path.cwd()
            return _read_secret(setting.name, base, source[setting.name + "_FILE"])
    return setting.default


def _read_secret(name: str, base: Path, text: str) -> str:
    try:
        path = base / _expand(text)
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"{name}_FILE: {text!r} cannot be read: {why}") from error
    if not lines or not lines[0].strip():
        raise ConfigurationError(f"{name}_FILE: {path} is empty")
    return lines[0].strip()


def _parse(setting: Setting, text: str, error_type: type[UsageError] | None) -> Any:
    if not text:
        return () if setting.parse is _words else None
    try:
        if setting.parse is not _path and not text.isascii():
            text.encode()
        return setting.parse(text)
    except UnicodeEncodeError:
        raise (error_type or ConfigurationError)(f"{setting.name}: it is not UTF-8") from None
    except ValueError as error:
        shown = "" if setting.secret else f" is {text[:80]!r}"
        where = setting.flag if error_type else setting.name
        raise (error_type or ConfigurationError)(f"{where}{shown}: {error}") from None


def _default_state_dir(env_file: Path | None, environ: Mapping[str, str]) -> Path:
    if env_file is not None and env_file.name == ".env":
        return env_file.parent / "var"
    if (CHECKOUT / "setup.cfg").exists():
        return CHECKOUT / "var"
    state = Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "crawler_for_discogs"


def _warnings(env_file: Path | None, from_file: Mapping[str, str]) -> tuple[str, ...]:
    if env_file is None or not any(BY_NAME[n].secret for n in from_file if n in BY_NAME):
        return ()
    if env_file.stat().st_mode & 0o077:
        return (f"{env_file} holds a secret and others can read it: chmod 600 {env_file}",)
    return ()


def make_state_dir(settings: Settings) -> Path:
    """The state folder, made private (0700) if it is not there yet."""
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(
            f"STATE_DIR {settings.state_dir}: cannot be made: {error.strerror}"
        ) from error
    return settings.state_dir
