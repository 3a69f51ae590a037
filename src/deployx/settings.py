"""Settings: flags over `DEPLOYX_…` environment variables over `deployx.toml`; what is unknown is refused."""

from __future__ import annotations

import difflib
import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import platformdirs

from deployx.errors import StartupRefused

PREFIX = "DEPLOYX_"
OF_CLIENTS = frozenset({"URL", "TOKEN", "KEY", "CONFIG", "ORDER_ID"})
"""Variables of the same prefix that other programs read, or that an agent gives to its commands."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How one server process is to run. Paths are absolute, empty texts are None."""

    host: str = "127.0.0.1"
    port: int = 8000
    data_dir: Path = Path(platformdirs.user_data_dir("deployx"))
    database_url: str | None = None
    storage_url: str | None = None
    max_upload_bytes: int = 2 * 1024**3
    admin_password: str | None = None
    signing_key_file: Path | None = None
    public_url: str | None = None
    trusted_proxies: str | None = None
    metrics_token: str | None = None
    log_format: str = "console"
    log_level: str = "info"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure_http: bool = False
    returning_per_minute: int = 1000

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'deployx.db'}"

    @property
    def storage(self) -> Path:
        """The folder in which contents of files are stored."""
        return Path(unquote(urlsplit(self.storage_url).path)) if self.storage_url else self.data_dir

    @property
    def signing_key(self) -> Path:
        return self.signing_key_file or self.data_dir / "signing.key"


def load(flags: Mapping[str, Any], environment: Mapping[str, str], folder: Path) -> Settings:
    """Put the three sources together and check them. Raises StartupRefused with a sentence."""
    values = _of_file(environment.get(f"{PREFIX}CONFIG"), folder)
    given = {name.removeprefix(PREFIX): value for name, value in environment.items() if name.startswith(PREFIX)}
    values |= _known({name: value for name, value in given.items() if not _is_foreign(name)}, "the environment")
    values |= {name: value for name, value in flags.items() if value is not None}
    settings = Settings(**{name: _converted(name, value) for name, value in values.items() if value not in (None, "")})
    _check(settings)
    return settings


def _of_file(named: str | None, folder: Path) -> dict[str, Any]:
    """What `deployx.toml` says; the file may be absent unless it was named."""
    path = Path(named).expanduser() if named else folder / "deployx.toml"
    if not named and not path.exists():
        return {}
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartupRefused(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise StartupRefused(f"{path} is not TOML: {error}.") from None
    for name, value in found.items():
        if not isinstance(value, str | int):
            raise StartupRefused(f"{path} sets {name} to a {type(value).__name__}: write it as text in quotes.")
    return _known({name.upper(): value for name, value in found.items()}, str(path))


def _is_foreign(name: str) -> bool:
    return name in OF_CLIENTS or name.startswith(
        ("DEVICE_", "TASK_", "EXECUTION_", "DEPLOYMENT_", "PLANNED_", "ATTEMPT")
    )


def _known(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    names = {field.name.upper() for field in fields(Settings)}
    for name in values:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise StartupRefused(f"{where} sets {name}, which is no setting.{hint}")
    return {name.lower(): value for name, value in values.items()}


def _converted(name: str, value: Any) -> Any:
    match name:
        case "port" | "returning_per_minute" | "max_upload_bytes":
            return _as_number(name, str(value), *_NUMBERS[name])
        case "data_dir" | "signing_key_file" | "tls_cert" | "tls_key":
            return Path(value).expanduser().absolute()
        case "storage_url":
            return _as_storage(str(value))
        case "insecure_http":
            return _as_truth("INSECURE_HTTP", value)
        case "public_url":
            return _as_origin("PUBLIC_URL", str(value))
        case "trusted_proxies":
            return _as_networks("TRUSTED_PROXIES", str(value))
        case "log_format" if value not in ("console", "json"):
            raise StartupRefused(f"LOG_FORMAT {value!r} is unknown: use console or json.")
        case "log_level" if str(value).lower() not in ("debug", "info", "warning", "error"):
            raise StartupRefused(f"LOG_LEVEL {value!r} is unknown: use debug, info, warning or error.")
    return str(value)


_NUMBERS = {
    "port": ("port", 0, 65_535),
    "returning_per_minute": ("number of devices", 1, 1_000_000),
    "max_upload_bytes": ("number of bytes", 1, 2**63 - 1),
}


def _as_number(name: str, value: str, what: str, least: int, most: int) -> int:
    if not (value.isascii() and value.isdecimal() and least <= int(value) <= most):
        raise StartupRefused(f"{name.upper()} {value!r} is no {what}: use {least} to {most}.")
    return int(value)


def _as_truth(name: str, value: Any) -> bool:
    match str(value).lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
    raise StartupRefused(f"{name} {value!r} is neither: use true or false.")


def _as_origin(name: str, value: str) -> str:
    """Scheme, host and port as browsers send them in `Origin`; a path would never match."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise StartupRefused(f"{name} {value!r} is no web address: write it like https://deployx.example.org.")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise StartupRefused(f"{name} {value!r} has a path: give scheme, host and port alone.")
    usual_port = ":443" if parts.scheme == "https" else ":80"
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(usual_port)}"


def _as_storage(value: str) -> str:
    """A folder as `file:///path`; the whole value is not repeated, it may hold credentials."""
    parts = urlsplit(value)
    if parts.scheme != "file":
        raise StartupRefused(
            f"STORAGE_URL has the scheme {parts.scheme!r}, which this version cannot store in: use file:///FOLDER"
            " (a shared folder where there are several replicas)."
        )
    if parts.netloc or not parts.path.startswith("/") or parts.path == "/" or parts.query or parts.fragment:
        raise StartupRefused("STORAGE_URL names no folder of this machine: write it like file:///srv/deployx.")
    return value


def _as_networks(name: str, value: str) -> str:
    for one in value.split(","):
        try:
            ipaddress.ip_network(one.strip(), strict=False)
        except ValueError:
            raise StartupRefused(
                f"{name} holds {one.strip()!r}, which is no address or network: write it like 10.0.0.0/8, 192.0.2.7."
            ) from None
    return value


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check(settings: Settings) -> None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise StartupRefused("TLS needs both TLS_CERT and TLS_KEY: give the other one too.")
    if not is_loopback(settings.host) and settings.tls_cert is None and not settings.insecure_http:
        raise StartupRefused(
            f"HOST {settings.host} is not this machine alone, and there is no TLS: give --tls-cert and --tls-key,"
            " or --insecure-http where a proxy in front ends TLS."
        )
