"""How fast a file reaches a fleet: 50 MB to 20 real agents over TLS, beside scp and Ansible in the same run.

Each round copies new random bytes, so that nothing is there already, and compares what arrived. The peers go to an
sshd of their own on loopback, where one is installed; Ansible where `ansible` is on the path. What is not to be had is
said in the figures. Usage: bench_files.py [megabytes, default 50] [targets, default 20]
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from tests.story.certificates import certificate
from tests.story.fleet import Fleet, fleet

from benchmarks.machine import report

ROUNDS = 3
SSHD = "/usr/sbin/sshd"


class Memory:
    """The most that a process needed while this ran, in bytes."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.before = self.most = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, self._process.memory_info().rss)


def new_file(folder: Path, megabytes: int) -> tuple[Path, str]:
    path = folder / "payload.bin"
    content = os.urandom(megabytes * 1_000_000)
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def digests(paths: list[Path]) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def by_agents(
    story: Fleet, device_ids: list[int], source: Path, digest: str, targets: list[Path]
) -> dict[str, float]:  # fmt: skip
    """Seconds of the upload, and from the first request to the last committed result.

    The agents share this machine, so each gets a folder and a deployment of its own: what arrived is compared for each.
    """
    began = time.perf_counter()
    with source.open("rb") as content:
        file = story.good(story.client.post("/api/files", files={"file": (source.name, content)}))
    uploaded = time.perf_counter()

    def deploy(device_id: int, target: Path) -> int:
        payload = {"file_ids": [file["id"]], "target_path": str(target)}
        body = {"deployment_type": "file_deployment", "file_payload": payload, "device_ids": [device_id]}
        return int(story.good(story.client.post("/api/deployments", json=body))["id"])

    with ThreadPoolExecutor(len(targets)) as threads:
        made = list(threads.map(deploy, device_ids, targets))
    story.wait_for(lambda: story.get("/api/deployments?status=running")["total"] == 0, seconds=300)
    ended = time.perf_counter()
    assert {story.get(f"/api/deployments/{one}")["status"] for one in made} == {"completed"}
    assert digests([target / source.name for target in targets]) == {digest}
    return {"upload": uploaded - began, "deploy": ended - uploaded}


@contextlib.contextmanager
def sshd(folder: Path) -> Iterator[list[str] | None]:
    """An sshd on loopback; yields what scp and Ansible need to know of it, or None where there is none."""
    if not Path(SSHD).exists() or not shutil.which("scp"):
        yield None
        return
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "id.pub", folder / "authorized_keys")
    lines = [
        "Port 22022", "ListenAddress 127.0.0.1", f"HostKey {folder}/host", f"PidFile {folder}/pid",
        f"AuthorizedKeysFile {folder}/authorized_keys", "PermitRootLogin yes", "PasswordAuthentication no", "UsePAM no",
        "UseDNS no", "StrictModes no", "MaxStartups 2000", "MaxSessions 100", "Subsystem sftp internal-sftp",
    ]  # fmt: skip
    (folder / "conf").write_text("\n".join(lines) + "\n")
    server = subprocess.Popen([SSHD, "-D", "-f", str(folder / "conf")])
    time.sleep(0.5)
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    try:
        yield ["-i", str(folder / "id"), *options]
    finally:
        server.terminate()
        server.wait()


def by_scp(options: list[str], source: Path, digest: str, targets: list[Path]) -> float:
    began = time.perf_counter()
    user = os.environ.get("USER", "root")
    copies = [
        subprocess.Popen(["scp", "-q", "-P", "22022", *options, str(source), f"{user}@127.0.0.1:{target}/"])
        for target in targets
    ]
    assert [one.wait() for one in copies] == [0] * len(copies)
    seconds = time.perf_counter() - began
    assert digests([target / source.name for target in targets]) == {digest}
    return seconds


def by_ansible(options: list[str], folder: Path, source: Path, digest: str, targets: list[Path]) -> float | None:
    if not shutil.which("ansible"):
        return None
    arguments = " ".join(options)
    hosts = [
        f"t{number} ansible_host=127.0.0.1 ansible_port=22022 target={target}"
        f" ansible_python_interpreter={sys.executable}"
        f" ansible_ssh_extra_args='{arguments}'"
        for number, target in enumerate(targets)
    ]
    (folder / "hosts").write_text("\n".join(hosts) + "\n")
    began = time.perf_counter()
    command = ["ansible", "all", "-i", str(folder / "hosts"), "-f", str(len(targets)), "-m", "copy"]
    subprocess.run([*command, "-a", f"src={source} dest={{{{target}}}}/"], check=True, capture_output=True)
    seconds = time.perf_counter() - began
    assert digests([target / source.name for target in targets]) == {digest}
    return seconds


def cleared(folder: Path, count: int) -> list[Path]:
    shutil.rmtree(folder, ignore_errors=True)
    targets = [folder / f"t{number}" for number in range(count)]
    for target in targets:
        target.mkdir(parents=True)
    return targets


def measure(megabytes: int, count: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="deployx-bench-"))
    figures: dict[str, list[float]] = {"upload": [], "deploy": [], "scp": [], "ansible": []}
    with (
        fleet(folder, f"sqlite:///{folder / 'deployx.db'}", certificate(folder)) as story,
        sshd(folder) as options,
    ):
        ids = [story.device(f"a{number}") for number in range(count)]
        assert story._server is not None
        with Memory(story._server.pid) as memory:
            for _ in range(ROUNDS):
                source, digest = new_file(folder, megabytes)
                took = by_agents(story, ids, source, digest, cleared(folder / "placed", count))
                for name, seconds in took.items():
                    figures[name].append(seconds)
                if options is not None:
                    figures["scp"].append(by_scp(options, source, digest, cleared(folder / "peer", count)))
                    ansible = by_ansible(options, folder, source, digest, cleared(folder / "peer", count))
                    figures["ansible"] += [] if ansible is None else [ansible]
    middle = {name: round(statistics.median(found), 2) if found else None for name, found in figures.items()}
    ratio: Any = round(middle["deploy"] / middle["scp"], 2) if middle["deploy"] and middle["scp"] else None
    report(
        "files",
        {
            "megabytes": megabytes,
            "targets": count,
            "seconds": middle,
            "deploy_to_scp": ratio,
            "server_memory_growth_mib": round((memory.most - memory.before) / 2**20, 1),
            "rounds": {name: [round(one, 2) for one in found] for name, found in figures.items()},
        },
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    asked = [int(one) for one in sys.argv[1:]]
    measure(*(asked + [50, 20][len(asked) :]))
