"""Whatever is in a file of settings: they are usable, or one line says which is not."""

import math
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given

from discogs_crawler import config
from discogs_crawler.api import client
from discogs_crawler.config import SETTINGS, Settings
from discogs_crawler.errors import ConfigurationError
from tests.fuzz.damage import damaged, is_one_line

SECRET = "kzQmXvWpLrTsYb"
SEEDS = (
    b"# here\nSTATE_DIR=/var/lib/crawler\nexport DATABASE='/tmp/a b.db'\nSTORE=\"/tmp/\\tx\"\n",
    f"DISCOGS_TOKEN={SECRET}\nDISCOGS_API=https://api.example/v2\nRATE_IDENTITY=a\n".encode(),
    b"DISCOGS_TOKEN_FILE=token\nDUMP_SITE=http://127.0.0.1:80/?x=1\nDISCOGS_USER_AGENT=a/1.0 +b\n",
    b"RATE_LIMIT=60\nRATE_WINDOW_S=0.5\nCOOLDOWN_DAYS=7\nLEASE_S=600\nRETRY_DELAYS=1m, 5m 3h\n",
    b"COMMIT_EVERY=100\nCOMMIT_SECONDS=6e1\nWORKER_THREADS=2\nSTORE_BRANCH=a/b.c\n",
    b"REMOVE_FIELDS=a,b c\nKEEP_FIELDS=videos\nCLEAN_PRESET=public\nLOG_FORMAT=json\n",
    b"GIT_AUTHOR_NAME=A B\nGIT_AUTHOR_EMAIL=a@b\nSTORE_LAYOUT=submodules\nREDIS_PREFIX=x\n",
    b"STORE_REMOTE=ssh://a/b\nREDIS_URL=redis://:p@h/0\nHEALTHCHECK_URL=http://h/{script}\n",
)
TOKENS = (
    *(f"{setting.name}=".encode() for setting in SETTINGS),
    *(f"{setting.name}_FILE=".encode() for setting in SETTINGS if setting.secret),
    *(b"\nSTORE=~nobody-has-this-name/x\n", b"\nDISCOGS_TOKEN_FILE=~nobody-has-this-name\n"),
    *(b"=", b"= ", b"#", b" #", b'"', b"'", b"\\n", b'"/a\\nb"', b"export ", b"${HOME}", b"$(x)"),
    *(
        b"~",
        b"~nobody-has-this-name/",
        b"/",
        b"..",
        b"../",
        b".lock",
        b"[",
        b"]",
        b"@",
        b":",
        b"://",
    ),
    *(b":99999", b"inf", b"0.0001", b"1e6", b"99999999d", b"9h", b"<", b">", b"%", b"?", b"//"),
)
CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f\u2028\u2029]")


@pytest.fixture(scope="module")
def env_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    (folder / "token").write_text(SECRET + "\n")
    return folder / ".env"


@given(damaged(SEEDS, TOKENS))
def test_a_file_of_settings_is_usable_or_one_line_says_why_not(env_file: Path, text: bytes) -> None:
    env_file.write_bytes(text)
    try:
        settings = config.load(environ={"ENV_FILE": str(env_file), "HOME": str(env_file.parent)})
        client.Client(settings).close()
    except ConfigurationError as error:
        assert is_one_line(str(error))
        return
    assert_usable(settings)
    assert not any(secret in repr(settings) for secret in settings.secrets() if len(secret) > 9)


def assert_usable(settings: Settings) -> None:
    paths = (settings.state_dir, settings.database, settings.store, settings.dump_dir)
    assert all(path.is_absolute() and not CONTROL.search(str(path)) for path in paths)
    for number in (
        *(settings.rate_limit or 1, settings.rate_window_s, settings.lease_s),
        *(settings.commit_every, settings.worker_threads),
    ):
        assert 0 < number < math.inf
    for number in (settings.cooldown_days, settings.commit_seconds, *settings.retry_delays):
        assert 0 <= number < 2**31
    for url in (settings.discogs_api, settings.dump_site):
        assert re.fullmatch("https?://[!-~]+", url)
    assert re.fullmatch(r"[\w.-]+", settings.redis_prefix + settings.rate_identity, re.ASCII)
    assert not re.search(r"[<>\n\0]", settings.git_author_name + settings.git_author_email)
    if settings.store_branch != "main":
        command = ["git", "check-ref-format", f"refs/heads/{settings.store_branch}"]
        subprocess.run(command, check=True)
