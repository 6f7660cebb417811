"""Settings: where a value comes from, and what is said of one that is wrong."""

import argparse
import dataclasses
import re
from pathlib import Path

import pytest

from discogs_crawler import config
from discogs_crawler.config import BY_NAME, SETTINGS, Secret, Settings
from discogs_crawler.errors import ConfigurationError, UsageError
from tests.conftest import ROOT, Run


def load(env_text: str, tmp_path: Path, **environ: str) -> Settings:
    path = tmp_path / ".env"
    path.write_text(env_text)
    path.chmod(0o600)
    return config.load(environ={"ENV_FILE": str(path), "HOME": str(tmp_path)} | environ)


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    tmp_path: Path,
) -> None:
    assert load("", tmp_path).lease_s == 600
    assert load("LEASE_S=500", tmp_path).lease_s == 500
    assert load("LEASE_S=500", tmp_path, LEASE_S="400").lease_s == 400
    flags = argparse.Namespace(lease_s="300", env_file=str(tmp_path / ".env"))
    assert config.load(flags, {"LEASE_S": "400"}).lease_s == 300


def test_every_setting_is_a_field_and_every_field_a_setting() -> None:
    fields = {field.name for field in dataclasses.fields(Settings)} - {"env_file", "warnings"}
    assert fields == {setting.attribute for setting in SETTINGS}


def test_the_state_folder_lies_beside_the_env_file(tmp_path: Path) -> None:
    settings = load("", tmp_path)
    assert settings.state_dir == tmp_path / "var"
    assert settings.database == tmp_path / "var" / "crawler.db"
    assert settings.store == tmp_path / "var" / "store"
    assert settings.dump_dir == tmp_path / "var" / "dumps"


def test_an_unknown_name_in_the_file_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'LEASES_S'; did you mean LEASE_S\?"):
        load("LEASES_S=1", tmp_path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("LEASE_S=soon", "LEASE_S is 'soon': it must be a whole number$"),
        ("COOLDOWN_DAYS=seven", "COOLDOWN_DAYS is 'seven': it must be a number$"),
        ("HEALTHCHECK_URL=hc.example/uuid", "^HEALTHCHECK_URL: it must be an http:// or https://"),
        ("lease_s=5", r"did you mean LEASE_S\?"),
        ("LEASE_S=0", "at least 1"),
        ("RATE_WINDOW_S=nan", "at least 0.01"),
        ("STORE_LAYOUT=flat", "one of: single, submodules"),
        ("RETRY_DELAYS=1m,tomorrow", "'tomorrow'"),
        ("STATE_DIR=var", "absolute path"),
        ("STATE_DIR=~has-no-home-here/x", "no such user's home"),
        ('STATE_DIR="/a\\nb"', "control characters"),
        ("DISCOGS_TOKEN_FILE=~has-no-home-here/x", "DISCOGS_TOKEN_FILE: .* no such user's home"),
        ("DISCOGS_TOKEN_FILE=a\0b", "control characters"),
        ("WORKER_THREADS=1_0", "plain digits"),
        ("LEASE_S=9999999999999999999", "at most 1000000"),
        ("RETRY_DELAYS=1m,99999999d", "longer than ten years"),
        ("DISCOGS_API=http://\x01/", "http:// or https://"),
        ("DISCOGS_API=api.discogs.com", "http:// or https://"),
        ("REDIS_PREFIX=a b", "letters, digits"),
        ("DISCOGS_USER_AGENT=curl", "name/1.0"),
        ("LEASE_S", "has no value"),
        ("= x", "line 1: not of the form NAME=VALUE"),
    ],
)
def test_a_malformed_value_is_named_in_one_line(line: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        load(line, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_of_settings_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a folder, which Docker makes where the file to mount is missing."""
    monkeypatch.setattr(config, "CHECKOUT", tmp_path)
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "HOME": "/"}
    path = tmp_path / "crawler_for_discogs" / ".env"
    path.mkdir(parents=True)
    with pytest.raises(ConfigurationError) as caught:
        config.load(environ=environ)
    assert str(caught.value) == f"{path}: cannot be read: Is a directory"
    path.rmdir()
    path.write_bytes(b"GIT_AUTHOR_NAME=M\xfcller\n")
    with pytest.raises(ConfigurationError) as caught:
        config.load(environ=environ)
    assert str(caught.value) == f"{path}: it is not UTF-8"


def test_a_folder_in_which_nothing_can_be_looked_up_holds_no_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a name that is too long: root may search every folder."""
    monkeypatch.setattr(config, "CHECKOUT", tmp_path)
    assert config.load(environ={"XDG_CONFIG_HOME": f"/{'n' * 300}"}).env_file is None


def test_the_flag_in_the_sample_file_is_one_of_every_script() -> None:
    flags = re.findall(r"\(--([a-z-]+)\)", (ROOT / ".env.example").read_text())
    assert flags == ["state-dir"]


def test_a_malformed_flag_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--lease-s is 'x'"):
        config.load(argparse.Namespace(lease_s="x"), {"ENV_FILE": "/dev/null", "HOME": "/"})


@pytest.mark.parametrize("name", ["GIT_AUTHOR_NAME", "REMOVE_FIELDS"])
def test_what_no_commit_can_hold_is_refused_before_anything_is_fetched(name: str) -> None:
    """As a name that was typed in Latin-1 is."""
    with pytest.raises(ConfigurationError, match=f"{name}: it is not UTF-8"):
        config.load(environ={"ENV_FILE": "/dev/null", name: "M\udcfcller"})


def test_a_secret_may_stand_in_a_file_of_its_own_and_shows_itself_to_nobody(
    tmp_path: Path,
) -> None:
    (tmp_path / "token").write_text("abc123\n")
    settings = load("DISCOGS_TOKEN_FILE=token", tmp_path)
    assert settings.discogs_token == Secret("abc123")
    assert "abc123" not in repr(settings)
    assert settings.secrets() == ["abc123"]


def test_a_malformed_secret_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("")
    with pytest.raises(ConfigurationError, match="is empty"):
        load("DISCOGS_TOKEN_FILE=token", tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load("DISCOGS_TOKEN_FILE=nowhere", tmp_path)


def test_a_file_with_a_secret_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    assert load("DISCOGS_TOKEN=x", tmp_path).warnings == ()
    (tmp_path / ".env").chmod(0o644)
    settings = config.load(environ={"ENV_FILE": str(tmp_path / ".env"), "HOME": str(tmp_path)})
    assert "chmod 600" in settings.warnings[0]


def test_the_sample_file_lists_every_setting_with_its_default() -> None:
    entries = {}
    for line in (ROOT / ".env.example").read_text().splitlines():
        if line.startswith("#") and "=" in line and line[1:2].isupper():
            name, _, value = line[1:].partition("=")
            entries[name] = value
    assert entries == {setting.name: setting.default for setting in SETTINGS}


def test_the_sample_file_is_a_valid_file_of_settings(tmp_path: Path) -> None:
    text = (ROOT / ".env.example").read_text()
    kept = [
        line.removeprefix("#") if line[1:].partition("=")[0] in BY_NAME else line
        for line in text.splitlines()
    ]
    assert load("\n".join(kept), tmp_path).commit_every == 100


def test_a_script_names_a_wrong_setting_and_exits_78(run: Run) -> None:
    done = run("stats.py", LEASE_S="never")
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert "LEASE_S is 'never'" in done.stderr
