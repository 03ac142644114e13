"""The Docker engine that nodes run on, through docker-py. Everything of one emulator carries a label with its root."""

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloudtrain.emulator.machines import MachineError
from cloudtrain.emulator.machines.channel import Message

LABEL = "cloudtrain.emulator"  # whose it is
VM_LABEL = "cloudtrain.vm"  # of a node and its disk: the VM's id
_STREAM_HEADER = struct.Struct(">BxxxL")
_LONGEST_ANSWER = 1 << 20


class Engine:
    """One client a thread: docker-py's sessions are not made for several.

    root: the emulator's directory, which tells its nodes from others' on the same engine."""

    def __init__(self, root: Path) -> None:
        self.owner = hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:12]
        self._local = threading.local()

    @property
    def api(self) -> Any:
        """docker.APIClient. Raises MachineError when no engine answers."""
        if not hasattr(self._local, "api"):
            self._local.api = connect()
        return self._local.api

    def labels(self, **more: str) -> dict[str, str]:
        return {LABEL: self.owner, **more}

    def container(self, name: str) -> dict[str, Any] | None:
        """What inspect says; None where there is none."""
        from docker.errors import NotFound

        with errors():
            try:
                found: dict[str, Any] = self.api.inspect_container(name)
            except NotFound:
                return None
        return found

    def volume(self, name: str) -> dict[str, Any] | None:
        from docker.errors import NotFound

        with errors():
            try:
                found: dict[str, Any] = self.api.inspect_volume(name)
            except NotFound:
                return None
        return found

    def containers(self) -> list[dict[str, Any]]:
        with errors():
            found: list[dict[str, Any]] = self.api.containers(all=True, filters=self._ours())
        return found

    def volumes(self) -> list[dict[str, Any]]:
        with errors():
            return list(self.api.volumes(filters=self._ours())["Volumes"] or [])

    def _ours(self) -> dict[str, str]:
        return {"label": f"{LABEL}={self.owner}"}

    def remove_container(self, name: str) -> None:
        """Killed and removed, with the anonymous volumes it may have; none of that name: no harm."""
        from docker.errors import APIError, NotFound

        with errors():
            try:
                self.api.remove_container(name, force=True, v=True)
            except NotFound:
                return
            except APIError as error:
                if "already in progress" not in str(error):
                    raise
        self._await_removal(name)

    def _await_removal(self, name: str) -> None:
        give_up = time.monotonic() + 30
        while self.container(name) is not None and time.monotonic() < give_up:
            time.sleep(0.02)

    def remove_volume(self, name: str) -> None:
        from docker.errors import NotFound

        with errors():
            try:
                self.api.remove_volume(name)
            except NotFound:
                return

    def has_image(self, reference: str) -> bool:
        from docker.errors import NotFound

        with errors():
            try:
                self.api.inspect_image(reference)
            except NotFound:
                return False
        return True

    def unnamed_images(self, label: str) -> list[str]:
        with errors():
            return [str(one["Id"]) for one in self.api.images(filters={"dangling": True, "label": label})]

    def remove_image(self, reference: str) -> None:
        """Used by somebody else's container, or not there: no harm."""
        from docker.errors import APIError

        with errors():
            try:
                self.api.remove_image(reference)
            except APIError as error:
                if error.response is None or error.response.status_code not in (404, 409):
                    raise

    def kill(self, name: str, signal_name: str) -> None:
        """Not running: no harm."""
        from docker.errors import APIError

        with errors():
            try:
                self.api.kill(name, signal_name)
            except APIError as error:
                if error.response is None or error.response.status_code not in (404, 409, 500):
                    raise

    def last_line(self, name: str) -> Any:
        """The last line that the container wrote, as JSON; None where there is none."""
        from docker.errors import APIError

        with errors():
            try:
                text = self.api.logs(name, stdout=True, stderr=False, tail=1)
                return json.loads(text)
            except (APIError, ValueError):
                return None

    def ask(self, name: str, command: list[str], order: Message, timeout: float) -> Message | None:
        """Run a command in the container, give it one line of JSON and read one: nothing of it is in any process
        list. None when the container does not run or the command ended without an answer."""
        from docker.errors import APIError

        with errors():
            try:
                made = self.api.exec_create(name, command, stdin=True, stdout=True, stderr=True)
                stream = self.api.exec_start(made["Id"], socket=True)
            except APIError:
                return None
        connection = getattr(stream, "_sock", stream)
        try:
            connection.settimeout(timeout)
            connection.sendall(json.dumps(order).encode() + b"\n")
            return _read_answer(connection)
        except (OSError, ValueError):
            return None
        finally:
            stream.close()
            connection.close()


def connect() -> Any:
    """docker-py's client for the engine that DOCKER_HOST names, or the usual one. Raises MachineError."""
    import docker
    from docker.errors import DockerException

    try:
        return docker.from_env(timeout=120).api
    except DockerException as error:
        raise MachineError(
            f"No Docker engine answers ({error}). Machines of kind 'container' need one: start it, or set DOCKER_HOST."
        ) from error


@contextmanager
def errors() -> Iterator[None]:
    """docker-py's errors as MachineError, with what the engine said."""
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except APIError as error:
        raise MachineError(f"The Docker engine refused: {error.explanation or error}") from error
    except (DockerException, RequestException) as error:
        raise MachineError(f"The Docker engine does not answer: {error}") from error


def _read_answer(connection: socket.socket) -> Message | None:
    """What the command wrote to its stdout, up to the end of the line."""
    text = b""
    while len(text) < _LONGEST_ANSWER:
        header = _exactly(connection, _STREAM_HEADER.size)
        if header is None:
            return None
        stream, length = _STREAM_HEADER.unpack(header)
        data = _exactly(connection, length)
        if data is None:
            return None
        if stream == 1:
            text += data
            if b"\n" in text:
                answer: Message = json.loads(text)
                return answer
    return None


def _exactly(connection: socket.socket, length: int) -> bytes | None:
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            return None
        data += part
    return data
