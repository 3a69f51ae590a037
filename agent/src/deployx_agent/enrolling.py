"""Enrolment: trades an activation key for a device id, and pins the server's key."""

from __future__ import annotations

import base64
import ipaddress
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from deployx_agent import config, identity
from deployx_agent.config import Enrolment
from deployx_agent.facts import collect

FAILED, WRONG_USAGE, NOT_PERMITTED, NOT_REACHABLE = 1, 2, 3, 4
TIMEOUT_SECONDS = 30


class EnrolmentFailed(Exception):
    """The sentence says why; `exit_code` is what the command ends with."""

    def __init__(self, detail: str, exit_code: int) -> None:
        super().__init__(detail)
        self.exit_code = exit_code


def enroll(
    data_dir: Path, server: str, key: str, name: str, *, ca_file: Path | None, insecure_http: bool
) -> Enrolment:  # fmt: skip
    """Enrol this device and store what it was given. Raises EnrolmentFailed, or OSError for the data folder."""
    require_safe(server, insecure_http=insecure_http)
    context = _tls(server, ca_file)
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (data_dir / "agent.json").exists():
        raise EnrolmentFailed(f"{data_dir} holds an enrolment already: remove it, or name another folder.", FAILED)
    public_key = base64.b64encode(identity.public_bytes(identity.load_or_create(data_dir))).decode()
    request = {"activation_key": key, "public_key": public_key, "name": name, "facts": collect()}
    answer = _post(f"{server.rstrip('/')}/api/agent/enroll", request, context)
    own = {"server": server, "ca_file": str(ca_file.absolute()) if ca_file else None, "insecure_http": insecure_http}
    try:
        enrolment = config.parse({**answer, **own})
    except ValueError as error:
        raise EnrolmentFailed(f"{server} does not answer as a DeployX server: {error}.", FAILED) from None
    config.save(data_dir, enrolment)
    return enrolment


def require_safe(server: str, *, insecure_http: bool) -> None:
    """Refuse to speak without TLS to anything but this machine, unless told otherwise. Raises EnrolmentFailed."""
    try:
        parts = urllib.parse.urlsplit(server)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise EnrolmentFailed(f"The server address {server!r} is no URL.", WRONG_USAGE) from None
    if parts.scheme not in ("http", "https") or not host:
        raise EnrolmentFailed(f"The server address {server!r} is no http or https URL.", WRONG_USAGE)
    if parts.scheme == "http" and not insecure_http and not _is_loopback(host):
        raise EnrolmentFailed(
            f"{server} has no TLS and is not this machine: use https, or --insecure-http.", WRONG_USAGE
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls(server: str, ca_file: Path | None) -> ssl.SSLContext | None:
    if not server.startswith("https:"):
        return None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        reason = error.strerror or "no certificate in it"
        raise EnrolmentFailed(f"The certificate file {str(ca_file)!r} cannot be used: {reason}.", WRONG_USAGE) from None


def _post(url: str, values: dict[str, Any], context: ssl.SSLContext | None) -> dict[str, Any]:
    request = urllib.request.Request(
        url, json.dumps(values).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=context) as answer:
            return _object(url, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            detail = _detail(error.read())
        code = NOT_PERMITTED if error.code in (401, 403) else FAILED
        raise EnrolmentFailed(f"The server refused ({error.code}): {detail}", code) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise EnrolmentFailed(f"The server {url} could not be reached: {reason}.", NOT_REACHABLE) from None


def _object(url: str, body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EnrolmentFailed(f"{url} does not answer as a DeployX server: {body[:80]!r}.", FAILED)
    return found


def _detail(body: bytes) -> str:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
