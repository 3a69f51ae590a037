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


class EnrolmentFailed(Exception):
    """The sentence says why; `exit_code` is what the command ends with."""

    def __init__(self, detail: str, exit_code: int) -> None:
        super().__init__(detail)
        self.exit_code = exit_code


def enroll(
    data_dir: Path, server: str, key: str, name: str, *, ca_file: str | None, insecure_http: bool
) -> Enrolment:  # fmt: skip
    """Enrol this device and store what it was given. Raises EnrolmentFailed."""
    require_safe(server, insecure_http=insecure_http)
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (data_dir / "agent.json").exists():
        raise EnrolmentFailed(f"{data_dir} holds an enrolment already: remove it, or name another folder.", 1)
    private_key = identity.load_or_create(data_dir)
    public_key = base64.b64encode(identity.public_bytes(private_key)).decode()
    request = {"activation_key": key, "public_key": public_key, "name": name, "facts": collect()}
    answer = _post(f"{server.rstrip('/')}/api/agent/enroll", request, ca_file)
    enrolment = Enrolment(
        server=server,
        device_id=answer["device_id"],
        device_name=answer["device_name"],
        installation_id=answer["installation_id"],
        server_public_key=answer["server_public_key"],
        ca_file=ca_file,
        insecure_http=insecure_http,
    )
    config.save(data_dir, enrolment)
    return enrolment


def require_safe(server: str, *, insecure_http: bool) -> None:
    """Refuse to speak without TLS to anything but this machine, unless told otherwise. Raises EnrolmentFailed."""
    parts = urllib.parse.urlsplit(server)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EnrolmentFailed(f"The server address {server!r} is no http or https URL.", 2)
    if parts.scheme == "http" and not insecure_http and not _is_loopback(parts.hostname):
        raise EnrolmentFailed(f"{server} has no TLS and is not this machine: use https, or --insecure-http.", 2)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _post(url: str, values: dict[str, Any], ca_file: str | None) -> dict[str, Any]:
    request = urllib.request.Request(
        url, json.dumps(values).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    context = ssl.create_default_context(cafile=ca_file) if url.startswith("https:") else None
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        with error:
            detail = _detail(error.read())
        raise EnrolmentFailed(
            f"The server refused ({error.code}): {detail}", 3 if error.code in (401, 403) else 1
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise EnrolmentFailed(f"The server {url} could not be reached: {reason}.", 4) from None


def _detail(body: bytes) -> str:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
