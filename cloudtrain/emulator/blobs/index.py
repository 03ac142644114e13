"""What a storage account holds: containers, blobs, the blocks they are made of, leases; one SQLite database beside
the files with the bytes.

Safe under several processes and under kill -9 or a power cut at any moment: bytes are on disk before the index names
them, and a commit is on disk before it is acknowledged (synchronous=FULL). Never use a connection after a fork.
"""

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cloudtrain.emulator.blobs.content import Content, NoSuchAccount, Received, Stretch, flush_directory
from cloudtrain.emulator.blobs.leases import Lease
from cloudtrain.emulator.store import UnusableStore

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('etag', 0);
CREATE TABLE IF NOT EXISTS containers (
  name TEXT PRIMARY KEY, etag TEXT NOT NULL, modified REAL NOT NULL, metadata TEXT NOT NULL, policies TEXT NOT NULL,
  lease TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blobs (
  id INTEGER PRIMARY KEY, container TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, etag TEXT NOT NULL,
  created REAL NOT NULL, modified REAL NOT NULL, size INTEGER NOT NULL, properties TEXT NOT NULL,
  metadata TEXT NOT NULL, lease TEXT NOT NULL, UNIQUE (container, name));
CREATE TABLE IF NOT EXISTS pieces (
  blob INTEGER NOT NULL, position INTEGER NOT NULL, start INTEGER NOT NULL, size INTEGER NOT NULL, file TEXT NOT NULL,
  block_id TEXT NOT NULL, PRIMARY KEY (blob, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS small (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS blocks (
  container TEXT NOT NULL, blob TEXT NOT NULL, block_id TEXT NOT NULL, position INTEGER NOT NULL, size INTEGER NOT NULL,
  file TEXT NOT NULL, staged REAL NOT NULL, PRIMARY KEY (container, blob, block_id)) WITHOUT ROWID;
"""
_VERSION = 1
_TICKS_TO_1970 = 621355968000000000  # .NET's: 100 ns since year 1
_UNCOMMITTED_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Piece:
    """A run of bytes of a blob. file: its name, '#12' for the small bytes with that number."""

    file: str
    size: int
    block_id: str = ""


@dataclass
class Container:
    name: str
    etag: str
    modified: float
    metadata: dict[str, str] = field(default_factory=dict)
    policies: list[dict[str, str]] = field(default_factory=list)  # id, start, expiry, permission
    lease: Lease = field(default_factory=Lease)


@dataclass
class Blob:
    """properties: headers of the content, by their names in an answer (Content-Type, Content-MD5 ...)."""

    container: str
    name: str
    kind: str  # BlockBlob or AppendBlob
    etag: str
    created: float
    modified: float
    size: int = 0
    properties: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    lease: Lease = field(default_factory=Lease)
    id: int = 0


class Rows:
    """The tables, inside one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    def etag(self, now: float) -> str:
        """Never the same twice, whatever the clock does."""
        ticks = _TICKS_TO_1970 + int(now * 1e7)
        row = self._sql.execute(
            "UPDATE meta SET value = max(value + 1, ?) WHERE key = 'etag' RETURNING value", (ticks,)
        ).fetchone()
        return f"0x{row[0]:X}"

    # containers

    def container(self, name: str) -> Container | None:
        row = self._sql.execute(f"{_CONTAINERS} WHERE name = ?", (name,)).fetchone()
        return None if row is None else _container(row)

    def containers(self) -> list[Container]:
        return [_container(row) for row in self._sql.execute(f"{_CONTAINERS} ORDER BY name")]

    def put_container(self, container: Container) -> None:
        self._sql.execute(
            "INSERT OR REPLACE INTO containers (name, etag, modified, metadata, policies, lease) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (
                container.name,
                container.etag,
                container.modified,
                json.dumps(container.metadata),
                json.dumps(container.policies),
                json.dumps(asdict(container.lease)),
            ),
        )

    def delete_container(self, name: str) -> list[str]:
        """The files that nothing names any more."""
        files = self._files("SELECT file FROM pieces JOIN blobs ON blobs.id = pieces.blob WHERE container = ?", name)
        files += self._files("SELECT file FROM blocks WHERE container = ?", name)
        self._sql.execute("DELETE FROM pieces WHERE blob IN (SELECT id FROM blobs WHERE container = ?)", (name,))
        for table, column in (("blobs", "container"), ("blocks", "container"), ("containers", "name")):
            self._sql.execute(f"DELETE FROM {table} WHERE {column} = ?", (name,))
        return self._forget(files)

    # bytes

    def piece(self, received: Received, block_id: str = "") -> Piece:
        """What was received, for a blob to be made of."""
        file = received.file
        if not file:
            row = self._sql.execute("INSERT INTO small (data) VALUES (?) RETURNING id", (received.small,)).fetchone()
            file = f"#{row[0]}"
        return Piece(file, received.size, block_id)

    def _forget(self, files: list[str]) -> list[str]:
        """Remove what is small; the files that are left to remove."""
        small = {file for file in files if file.startswith("#")}
        self._sql.executemany("DELETE FROM small WHERE id = ?", [(int(file[1:]),) for file in small])
        return sorted(set(files) - small)

    def _stretch(self, file: str, offset: int, size: int) -> Stretch:
        if not file.startswith("#"):
            return file, offset, size
        query = "SELECT substr(data, ?, ?) FROM small WHERE id = ?"
        return bytes(self._sql.execute(query, (offset + 1, size, int(file[1:]))).fetchone()[0])

    # blobs

    def blob(self, container: str, name: str) -> Blob | None:
        row = self._sql.execute(f"{_BLOBS} WHERE container = ? AND name = ?", (container, name)).fetchone()
        return None if row is None else _blob(row)

    def blobs(self, container: str, begin: str) -> Iterator[Blob]:
        """In the order of their names, from `begin` on."""
        for row in self._sql.execute(f"{_BLOBS} WHERE container = ? AND name >= ? ORDER BY name", (container, begin)):
            yield _blob(row)

    def put_blob(self, blob: Blob) -> None:
        """Insert or replace; the bytes of an existing one stay."""
        row = self._sql.execute(
            "INSERT INTO blobs (container, name, kind, etag, created, modified, size, properties, metadata, lease) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (container, name) DO UPDATE SET kind=excluded.kind, "
            "etag=excluded.etag, created=excluded.created, modified=excluded.modified, size=excluded.size, "
            "properties=excluded.properties, metadata=excluded.metadata, lease=excluded.lease RETURNING id",
            (
                blob.container,
                blob.name,
                blob.kind,
                blob.etag,
                blob.created,
                blob.modified,
                blob.size,
                json.dumps(blob.properties),
                json.dumps(blob.metadata),
                json.dumps(asdict(blob.lease)),
            ),
        ).fetchone()
        blob.id = int(row[0])

    def replace_content(self, blob: Blob, pieces: Sequence[Piece]) -> list[str]:
        """Give a blob other bytes, and forget its staged blocks; the files that nothing names any more."""
        before = self._files("SELECT file FROM pieces WHERE blob = ?", blob.id)
        before += self._files("SELECT file FROM blocks WHERE container = ? AND blob = ?", blob.container, blob.name)
        self._sql.execute("DELETE FROM pieces WHERE blob = ?", (blob.id,))
        self._sql.execute("DELETE FROM blocks WHERE container = ? AND blob = ?", (blob.container, blob.name))
        self._add_pieces(blob.id, 0, 0, pieces)
        kept = {piece.file for piece in pieces}
        return self._forget([file for file in before if file not in kept])

    def append(self, blob: Blob, piece: Piece) -> int:
        """Add bytes at the end, before the blob's size is changed; how many blocks it has now."""
        position = self.block_count(blob)
        self._add_pieces(blob.id, position, blob.size, [piece])
        return position + 1

    def block_count(self, blob: Blob) -> int:
        return int(self._sql.execute("SELECT count(*) FROM pieces WHERE blob = ?", (blob.id,)).fetchone()[0])

    def _add_pieces(self, blob: int, position: int, start: int, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            self._sql.execute(
                "INSERT INTO pieces (blob, position, start, size, file, block_id) VALUES (?, ?, ?, ?, ?, ?)",
                (blob, position, start, piece.size, piece.file, piece.block_id),
            )
            position, start = position + 1, start + piece.size

    def delete_blob(self, blob: Blob) -> list[str]:
        """The files that nothing names any more."""
        files = self.replace_content(blob, [])
        self._sql.execute("DELETE FROM blobs WHERE id = ?", (blob.id,))
        return files

    def pieces(self, blob: Blob) -> list[Piece]:
        rows = self._sql.execute("SELECT file, size, block_id FROM pieces WHERE blob = ? ORDER BY position", (blob.id,))
        return [Piece(*row) for row in rows]

    def covering(self, blob: Blob, begin: int, end: int) -> list[Stretch]:
        """Where the bytes from begin to end (exclusive) lie."""
        rows = self._sql.execute(
            "SELECT file, start, size FROM pieces WHERE blob = ? AND start < ? AND start + size > ? ORDER BY position",
            (blob.id, end, begin),
        )
        return [
            self._stretch(file, max(0, begin - start), min(end, start + size) - max(begin, start))
            for file, start, size in rows.fetchall()
        ]

    # staged blocks

    def stage(self, container: str, blob: str, piece: Piece, now: float) -> list[str]:
        """The file of the block that it replaces, if any."""
        key = (container, blob, piece.block_id)
        old = self._files("SELECT file FROM blocks WHERE container = ? AND blob = ? AND block_id = ?", *key)
        self._sql.execute(
            "INSERT OR REPLACE INTO blocks (container, blob, block_id, position, size, file, staged) VALUES "
            "(?, ?, ?, (SELECT coalesce(max(position), -1) + 1 FROM blocks WHERE container = ? AND blob = ?), ?, ?, ?)",
            (*key, container, blob, piece.size, piece.file, now),
        )
        return self._forget(old)

    def staged(self, container: str, blob: str) -> list[Piece]:
        rows = self._sql.execute(
            "SELECT file, size, block_id FROM blocks WHERE container = ? AND blob = ? ORDER BY position",
            (container, blob),
        )
        return [Piece(*row) for row in rows]

    def one_staged(self, container: str, blob: str) -> str | None:
        """The id of any staged block."""
        row = self._sql.execute(
            "SELECT block_id FROM blocks WHERE container = ? AND blob = ? LIMIT 1", (container, blob)
        ).fetchone()
        return None if row is None else str(row[0])

    def has_stale_blocks(self, now: float) -> bool:
        query = "SELECT 1 FROM blocks WHERE staged < ? LIMIT 1"
        return self._sql.execute(query, (now - _UNCOMMITTED_SECONDS,)).fetchone() is not None

    def forget_stale_blocks(self, now: float) -> None:
        """Azure discards what was staged and not committed within a week."""
        before = now - _UNCOMMITTED_SECONDS
        self._forget(self._files("SELECT file FROM blocks WHERE staged < ?", before))
        self._sql.execute("DELETE FROM blocks WHERE staged < ?", (before,))

    def files(self) -> set[str]:
        found = self._files("SELECT file FROM pieces UNION SELECT file FROM blocks")
        return {file for file in found if not file.startswith("#")}

    def _files(self, query: str, *values: Any) -> list[str]:
        return [str(row[0]) for row in self._sql.execute(query, values)]


_CONTAINERS = "SELECT name, etag, modified, metadata, policies, lease FROM containers"
_BLOBS = "SELECT container, name, kind, etag, created, modified, size, properties, metadata, lease, id FROM blobs"


def _container(row: tuple[Any, ...]) -> Container:
    name, etag, modified, metadata, policies, lease = row
    return Container(name, etag, modified, json.loads(metadata), json.loads(policies), Lease(**json.loads(lease)))


def _blob(row: tuple[Any, ...]) -> Blob:
    container, name, kind, etag, created, modified, size, properties, metadata, lease, blob_id = row
    return Blob(
        container,
        name,
        kind,
        etag,
        created,
        modified,
        size,
        json.loads(properties),
        json.loads(metadata),
        Lease(**json.loads(lease)),
        blob_id,
    )


class Index:
    """One account's index and the files beside it, in a directory that is there as long as the account is. Whatever is
    asked of it raises NoSuchAccount where the directory is missing, and StoreError where it cannot be used."""

    def __init__(self, directory: Path, now: float) -> None:
        self._directory = directory
        self.path = directory / "index.db"
        self._mutex = threading.RLock()
        with self._told():
            self.content = Content(directory / "content")
            with _exclusively(directory / "index.lock"):  # SQLite's busy timeout does not cover the switch to WAL
                self._connection = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
                self.path.chmod(0o600)
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=FULL")
                self._check_version()
                self._connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
            flush_directory(directory)
            flush_directory(directory.parent)
        with self.read() as rows:
            stale = rows.has_stale_blocks(now)
        if stale:
            with self.write() as rows:
                rows.forget_stale_blocks(now)
        with self._told():
            self.content.sweep(self._files)

    def _check_version(self) -> None:
        found = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        if found not in (0, _VERSION):  # 0: made just now
            raise UnusableStore(self.path, f"it has version {found}, this cloudtrain knows {_VERSION}")

    def _files(self) -> set[str]:
        with self.read() as rows:
            return rows.files()

    @contextmanager
    def write(self) -> Iterator[Rows]:
        """A transaction that nobody else writes beside; rolled back if the block raises."""
        with self._transaction("BEGIN IMMEDIATE") as rows:
            yield rows

    @contextmanager
    def read(self) -> Iterator[Rows]:
        """One moment's view of everything."""
        with self._transaction("BEGIN") as rows:
            yield rows

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Rows]:
        with self._mutex, self._told():
            # SQLite would go on with a file that nobody can open any more.
            if not self._directory.is_dir():
                raise NoSuchAccount
            self._connection.execute(begin)
            try:
                yield Rows(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            if not self._directory.is_dir():
                raise NoSuchAccount from None
            raise UnusableStore(self.path, str(error)) from None

    def close(self) -> None:
        with self._mutex:
            self._connection.close()


@contextmanager
def _exclusively(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
