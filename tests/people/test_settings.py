"""Settings: which source wins, and what is refused with a sentence that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deployx.errors import StartupRefused
from deployx.settings import Settings, load


def test_flags_win_over_the_environment_which_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "deployx.toml").write_text('host = "::1"\nport = 1\nlog_level = "debug"\n')
    environment = {"DEPLOYX_PORT": "2", "DEPLOYX_LOG_LEVEL": "warning"}
    found = load({"port": 3, "host": None}, environment, tmp_path)
    assert (found.port, found.log_level, found.host) == (3, "warning", "::1")


def test_without_any_source_the_defaults_hold(tmp_path: Path) -> None:
    assert load({}, {"PATH": "/bin"}, tmp_path) == Settings()


def test_what_clients_and_running_commands_read_is_none_of_the_servers_business(tmp_path: Path) -> None:
    others = {"DEPLOYX_URL": "x", "DEPLOYX_TOKEN": "x", "DEPLOYX_KEY": "x", "DEPLOYX_DEVICE_ID": "1"}
    assert load({}, others, tmp_path) == Settings()


def test_an_empty_value_is_no_value(tmp_path: Path) -> None:
    assert load({}, {"DEPLOYX_DATABASE_URL": ""}, tmp_path).database_url is None


def test_paths_are_absolute_and_the_database_lies_in_the_data_folder(tmp_path: Path) -> None:
    found = load({"data_dir": tmp_path / "d"}, {"DEPLOYX_SIGNING_KEY_FILE": "a.key"}, tmp_path)
    assert found.signing_key == Path.cwd() / "a.key"
    assert found.database == f"sqlite:///{tmp_path}/d/deployx.db"


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"PROT": "1"}, "sets PROT, which is no setting. Did you mean PORT"),
        ({"PORT": "eighty"}, "PORT 'eighty' is no port"),
        ({"PORT": "70000"}, "use 0 to 65535"),
        ({"LOG_FORMAT": "xml"}, "use console or json"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL 'loud' is unknown"),
        ({"INSECURE_HTTP": "perhaps"}, "use true or false"),
        ({"TRUSTED_PROXIES": "10.0.0.0/8, proxy"}, "holds 'proxy', which is no address"),
        ({"PUBLIC_URL": "deployx.example.org"}, "is no web address"),
        ({"PUBLIC_URL": "https://example.org/deployx"}, "has a path"),
        ({"STORAGE_URL": "s3://bucket/x"}, "has the scheme 's3', which this version cannot store in"),
        ({"STORAGE_URL": "/srv/deployx"}, "use file:///FOLDER"),
        ({"STORAGE_URL": "file://host/srv"}, "names no folder of this machine"),
        ({"STORAGE_URL": "file:///"}, "names no folder of this machine"),
        ({"MAX_UPLOAD_BYTES": "2GiB"}, "MAX_UPLOAD_BYTES '2GiB' is no number of bytes"),
        ({"MAX_UPLOAD_BYTES": "0"}, "use 1 to"),
        ({"TLS_CERT": "c.pem"}, "both TLS_CERT and TLS_KEY"),
        ({"HOST": "0.0.0.0"}, "there is no TLS"),
        ({"HOST": "example.org", "INSECURE_HTTP": "false"}, "there is no TLS"),
        ({"CONFIG": "/no/such/file.toml"}, "/no/such/file.toml cannot be read"),
    ],
)
def test_a_wrong_value_is_refused_by_name(environment: dict[str, str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(StartupRefused) as refused:
        load({}, {f"DEPLOYX_{name}": value for name, value in environment.items()}, tmp_path)
    assert sentence in refused.value.detail


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hots = 'a'", "sets HOTS, which is no setting. Did you mean HOST"),
        ("host = ", "is not TOML"),
        ("trusted_proxies = ['10.0.0.1']", "sets trusted_proxies to a list"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "deployx.toml").write_text(text)
    with pytest.raises(StartupRefused) as refused:
        load({}, {}, tmp_path)
    assert sentence in refused.value.detail


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ({"host": "0.0.0.0", "insecure_http": True}, "insecure_http", True),
        ({"host": "0.0.0.0", "tls_cert": "c", "tls_key": "k"}, "host", "0.0.0.0"),
        ({"host": "localhost"}, "host", "localhost"),
        ({"public_url": "https://Deployx.example.org:443/"}, "public_url", "https://deployx.example.org"),
    ],
)
def test_what_is_safe_is_accepted(flags: dict[str, Any], name: str, value: object, tmp_path: Path) -> None:
    assert getattr(load(flags, {}, tmp_path), name) == value


def test_contents_lie_in_the_data_folder_or_where_the_storage_url_says(tmp_path: Path) -> None:
    assert load({"data_dir": tmp_path}, {}, tmp_path).storage == tmp_path
    found = load({"data_dir": tmp_path}, {"DEPLOYX_STORAGE_URL": "file:///srv/a%20b"}, tmp_path)
    assert found.storage == Path("/srv/a b")


def test_what_the_storage_url_holds_besides_its_scheme_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(StartupRefused) as refused:
        load({}, {"DEPLOYX_STORAGE_URL": "s3://key:secret@bucket"}, tmp_path)
    assert "secret" not in refused.value.detail
