"""A run whose storage holds what a test puts there, as the uploader on its VM would; its VM only has states."""

import base64
import errno
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import ContentSettings

from cloudtrain.azure import group as groups
from cloudtrain.azure import storage
from cloudtrain.azure.session import Session
from cloudtrain.clock import SystemClock
from cloudtrain.errors import CloudtrainError, Refused
from cloudtrain.guest import durable
from tests.cli.conftest import Outcome

RUN = "horses"


def md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


@dataclass
class StoredRun:
    """The command line, and the run's container. sent: what the VM has put under models/, by path."""

    cli: Callable[..., Outcome]
    session: Session
    container: Any
    directory: Path
    sent: dict[str, bytes] = field(default_factory=dict)

    def data(self, *arguments: str) -> Any:
        told = self.cli(*arguments, "--json")
        assert told.code == 0, told
        return told.envelope["data"]

    # what the uploader does

    def blob(self, name: str, data: bytes) -> None:
        settings = ContentSettings(content_md5=bytearray(md5(data)))
        self.container.upload_blob(name, data, overwrite=True, content_settings=settings)

    def file(self, path: str, data: bytes) -> None:
        self.sent[path] = data
        self.blob(durable.MODELS + path, data)

    def damaged(self, path: str) -> None:
        """A file whose content is not what its writer said."""
        blob = self.container.get_blob_client(durable.MODELS + path)
        blob.upload_blob(b"what arrived")
        blob.set_http_headers(ContentSettings(content_md5=bytearray(md5(b"what was sent"))))

    def log(self, source: str, number: int, data: bytes) -> None:
        send_log(self.container, source, number, data)

    def events(self, *events: Mapping[str, object]) -> None:
        self.log("events", 1, b"".join(json.dumps(event).encode() + b"\n" for event in events))

    def guest(self, *, at: float | None = None, old: float = 0.0, pending: int = 0, **facts: object) -> None:
        """at: when the guest wrote it; old: or how many seconds ago."""
        at = time.time() - old if at is None else at
        told = {
            "version": 1,
            "installed": True,
            "generation": 1,
            "time": at,
            "container": {"status": "running"},
            "progress": {"step": 12, "total_steps": 300, "saved_step": 10},
            "finished": None,
            "failed": None,
        }
        stored = {"kind": "signature", "newest": 10, "pending": pending, "refused": "", "at": at}
        content = {"time": at, "facts": told | facts, "storage": stored}
        self.blob(durable.GUEST, json.dumps(content).encode())

    def finished(self, **facts: object) -> None:
        end = {"finished": {"time": time.time()}, "progress": {"step": 300, "total_steps": 300, "finished": True}}
        self.guest(container={"status": "exited", "exit_code": 0}, **(end | facts))

    def point(self, *checkpoints: dict[str, Any]) -> None:
        newest, *previous = checkpoints
        content = {"version": 1, "generation": 1, "time": time.time(), "newest": newest, "previous": previous}
        self.blob(durable.POINTER, json.dumps(content).encode())

    def checkpoint(self, step: int) -> dict[str, Any]:
        """As the pointer names it."""
        path, data = f"checkpoints/{step:08}/weights", f"weights of {step}".encode() * 99
        self.file(path, data)
        return {"name": f"{step:08}", "step": step, "files": [stored_file(path, durable.MODELS + path, data)]}

    # what a test asks

    def home(self, directory: str = RUN) -> dict[str, bytes]:
        """What lies in a directory, but for what begins with '.'."""
        where = self.directory / directory
        files = [path for path in where.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return {str(path.relative_to(where)): path.read_bytes() for path in files}

    def count_run_commands(self) -> Callable[[], int]:
        """How many were sent from now on: a fault that never strikes counts."""
        self.data("emulator", "fault", "clear")
        operation = "VirtualMachineRunCommands_CreateOrUpdate"
        self.data("emulator", "fault", "add", "503", "--on", operation, "--after", "1000")
        return lambda: self.data("emulator", "fault", "list")["faults"][0]["seen"]

    def take_the_role(self) -> None:
        """This login may read no blobs any more."""
        account = self.account
        for assignment in self.session.authorization.role_assignments.list_for_scope(account.id):
            self.session.authorization.role_assignments.delete(account.id, assignment.name)

        def refused() -> bool:
            try:
                storage.open_container(self.session, account)
            except Refused as refusal:
                return refusal.code == "NoDataRole"
            return False

        until(refused)

    @property
    def account(self) -> storage.Storage:
        found = storage.find(self.session, groups.get(self.session, RUN))
        assert found is not None
        return found


def send_log(container: Any, source: str, number: int, data: bytes) -> None:
    blob = container.get_blob_client(f"{durable.LOGS}{source}.{number:06}")
    if not blob.exists():
        blob.create_append_blob()
    if data:
        blob.append_block(data)


def stored_file(path: str, blob: str, data: bytes) -> dict[str, Any]:
    return {"path": path, "blob": blob, "size": len(data), "md5": base64.b64encode(md5(data)).decode()}


@contextmanager
def cut_short(monkeypatch: pytest.MonkeyPatch, path: str, *, reset: bool) -> Iterator[None]:
    """Inside, what is answered to a GET of a path with that in it breaks off half-way: it just ends, or the connection
    is reset."""
    from cloudtrain.emulator.embedded import EmbeddedAzure

    plain = EmbeddedAzure.__call__

    def half(whole: bytes) -> Iterator[bytes]:
        yield whole[: len(whole) // 2]
        if reset:
            raise ConnectionResetError(errno.ECONNRESET, "reset by a test")

    def call(self: Any, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        body = plain(self, environ, start)
        return half(b"".join(body)) if environ["REQUEST_METHOD"] == "GET" and path in environ["PATH_INFO"] else body

    with monkeypatch.context() as patched:
        patched.setattr(EmbeddedAzure, "__call__", call)
        yield


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def with_storage(cli: Callable[..., Outcome], session: Session, directory: Path) -> StoredRun:
    """Gives the run storage, and this login the role to read and write it."""
    group = groups.get(session, RUN)
    account = storage.create(session, group, SystemClock())
    assert storage.assign_data_role(session, account, session.principal_id, "User")

    def opened() -> bool:
        try:
            storage.open_container(session, account)
        except CloudtrainError:
            return False
        return True

    until(opened)
    groups.set_tags(session, group, {groups.TAG_STORAGE: account.account})
    return StoredRun(cli, session, storage.open_container(session, account), directory)
