"""The line between agent and server under TLS, with a certificate of the test's own."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.story.fleet import fleet


def _certificate(folder: Path) -> Path:
    """A certificate for this machine that signs itself; its key lies beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "test.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path.with_suffix(".key").write_bytes(key_bytes)
    return path


def test_a_command_runs_over_tls_and_an_agent_that_does_not_trust_the_server_stays_away(tmp_path: Path) -> None:
    with fleet(tmp_path, f"sqlite:///{tmp_path / 'tls.db'}", _certificate(tmp_path)) as story:
        device_id = story.device("web")
        run = story.ended_run(story.run("echo secure", [device_id]))
        assert (run["status"], story.output(run["id"])) == ("succeeded", "secure\n")
        command = [sys.executable, "-m", "deployx_agent", "enroll", "--server", str(story.client.base_url)]
        environment = {**os.environ, "DEPLOYX_KEY": "any"}
        refused = subprocess.run(
            [*command, "--data-dir", "other"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == 4
        assert "certificate" in refused.stderr
