"""Messages between the command line, the supervisor and a VM's pid 1: JSON, one a line, over a stream socket."""

import json
import socket
from typing import Any

Message = dict[str, Any]

_LONGEST = 16 << 20  # a script is at most 256 KiB; whoever sends more than this speaks something else


class Channel:
    """Not for several threads. Everything that is sent is small enough to be taken at once or within 10 seconds."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.connection.settimeout(10)
        self._pending = b""

    def fileno(self) -> int:
        return self.connection.fileno()

    def send(self, message: Message) -> None:
        """Raises OSError when the other side is gone."""
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message]:
        """The messages that are complete after one read. Raises EOFError when the other side is gone or talks
        nonsense, TimeoutError after the socket's timeout."""
        try:
            data = self.connection.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data or len(self._pending) > _LONGEST:
            raise EOFError
        *lines, self._pending = (self._pending + data).split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise EOFError from error

    def receive_one(self, timeout: float | None) -> Message:
        """The next message. Raises EOFError, TimeoutError."""
        self.connection.settimeout(timeout)
        while True:
            messages = self.receive()
            if messages:
                return messages[0]

    def close(self) -> None:
        self.connection.close()
