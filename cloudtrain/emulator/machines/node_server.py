"""What the nodes reach of the embedded Azure: one process of this host serves them blobs and Resource Manager.

It listens on a UNIX socket in a directory that every node sees, so that nobody else on the network can reach it, and
forwarders in the nodes lead to it. The lock is the truth about it: the process holds it, from its start to its end.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from cloudtrain.emulator.machines import MachineError

SOCKET = "azure.sock"
_PACKAGE_ROOT = Path(__file__).resolve().parents[3]
_END_SECONDS = 10.0


class NodeServer:
    """root: the emulator's directory. node_base: see `NodeImage`; the server's own machines are made with it."""

    def __init__(self, root: Path, *, node_base: str) -> None:
        self._root = root.absolute()
        self._node_base = node_base
        self.directory = self._root / "nodes" / "azure"
        """What the nodes see."""

    @property
    def _lock(self) -> Path:
        return self._root / "nodes" / "azure.lock"

    def start(self) -> None:
        """Running already: no-op. Raises MachineError."""
        lock = self._free_lock()
        if lock is None:
            return
        try:
            with contextlib.closing(self._listen()) as listening:
                # what is started forks and ends at once, so that nobody here has to wait for the server
                subprocess.run(
                    [sys.executable, "-m", "cloudtrain.emulator.blobs.server", str(self._root), "--nodes", str(lock)],
                    pass_fds=(lock,),
                    start_new_session=True,
                    stdin=listening.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={**os.environ, "PYTHONPATH": str(_PACKAGE_ROOT), "CLOUDTRAIN_NODE_BASE": self._node_base},
                    check=True,
                )
        except (OSError, subprocess.CalledProcessError) as error:
            raise MachineError(f"The server of blobs for the VMs does not start: {error}") from error
        finally:
            os.close(lock)

    def _free_lock(self) -> int | None:
        """Locked; None while the server runs."""
        self._lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def _listen(self) -> socket.socket:
        """Its directory stays the same one: nodes have it mounted."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        (self.directory / SOCKET).unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        descriptor = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        before = os.umask(0o177)
        try:
            listening.bind(f"/proc/self/fd/{descriptor}/{SOCKET}")  # a socket's address has at most 108 bytes
        finally:
            os.umask(before)
            os.close(descriptor)
        listening.listen(64)
        return listening

    def end(self) -> None:
        """Returns when it is gone, and its directory with it. Not running: no-op."""
        give_up = time.monotonic() + _END_SECONDS
        while (lock := self._free_lock()) is None:
            self._kill()
            if time.monotonic() > give_up:
                raise MachineError(f"The server of blobs for the VMs does not end: see who holds {self._lock}")
            time.sleep(0.02)
        (self.directory / SOCKET).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.directory.rmdir()
        os.close(lock)

    def _kill(self) -> None:
        """Its process id stands in its lock; it may have ended since, and the number be somebody else's."""
        written = self._lock.read_text()
        if not written:
            return
        with contextlib.suppress(ProcessLookupError):
            server = os.pidfd_open(int(written))
            try:
                words = Path(f"/proc/{written}/cmdline").read_bytes().split(b"\0")
                if os.fsencode(self._root) in words and b"--nodes" in words:
                    signal.pidfd_send_signal(server, signal.SIGKILL)
            except FileNotFoundError:
                pass
            finally:
                os.close(server)


def detach(lock: int) -> None:
    """In the server: away from whoever started it, holding its lock, and named in it."""
    if os.fork():
        os._exit(0)
    os.set_inheritable(lock, False)
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
