"""The program `deployx`: its commands, and how every error becomes one line and an exit code."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from deployx import __version__, settings
from deployx.cli import admin, agent, demo, server, simulate
from deployx.errors import DeployXError, StartupRefused

DONE, FAILED, WRONG_USAGE, NOT_PERMITTED, NOT_REACHABLE = range(5)

app = typer.Typer(
    name="deployx", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
    help="Run work on fleets of devices, on schedule or at once.",
)  # fmt: skip
admin_app = typer.Typer(no_args_is_help=True, help="On the server machine: users, passwords, checks.")
app.add_typer(admin_app, name="admin")

DataDir = Annotated[Path | None, typer.Option("--data-dir", metavar="D", help="Where the server keeps its data.")]
DatabaseUrl = Annotated[str | None, typer.Option("--database-url", metavar="U")]
PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; answers its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["agent"]:
        return agent.run(given[1:])
    try:
        code = app(given, standalone_mode=False)
    except typer.TyperException as error:
        sentence = error.format_message() if hasattr(error, "format_message") else str(error)
        return _complain(f"{sentence.rstrip('.')} (see `deployx --help`)", WRONG_USAGE)
    except typer.Abort:
        return FAILED
    except StartupRefused as error:
        return _complain(error.detail, WRONG_USAGE)
    except DeployXError as error:
        return _complain(error.detail, FAILED)
    return code if isinstance(code, int) else DONE


def _complain(sentence: str, code: int) -> int:
    print(f"deployx: {sentence}", file=sys.stderr)  # noqa: T201 - a command line prints
    return code


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"deployx {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Options before the command."""


@app.command("agent", help="The device side: enroll, run, status (see `deployx agent --help`).")
def _agent() -> None:
    """Shown in the help; `main` passes its arguments on before they are parsed here."""


@app.command("server")
def _server(
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (8000).")] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    storage_url: Annotated[str | None, typer.Option("--storage-url", metavar="U", help="file:///FOLDER")] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", metavar="F")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="F")] = None,
    insecure_http: Annotated[bool, typer.Option("--insecure-http", help="A proxy in front ends TLS.")] = False,
) -> int:
    """Run the server; it brings its database up to date first."""
    flags = {
        "host": host, "port": port, "data_dir": data_dir, "database_url": database_url,
        "storage_url": storage_url, "tls_cert": tls_cert, "tls_key": tls_key, "insecure_http": insecure_http or None,
    }  # fmt: skip
    return server.run(_settings(flags))


@app.command("demo")
def _demo(
    once: Annotated[bool, typer.Option("--once", help="End after the first execution: 0 if it completed.")] = False,
    port: Annotated[int, typer.Option(help="Port of the server; 0 takes a free one.")] = 8000,
    data_dir: DataDir = None,
) -> int:
    """Everything on this machine: a server, three agents, a group, and a task that is due in a few seconds."""
    return demo.run(once=once, port=port, data_dir=data_dir)


@app.command("simulate")
def _simulate(
    since: Annotated[str, typer.Option("--from", metavar="T", help="Where to begin, like 2026-12-01T00:00:00Z.")],
    until: Annotated[str, typer.Option("--to", metavar="T", help="Where to end.")],
    down: Annotated[list[str] | None, typer.Option(metavar="T..T", help="The server is away then; repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Run the clock on virtual time over the real definitions, and print the ledger it would write."""
    begin, end, away = simulate.instant("--from", since), simulate.instant("--to", until), simulate.downs(down or [])
    chosen = _settings({"data_dir": data_dir, "database_url": database_url})
    return asyncio.run(simulate.run(chosen, begin, end, away, as_json=as_json))


@admin_app.command("verify")
def _verify(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> int:
    """Recompute what was owed and compare it with the ledger; 1 where something is wrong."""
    return asyncio.run(admin.verify(_settings({"data_dir": data_dir, "database_url": database_url})))


@admin_app.command("create-user")
def _create_user(
    name: str,
    role: Annotated[str, typer.Option(help="admin, operator or viewer")],
    password_stdin: PasswordStdin = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Add a user; without --password-stdin a password is made up and printed once."""
    chosen = _settings({"data_dir": data_dir, "database_url": database_url})
    return asyncio.run(admin.create_user(chosen, name, role, _password(password_stdin)))


@admin_app.command("reset-password")
def _reset_password(
    name: str, password_stdin: PasswordStdin = False, data_dir: DataDir = None, database_url: DatabaseUrl = None
) -> int:
    """Give a user a new password and end all the user's sessions."""
    chosen = _settings({"data_dir": data_dir, "database_url": database_url})
    return asyncio.run(admin.reset_password(chosen, name, _password(password_stdin)))


def _settings(flags: dict[str, Any]) -> settings.Settings:
    return settings.load(flags, os.environ, Path.cwd())


def _password(from_stdin: bool) -> str | None:
    return sys.stdin.readline().rstrip("\n") if from_stdin else None


def entry() -> None:
    """The installed program."""
    sys.exit(main())
