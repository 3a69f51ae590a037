"""Settings: flags over `DEPLOYX_…` environment variables over `deployx.toml`; what is unknown is refused."""

from __future__ import annotations

import difflib
import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

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

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'deployx.db'}"

    @property
    def signing_key(self) -> Path:
        return self.signing_key_file or self.data_dir / "signing.key"


def load(flags: Mapping[str, Any], environment: Mapping[str, str], folder: Path) -> Settings:
    """Put the three sources together and check them. Raises StartupRefused with a sentence."""
    path = Path(environment.get(f"{PREFIX}CONFIG", folder / "deployx.toml"))
    values: dict[str, Any] = {}
    if path.exists():
        try:
            values |= _known(
                {name.upper(): value for name, value in tomllib.loads(path.read_text()).items()}, str(path)
            )
        except tomllib.TOMLDecodeError as error:
            raise StartupRefused(f"{path} is not TOML: {error}.") from None
    given = {name.removeprefix(PREFIX): value for name, value in environment.items() if name.startswith(PREFIX)}
    values |= _known({name: value for name, value in given.items() if not _is_foreign(name)}, "the environment")
    values |= {name: value for name, value in flags.items() if value is not None}
    settings = Settings(**{name: _converted(name, value) for name, value in values.items() if value not in (None, "")})
    _check(settings)
    return settings


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
        case "port":
            if not str(value).isdecimal() or not 0 <= int(value) <= 65_535:
                raise StartupRefused(f"PORT {value!r} is no port: use 0 to 65535.")
            return int(value)
        case "data_dir" | "signing_key_file" | "tls_cert" | "tls_key":
            return Path(value).expanduser().absolute()
        case "insecure_http":
            return value is True or str(value).lower() in ("1", "true", "yes", "on")
        case "log_format" if value not in ("console", "json"):
            raise StartupRefused(f"LOG_FORMAT {value!r} is unknown: use console or json.")
        case "log_level" if str(value).lower() not in ("debug", "info", "warning", "error"):
            raise StartupRefused(f"LOG_LEVEL {value!r} is unknown: use debug, info, warning or error.")
    return str(value)


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
