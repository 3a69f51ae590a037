"""Payloads become work: what the protocol says, in the right order, in a constant number of queries."""

from __future__ import annotations

import graphlib
import hashlib
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as some
from sqlalchemy import event, text

from deployx.catalog import files, resolution, software
from deployx.catalog.blobs import Blob
from deployx.catalog.payloads import CommandPayload, FilePayload, Payload, SoftwarePayload, stored
from deployx.db.database import Database, Session
from tests.work.spine import NOW, Spine

FILES, SOFTWARE = "file_deployment", "software_deployment"


def blob(name: str) -> Blob:
    return Blob(hashlib.sha256(name.encode()).hexdigest(), len(name))


class Shop:
    """A catalogue written straight into a database."""

    def __init__(self, database: Database) -> None:
        self.spine = Spine(database)
        self.database = database

    async def set_up(self) -> None:
        await self.spine.set_up()

    async def file(self, name: str, content: str | None = None) -> int:
        async with self.database.write() as session:
            await files.announce(session, blob(content or name), now=NOW)
            return await files.add(session, name, blob(content or name), by=self.spine.owner_id, now=NOW)

    async def software(self, name: str, *depends_on: int, **installer: Any) -> int:
        given = installer or {"package_name": name, "kind": "package"}
        empty = {"arch": None, "file_id": None, "url": None, "sha256": None, "package_name": None}
        empty |= {"install_command": None, "uninstall_command": None, "detect_command": None}
        one = {"os": "linux"} | empty | {"success_exit_codes": [0]} | given
        values = {"name": name, "version": "", "description": "", "installers": [one], "depends_on": list(depends_on)}
        async with self.database.write() as session:
            return await software.create(session, values, by=self.spine.owner_id, now=NOW)

    async def work(self, kind: str, **fields: Any) -> resolution.Resolved:
        models: dict[str, type[Payload]] = {FILES: FilePayload, SOFTWARE: SoftwarePayload, "command": CommandPayload}
        body = stored(models[kind].model_validate(fields))
        async with self.database.read() as session:
            return (await resolution.work_of(session, {1: (kind, body)}))[1]

    async def names(self, **fields: Any) -> list[str]:
        found = await self.work(SOFTWARE, **fields)
        assert found.work is not None, found.refusal
        return [item["name"] for item in found.work["items"]]


async def shop(database: Database) -> Shop:
    made = Shop(database)
    await made.set_up()
    return made


async def test_a_file_deployment_is_as_the_protocol_says(database: Database) -> None:
    at = await shop(database)
    file_id = await at.file("app.conf")
    found = await at.work(FILES, file_ids=[file_id], target_path="/etc/app", mode="0640", owner="root:app")
    assert found.work == {
        "files": [{"name": "app.conf", "sha256": blob("app.conf").sha256, "size_bytes": 8}],
        "target_path": "/etc/app", "create_path_if_not_exists": True, "mode": "0640", "owner": "root:app",
        "overwrite": True, "backup": False, "follow_links": False, "timeout_seconds": 3600,
    }  # fmt: skip
    assert (found.refusal, found.digests) == (None, [blob("app.conf").sha256])


async def test_a_software_deployment_is_as_the_protocol_says(database: Database) -> None:
    at = await shop(database)
    file_id = await at.file("tool.deb")
    software_id = await at.software("tool", kind="deb", arch="x86_64", file_id=file_id)
    found = await at.work(SOFTWARE, software_ids=[software_id])
    assert found.work == {
        "action": "install", "timeout_seconds": 3600, "output_limit_bytes": 1_048_576,
        "items": [
            {
                "software_id": software_id, "name": "tool", "version": None,
                "installers": [
                    {
                        "os": "linux", "arch": "x86_64", "kind": "deb",
                        "file": {"name": "tool.deb", "sha256": blob("tool.deb").sha256, "size_bytes": 8},
                        "url": None, "sha256": None, "package_name": None, "install_command": None,
                        "uninstall_command": None, "detect_command": None, "success_exit_codes": [0],
                    }
                ],
            }
        ],
    }  # fmt: skip
    assert found.digests == [blob("tool.deb").sha256]


async def test_a_command_needs_nothing_of_the_catalogue(database: Database) -> None:
    at = await shop(database)
    found = await at.work("command", commands=["uptime", {"reboot": True}, {"run": "a", "rollback": "b"}])
    assert found.work is not None
    assert found.work["steps"] == [
        {"index": 0, "run": "uptime", "rollback": None, "timeout_seconds": 3600},
        {"index": 1, "reboot": True, "timeout_seconds": 600},
        {"index": 2, "run": "a", "rollback": "b", "timeout_seconds": 3600},
    ]
    assert (found.refusal, found.digests) == (None, [])


async def test_what_is_needed_comes_first_and_each_once(database: Database) -> None:
    at = await shop(database)
    base = await at.software("base")
    left, right = await at.software("left", base), await at.software("right", base)
    top = await at.software("top", left, right)
    assert await at.names(software_ids=[top]) == ["base", "left", "right", "top"]
    assert await at.names(software_ids=[right, top]) == ["base", "right", "left", "top"]


async def test_uninstalling_takes_what_was_asked_alone_dependents_first(database: Database) -> None:
    at = await shop(database)
    base = await at.software("base")
    middle = await at.software("middle", base)
    top = await at.software("top", middle)
    assert await at.names(software_ids=[base, top], action="uninstall") == ["top", "base"]
    assert await at.names(software_ids=[middle], action="uninstall") == ["middle"]


async def test_custom_software_comes_after_the_catalogues(database: Database) -> None:
    at = await shop(database)
    one = await at.software("one")
    assert await at.names(software_ids=[one], custom_software="curl") == ["one", "curl"]
    assert await at.names(software_ids=[one], custom_software="curl", action="uninstall") == ["curl", "one"]
    custom = {"name": "x", "url": "https://e.org/x.sh?y=1", "sha256": "AB" * 32}
    found = await at.work(SOFTWARE, custom_software=custom)
    assert found.work is not None
    (item,) = found.work["items"]
    assert (item["software_id"], item["version"]) == (None, None)
    assert [(one["os"], one["kind"], one["url"], one["sha256"]) for one in item["installers"]] == [
        (system, "sh", "https://e.org/x.sh?y=1", "ab" * 32) for system in ("linux", "macos")
    ]
    assert found.digests == []


async def test_a_package_name_is_for_every_system(database: Database) -> None:
    found = await (await shop(database)).work(SOFTWARE, custom_software="curl")
    assert found.work is not None
    shown = [(one["os"], one["kind"], one["package_name"]) for one in found.work["items"][0]["installers"]]
    assert shown == [(system, "package", "curl") for system in ("linux", "windows", "macos")]


async def test_what_is_gone_is_refused_by_its_id(database: Database) -> None:
    at = await shop(database)
    for fields, kind, said in (
        ({"file_ids": [9], "target_path": "/t"}, FILES, "File 9 does not exist any more."),
        ({"software_ids": [9]}, SOFTWARE, "Software 9 does not exist any more."),
    ):
        found = await at.work(kind, **fields)
        assert (found.work, found.refusal, found.digests) == (None, said, [])


async def test_two_different_files_of_one_name_are_refused_and_the_same_twice_is_one(database: Database) -> None:
    at = await shop(database)
    first, same, other = await at.file("a"), await at.file("a"), await at.file("a", "another content")
    found = await at.work(FILES, file_ids=[first, same], target_path="/t")
    assert found.work is not None
    assert len(found.work["files"]) == 1
    found = await at.work(FILES, file_ids=[first, other], target_path="/t")
    assert found.refusal == "Two different files are named 'a': one would overwrite the other."


async def test_any_number_of_payloads_takes_the_same_number_of_queries(database: Database) -> None:
    at = await shop(database)
    file_id = await at.file("f")
    ids = [await at.software("s0", kind="deb", file_id=file_id)]
    for number in range(1, 6):
        ids.append(await at.software(f"s{number}", ids[-1]))
    asked: list[str] = []

    async def count(session: Session, payloads: dict[int, Any]) -> int:
        asked.clear()
        await resolution.work_of(session, payloads)
        return len(asked)

    async with database.read() as session:
        await session.execute(text("SELECT 1"))
        engine = session.engine.sync_engine
        event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
        bodies = [stored(SoftwarePayload(software_ids=[one])) for one in ids]
        bodies_of_files = [stored(FilePayload(file_ids=[file_id], target_path="/t"))] * 40
        few = {1: (SOFTWARE, bodies[0]), 2: (FILES, bodies_of_files[0])}
        many = dict(enumerate([(SOFTWARE, one) for one in bodies * 20] + [(FILES, one) for one in bodies_of_files]))
        assert await count(session, few) == await count(session, many) == 3


Graphs = some.integers(1, 12).flatmap(
    lambda size: some.tuples(
        some.lists(some.integers(0, size - 1), min_size=1, unique=True),
        some.dictionaries(some.integers(0, size - 1), some.lists(some.integers(0, size - 1), unique=True)),
    )
)


@given(Graphs)
def test_any_graph_is_worked_off_with_what_is_needed_first(given_graph: tuple[list[int], dict[int, list[int]]]) -> None:
    asked, edges = given_graph
    needs = {node: sorted(one for one in others if one < node) for node, others in edges.items()}  # no cycles
    order = resolution.in_order(asked, needs)
    assert len(order) == len(set(order))
    wanted, waiting = set(asked), list(asked)
    while waiting:
        for other in needs.get(waiting.pop(), []):
            if other not in wanted:
                wanted.add(other)
                waiting.append(other)
    assert set(order) == wanted
    places = {node: place for place, node in enumerate(order)}
    assert all(places[other] < places[node] for node in order for other in needs.get(node, []))
    assert order == resolution.in_order(asked, needs)
    if not any(needs.get(one) for one in wanted):
        assert order == asked


@given(Graphs)
def test_a_way_back_is_found_exactly_where_there_is_a_cycle(
    given_graph: tuple[list[int], dict[int, list[int]]],
) -> None:
    asked, edges = given_graph
    path = software.path_back(asked[0], edges)
    if path is not None:
        assert path[0] == path[-1] == asked[0]
        assert all(after in edges[before] for before, after in pairwise(path))
    else:
        reachable: set[int] = set()
        waiting = [asked[0]]
        while waiting:
            for other in edges.get(waiting.pop(), []):
                if other not in reachable:
                    reachable.add(other)
                    waiting.append(other)
        assert asked[0] not in reachable
    try:
        list(graphlib.TopologicalSorter(edges).static_order())
    except graphlib.CycleError:
        pass
    else:
        assert path is None
