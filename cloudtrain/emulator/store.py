"""What the embedded Azure remembers, in one SQLite database: resources, operations and a few settings.

Safe under several processes and under kill -9 of any of them: every read-modify-write happens inside BEGIN
IMMEDIATE, and the database is created (aside, then renamed) and switched to WAL under a lock, which SQLite's
own busy timeout does not cover. Never open the database file in another way in the same process, nor use a
connection after a fork.
"""

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]

APPLICATION_ID = 0x43545241  # 'CTRA'
SCHEMA_VERSION = 2
_VM_TYPE = "microsoft.compute/virtualmachines"
_VM_SIZE = "json_extract(body, '$.body.properties.hardwareProfile.vmSize')"
_VM_PRIORITY = "json_extract(body, '$.body.properties.priority')"
SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE resources (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, id TEXT NOT NULL, type TEXT NOT NULL,
  grp TEXT NOT NULL, name TEXT NOT NULL, location TEXT NOT NULL, created REAL NOT NULL, changed REAL NOT NULL,
  body TEXT NOT NULL, private TEXT NOT NULL);
CREATE INDEX resources_by_type ON resources (type, grp);
CREATE INDEX resources_by_group ON resources (grp);
CREATE INDEX resources_by_name ON resources (name COLLATE NOCASE, type);
CREATE INDEX vms_by_size ON resources (location COLLATE NOCASE, {_VM_SIZE}, {_VM_PRIORITY})
  WHERE type = '{_VM_TYPE}';
CREATE TABLE mentions (
  word TEXT NOT NULL, resource INTEGER NOT NULL, PRIMARY KEY (word, resource)) WITHOUT ROWID;
CREATE INDEX mentions_by_resource ON mentions (resource);
CREATE TABLE operations (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, kind TEXT NOT NULL, target TEXT NOT NULL,
  grp TEXT NOT NULL, status TEXT NOT NULL, started REAL NOT NULL, ready REAL NOT NULL, performed REAL, ended REAL,
  arguments TEXT NOT NULL, result TEXT, error TEXT, secret BLOB);
CREATE INDEX operations_by_id ON operations (id);
CREATE INDEX operations_open ON operations (status) WHERE status = 'InProgress';
"""


class StoreError(Exception):
    """The database cannot be used. The message says what, where, and what to run."""

    def __init__(self, path: Path, reason: str, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.reason = reason


class UnusableStore(StoreError):
    """The database may be whole, but cannot be read or written: a full disk, missing rights, a lock held for
    30 s."""

    def __init__(self, path: Path, reason: str) -> None:
        message = (
            f"The embedded Azure's database {path} cannot be used: {reason}. "
            "Look at the free space and the rights of that directory, then run the same command again."
        )
        super().__init__(path, reason, message)


class DamagedStore(StoreError):
    """The database cannot be trusted."""

    def __init__(self, path: Path, reason: str) -> None:
        message = (
            f"The embedded Azure's database {path} is damaged: {reason}. Nothing of it was changed. "
            "Run `cloudtrain emulator reset` to begin with an empty one (emulated VMs and their disks are "
            "removed)."
        )
        super().__init__(path, reason, message)


@dataclass
class Resource:
    """One ARM resource. body is what a GET shows (without what is derived); private is never shown."""

    id: str
    type: str
    name: str
    location: str
    body: Json
    private: Json = field(default_factory=dict)
    created: float = 0.0  # epoch seconds
    changed: float = 0.0
    seq: int = 0  # unique, never used twice

    @property
    def key(self) -> str:
        return self.id.lower()

    @property
    def group(self) -> str:
        """The resource group's name in lower case; "" for what belongs to the subscription."""
        parts = self.key.split("/")
        return parts[4] if len(parts) > 4 and parts[3] == "resourcegroups" else ""


@dataclass
class Operation:
    """A long-running operation: recorded first, then performed, then settled. Times are epoch seconds.

    ready: not settled before. performed: when the work on machines was done. secret: encrypted, gone once
    used."""

    id: str
    kind: str
    target: str  # key of the resource
    started: float
    ready: float
    arguments: Json = field(default_factory=dict)
    status: str = "InProgress"
    performed: float | None = None
    ended: float | None = None
    result: Json | None = None
    error: Json | None = None
    secret: bytes | None = None
    seq: int = 0

    @property
    def open(self) -> bool:
        return self.status == "InProgress"

    @property
    def group(self) -> str:
        parts = self.target.split("/")
        return parts[4] if len(parts) > 4 and parts[3] == "resourcegroups" else ""


class Records:
    """The tables, inside one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    # meta
    def setting(self, key: str) -> str | None:
        row = self._sql.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_setting(self, key: str, value: str) -> None:
        self._sql.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    def drop_setting(self, key: str) -> None:
        self._sql.execute("DELETE FROM meta WHERE key = ?", (key,))

    def settings(self, prefix: str) -> dict[str, str]:
        rows = self._sql.execute(
            "SELECT key, value FROM meta WHERE key >= ? AND key < ?", (prefix, prefix + "\U0010ffff")
        )
        return {str(key)[len(prefix) :]: str(value) for key, value in rows}

    # resources
    def resource(self, resource_id: str) -> Resource | None:
        row = self._sql.execute(f"{_SELECT} WHERE key = ?", (resource_id.lower(),)).fetchone()
        return None if row is None else _resource(row)

    def resources(
        self,
        type_: str | None = None,
        group: str | None = None,
        *,
        name: str | None = None,
        mentions: str | None = None,
    ) -> list[Resource]:
        """In the order of creation. Types, groups and names compare without case; children come with their parents'
        group. mentions: only those whose body refers to the resource of that id, or has that principal or address."""
        where, values = ["1"], []
        if type_ is not None:
            # The plus: what refers to one thing is few, all of one type may be many.
            where.append("type = ?" if mentions is None else "+type = ?")
            values.append(type_.lower())
        if group is not None:
            where.append("grp = ?")
            values.append(group.lower())
        if name is not None:
            where.append("name = ? COLLATE NOCASE")
            values.append(name)
        if mentions is not None:
            where.append("seq IN (SELECT resource FROM mentions WHERE word = ?)")
            values.append(mentions.lower())
        rows = self._sql.execute(f"{_SELECT} WHERE {' AND '.join(where)} ORDER BY seq", values)
        return [_resource(row) for row in rows]

    def children(self, resource_id: str) -> list[Resource]:
        start = resource_id.lower() + "/"
        rows = self._sql.execute(f"{_SELECT} WHERE key >= ? AND key < ? ORDER BY seq", (start, start + "\U0010ffff"))
        return [_resource(row) for row in rows]

    def vm_sizes(self, location: str) -> list[tuple[str, str, int]]:
        """Size, priority ('' where none was given) and number of the VMs there, on or off."""
        rows = self._sql.execute(
            f"SELECT {_VM_SIZE}, {_VM_PRIORITY}, COUNT(*) FROM resources WHERE type = '{_VM_TYPE}' "
            f"AND location = ? COLLATE NOCASE GROUP BY {_VM_SIZE}, {_VM_PRIORITY}",
            (location,),
        )
        return [(str(size), str(priority or ""), int(count)) for size, priority, count in rows]

    def put(self, resource: Resource) -> Resource:
        """Insert or replace; the seq of an existing resource stays."""
        values = (
            resource.key,
            resource.id,
            _stored_type(resource),
            resource.group,
            resource.name,
            resource.location,
            resource.created,
            resource.changed,
            json.dumps({"type": resource.type, "body": resource.body}),
            json.dumps(resource.private),
        )
        row = self._sql.execute(
            "INSERT INTO resources (key, id, type, grp, name, location, created, changed, body, private) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET id=excluded.id, "
            "location=excluded.location, changed=excluded.changed, body=excluded.body, "
            "private=excluded.private "
            "RETURNING seq",
            values,
        ).fetchone()
        resource.seq = int(row[0])
        self._sql.execute("DELETE FROM mentions WHERE resource = ?", (resource.seq,))
        words = {word for word in _mentioned(resource.body) if not word.startswith(resource.key)}
        self._sql.executemany("INSERT INTO mentions VALUES (?, ?)", [(word, resource.seq) for word in words])
        return resource

    def delete(self, resource_id: str) -> None:
        key = (resource_id.lower(),)
        self._sql.execute("DELETE FROM mentions WHERE resource IN (SELECT seq FROM resources WHERE key = ?)", key)
        self._sql.execute("DELETE FROM resources WHERE key = ?", key)

    # operations
    def operation(self, seq: int) -> Operation | None:
        row = self._sql.execute(f"{_SELECT_OPERATION} WHERE seq = ?", (seq,)).fetchone()
        return None if row is None else _operation(row)

    def operation_by_id(self, operation_id: str) -> Operation | None:
        row = self._sql.execute(
            f"{_SELECT_OPERATION} WHERE id = ? ORDER BY seq DESC LIMIT 1", (operation_id,)
        ).fetchone()
        return None if row is None else _operation(row)

    def due_operations(self, now: float) -> list[int]:
        """The seq of those open ones that something can be done about at that time."""
        rows = self._sql.execute(
            "SELECT seq FROM operations WHERE status = 'InProgress' AND (performed IS NULL OR ready <= ?) ORDER BY seq",
            (now,),
        )
        return [int(row[0]) for row in rows]

    def open_operations(self, target: str | None = None, group: str | None = None) -> list[Operation]:
        where, values = ["status = 'InProgress'"], []
        if target is not None:
            where.append("target = ?")
            values.append(target.lower())
        if group is not None:
            where.append("grp = ?")
            values.append(group.lower())
        rows = self._sql.execute(f"{_SELECT_OPERATION} WHERE {' AND '.join(where)} ORDER BY seq", values)
        return [_operation(row) for row in rows]

    def operations(self) -> list[Operation]:
        """All that are remembered, in the order in which they began."""
        return [_operation(row) for row in self._sql.execute(f"{_SELECT_OPERATION} ORDER BY seq")]

    def add_operation(self, operation: Operation) -> Operation:
        row = self._sql.execute(
            "INSERT INTO operations (id, kind, target, grp, status, started, ready, performed, ended, "
            "arguments, "
            "result, error, secret) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq",
            _operation_values(operation),
        ).fetchone()
        operation.seq = int(row[0])
        return operation

    def save_operation(self, operation: Operation) -> None:
        self._sql.execute(
            "UPDATE operations SET id=?, kind=?, target=?, grp=?, status=?, started=?, ready=?, performed=?, "
            "ended=?, arguments=?, result=?, error=?, secret=? WHERE seq=?",
            (*_operation_values(operation), operation.seq),
        )

    def forget_operations(self, ended_before: float) -> None:
        self._sql.execute("DELETE FROM operations WHERE status <> 'InProgress' AND ended < ?", (ended_before,))

    def clear(self) -> None:
        """Everything goes; numbers go on, so that no lock is ever taken for another piece of work."""
        for table in ("meta", "resources", "mentions", "operations"):
            self._sql.execute(f"DELETE FROM {table}")


_SELECT = "SELECT seq, id, name, location, created, changed, body, private FROM resources"
_SELECT_OPERATION = (
    "SELECT seq, id, kind, target, status, started, ready, performed, ended, arguments, result, error, secret "
    "FROM operations"
)


def _mentioned(part: Any, key: str = "") -> Iterator[str]:
    """By what a resource's body refers to others: their ids, and the principals and addresses that are its own."""
    if isinstance(part, dict):
        for name, value in part.items():
            yield from _mentioned(value, name)
    elif isinstance(part, list):
        for value in part:
            yield from _mentioned(value)
    elif isinstance(part, str) and (part.startswith("/subscriptions/") or key in ("principalId", "ipAddress")):
        yield part.lower()


def _stored_type(resource: Resource) -> str:
    return resource.type.lower()


def _resource(row: tuple[Any, ...]) -> Resource:
    seq, resource_id, name, location, created, changed, body, private = row
    shown = json.loads(body)
    return Resource(
        resource_id, shown["type"], name, location, shown["body"], json.loads(private), created, changed, seq
    )


def _operation_values(operation: Operation) -> tuple[Any, ...]:
    return (
        operation.id,
        operation.kind,
        operation.target,
        operation.group,
        operation.status,
        operation.started,
        operation.ready,
        operation.performed,
        operation.ended,
        json.dumps(operation.arguments),
        None if operation.result is None else json.dumps(operation.result),
        None if operation.error is None else json.dumps(operation.error),
        operation.secret,
    )


def _operation(row: tuple[Any, ...]) -> Operation:
    (
        seq,
        operation_id,
        kind,
        target,
        status,
        started,
        ready,
        performed,
        ended,
        arguments,
        result,
        error,
        secret,
    ) = row
    return Operation(
        operation_id,
        kind,
        target,
        started,
        ready,
        json.loads(arguments),
        status,
        performed,
        ended,
        None if result is None else json.loads(result),
        None if error is None else json.loads(error),
        secret,
        seq,
    )


class Store:
    """One database, used by any number of threads of this process through one connection, and by other
    processes.

    Raises StoreError when opening, or later when a page turns out to be unreadable or a disk full."""

    def __init__(self, directory: Path, first: Json) -> None:
        """first: the settings of a store that does not exist yet."""
        self.path = directory / "azure.db"
        self._mutex = threading.RLock()
        self._busy = False
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _exclusively(directory / "azure.db.lock"), self._told_as_damage():
            if not self.path.exists():
                _create(self.path, first)
            self._check_marks()
            self._connection = _connect(self.path)
            self._connection.execute("PRAGMA journal_mode=WAL")

    @contextmanager
    def write(self) -> Iterator[Records]:
        """A transaction that nobody else writes beside; rolled back if the block raises."""
        with self._transaction("BEGIN IMMEDIATE") as records:
            yield records

    @contextmanager
    def read(self) -> Iterator[Records]:
        """One moment's view of everything."""
        with self._transaction("BEGIN") as records:
            yield records

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Records]:
        with self._mutex, self._told_as_damage():
            assert not self._busy, "a transaction inside a transaction"
            self._connection.execute(begin)
            self._busy = True
            try:
                yield Records(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._busy = False

    @contextmanager
    def _told_as_damage(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "no such" in str(error):  # a table or a column
                raise DamagedStore(self.path, str(error)) from None
            raise UnusableStore(self.path, str(error)) from None
        except OSError as error:
            raise UnusableStore(self.path, error.strerror or str(error)) from None
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # a subclass is a mistake of ours, not damage
                raise
            raise DamagedStore(self.path, str(error)) from None
        except json.JSONDecodeError as error:
            raise DamagedStore(self.path, str(error)) from None

    def flush(self) -> None:
        """What was committed survives a power cut of this machine, too, and not only a kill."""
        with self._mutex, self._told_as_damage():
            self._connection.execute("PRAGMA wal_checkpoint(FULL)")

    def _check_marks(self) -> None:
        # A file of no bytes opens as a valid, empty database: only its marks tell.
        with closing(_connect(self.path)) as connection:
            marks = tuple(
                int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version")
            )
            if marks[0] != APPLICATION_ID:
                raise DamagedStore(self.path, "it is empty or not a database of the embedded Azure")
            if marks[1] != SCHEMA_VERSION:
                raise DamagedStore(self.path, f"it has version {marks[1]}, this cloudtrain knows {SCHEMA_VERSION}")
            verdict = connection.execute("PRAGMA quick_check").fetchone()[0]
            if verdict != "ok":
                raise DamagedStore(self.path, str(verdict).replace("\n", " "))

    def close(self) -> None:
        with self._mutex:
            self._connection.close()


def remove(directory: Path) -> None:
    """Take away the database and its side files, damaged or not."""
    with _exclusively(directory / "azure.db.lock"):
        for suffix in ("", "-wal", "-shm", ".new"):
            (directory / f"azure.db{suffix}").unlink(missing_ok=True)


@contextmanager
def _exclusively(path: Path) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous=NORMAL")  # in WAL mode a kill -9 loses nothing that was committed
    return connection


def _create(path: Path, first: Json) -> None:
    # Aside and renamed: a kill in the middle leaves no half-made database that looks like a damaged one.
    new = path.with_name(path.name + ".new")
    for stale in (new, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        stale.unlink(missing_ok=True)  # the log of a database that is gone would be played into the new one
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with closing(_connect(new)) as connection:
        connection.execute("PRAGMA journal_mode=MEMORY")
        connection.executescript(f"BEGIN; {SCHEMA}")
        connection.executemany("INSERT INTO meta (key, value) VALUES (?, ?)", list(first.items()))
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("COMMIT")
    new.rename(path)
