"""The storage on disk: whole contents under their digests, nothing left behind, and the sweep that takes turns."""

from __future__ import annotations

import asyncio
import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text

from deployx.catalog import files, sweeping
from deployx.catalog.blobs import Blob, BlobStore
from deployx.db.bulk import moment_parameter
from deployx.db.database import Database, Session
from deployx.errors import NotFound, StartupRefused, StorageFull
from tests.work.spine import Spine

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    made = BlobStore(tmp_path / "storage")
    made.prepare()
    return made


def put(store: BlobStore, content: bytes) -> Blob:
    incoming = store.receive()
    incoming.write(content)
    blob = incoming.finish()
    store.place(incoming)
    return blob


def on_disk(store: BlobStore) -> list[str]:
    """Everything that lies in the storage."""
    folder = store._blobs
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_content_lies_once_under_its_digest_however_often_it_comes(store: BlobStore) -> None:
    first, second = put(store, b"content"), put(store, b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    assert first == second == Blob(digest, 7)
    assert on_disk(store) == [f"{digest[:2]}/{digest}"]
    with store.open(digest) as file:
        assert file.read() == b"content"


def test_a_torn_content_is_replaced_by_the_whole_one(store: BlobStore) -> None:
    blob = put(store, b"content")
    store._path(blob.sha256).write_bytes(b"con")
    put(store, b"content")
    with store.open(blob.sha256) as file:
        assert file.read() == b"content"


def test_what_is_discarded_leaves_nothing_behind(store: BlobStore) -> None:
    incoming = store.receive()
    incoming.write(b"unwanted")
    incoming.discard()
    incoming.discard()
    assert on_disk(store) == []


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 63, "g" * 64])
def test_nothing_but_a_digest_names_a_content(store: BlobStore, digest: str) -> None:
    with pytest.raises(NotFound):
        store.open(digest)


def test_a_content_that_is_gone_is_not_found(store: BlobStore) -> None:
    with pytest.raises(NotFound, match="gone"):
        store.open("a" * 64)


def test_a_storage_that_is_no_folder_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupRefused, match="cannot be used"):
        BlobStore(tmp_path / "file").prepare()


def test_a_full_disk_is_told_and_leaves_nothing_behind(small_disk: Path) -> None:
    store = BlobStore(small_disk)
    store.prepare()
    incoming = store.receive()
    with pytest.raises(StorageFull, match="No room"):
        incoming.write(b"x" * 4 * 1024 * 1024)
    incoming.discard()
    assert on_disk(store) == []


# -- the sweep --------------------------------------------------------------------------------------------------


async def _age(database: Database, store: BlobStore, blob: Blob) -> None:
    """Make a stored content look as if it came long ago."""

    async def work(session: Session) -> None:
        values = {"at": moment_parameter(session, LONG_AGO), "sha256": blob.sha256}
        await session.execute(text("UPDATE blobs SET created_at = :at WHERE sha256 = :sha256"), values)

    await database.transact(work)
    os.utime(store._path(blob.sha256), (LONG_AGO.timestamp(), LONG_AGO.timestamp()))


async def _announced(database: Database, blob: Blob) -> None:
    async def work(session: Session) -> None:
        await files.announce(session, blob, now=await database.now(session))

    await database.transact(work)


async def _uploaded(database: Database, store: BlobStore, content: bytes, *, by: int) -> tuple[int, Blob]:
    """What the upload route does, step by step."""
    incoming = await asyncio.to_thread(store.receive)
    incoming.write(content)
    blob = incoming.finish()
    await _announced(database, blob)
    await asyncio.to_thread(store.place, incoming)

    async def work(session: Session) -> int:
        return await files.add(session, "f", blob, by=by, now=await database.now(session))

    return await database.transact(work), blob


async def test_an_orphan_goes_after_a_day_and_a_named_content_stays(database: Database, store: BlobStore) -> None:
    spine = Spine(database)
    await spine.set_up()
    _, kept = await _uploaded(database, store, b"kept", by=spine.owner_id)
    young, old = put(store, b"young"), put(store, b"old")
    for blob in (young, old):
        await _announced(database, blob)
    for blob in (kept, old):
        await _age(database, store, blob)
    assert await sweeping.sweep(database, store) == 1
    assert on_disk(store) == sorted(f"{one.sha256[:2]}/{one.sha256}" for one in (kept, young))
    assert await spine.count("blobs") == 2
    assert await sweeping.sweep(database, store) == 0


async def test_leftovers_of_broken_uploads_go_after_a_day(database: Database, store: BlobStore) -> None:
    old, young = store.receive(), store.receive()
    os.utime(old.path, (LONG_AGO.timestamp(), LONG_AGO.timestamp()))
    assert await sweeping.sweep(database, store) == 1
    assert on_disk(store) == [f"incoming/{young.path.name}"]
    old.discard()
    young.discard()


async def test_a_content_that_the_database_does_not_know_goes_too(database: Database, store: BlobStore) -> None:
    blob = put(store, b"of a database that was put back")
    assert await sweeping.sweep(database, store) == 0
    os.utime(store._path(blob.sha256), (LONG_AGO.timestamp(), LONG_AGO.timestamp()))
    assert await sweeping.sweep(database, store) == 1
    assert on_disk(store) == []


async def test_more_orphans_than_one_transaction_takes_all_go(database: Database, store: BlobStore) -> None:
    for number in range(sweeping.AT_ONCE * 2 + 1):
        blob = put(store, str(number).encode())
        os.utime(store._path(blob.sha256), (LONG_AGO.timestamp(), LONG_AGO.timestamp()))
    assert await sweeping.sweep(database, store) == sweeping.AT_ONCE * 2 + 1
    assert on_disk(store) == []


async def test_the_sweep_never_takes_a_content_from_under_a_new_file(database: Database, store: BlobStore) -> None:
    spine = Spine(database)
    await spine.set_up()
    for _ in range(20):
        blob = put(store, b"wanted again")
        await _announced(database, blob)
        await _age(database, store, blob)
        uploads = [_uploaded(database, store, b"wanted again", by=spine.owner_id) for _ in range(3)]
        done = await asyncio.gather(*uploads, sweeping.sweep(database, store), sweeping.sweep(database, store))
        with store.open(blob.sha256) as file:
            assert file.read() == b"wanted again"
        async with database.write() as session:
            for uploaded in done[:3]:
                assert isinstance(uploaded, tuple)
                await files.remove(session, uploaded[0])


async def test_an_upload_announced_before_the_sweep_looks_keeps_its_content(
    database: Database, store: BlobStore
) -> None:
    spine = Spine(database)
    await spine.set_up()
    blob = put(store, b"content")
    await _announced(database, blob)
    await _age(database, store, blob)
    await _announced(database, blob)  # an upload of the same content is at this step
    assert await sweeping.sweep(database, store) == 0
    assert on_disk(store) == [f"{blob.sha256[:2]}/{blob.sha256}"]
