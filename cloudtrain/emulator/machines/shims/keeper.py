"""One container's keeper: starts it, writes its log, and records how it ended. containerd's shim does this for docker.

The container has a root, a pid namespace and a hostname of its own: the VM's programs, the Python environment that is
the image, and its volumes. Where the kernel gives no namespaces it is a plain process, and what would have been
mounted is written into its environment and arguments instead.
"""

import contextlib
import fcntl
import os
import select
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from cloudtrain.emulator.machines import namespaces, rootfs
from cloudtrain.emulator.machines.process_table import rows, send_signal
from cloudtrain.emulator.machines.shims.containers import (
    Container,
    DockerError,
    Engine,
    LogWriter,
    directory,
    exclusive,
    log_path,
    remove,
    save,
)

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FORWARDED = [
    number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD)
]


def start(on: Engine, container: Container) -> int:
    """Start the container under a keeper that outlives the caller.

    Returns a descriptor from which the exit code can be read, as text, when it has ended. Under `exclusive`.
    Raises DockerError."""
    for host, _, _ in container.volumes:
        if not Path(host).exists():
            Path(host).mkdir(parents=True)
    reader, writer = os.pipe()
    sys.stdout.flush()
    between = os.fork()
    if between == 0:
        os.setsid()
        if os.fork() == 0:
            os.close(reader)
            _keep(on, container, writer)
        os._exit(0)
    os.close(writer)
    os.waitpid(between, 0)
    said = os.read(reader, 1 << 16).decode(errors="replace")
    if said != "started\n":
        raise DockerError(said.strip() or "the container's keeper died")
    return reader


def _keep(on: Engine, container: Container, tell: int) -> NoReturn:
    """The keeper's whole life."""
    code = 1
    try:
        _let_go_of_the_client(tell)
        code = _run(on, container, tell)
    except Exception as error:  # noqa: BLE001 - the client is told, and nobody else is there to hear it
        with contextlib.suppress(OSError):
            os.write(tell, f"{error}\n".encode())
    with contextlib.suppress(FileNotFoundError):
        (on.keepers / str(os.getpid())).unlink()
    os._exit(code)


def _let_go_of_the_client(tell: int) -> None:
    """Its lock on the records, too: a forked child shares it."""
    os.closerange(3, tell)
    os.closerange(tell + 1, 1 << 16)
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.chdir("/")
    namespaces.set_process_name("container-shim")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _run(on: Engine, container: Container, tell: int) -> int:
    (on.keepers / str(os.getpid())).touch()
    alive = os.open(directory(on, container) / "alive", os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(alive, fcntl.LOCK_EX)
    log = LogWriter(log_path(on, container), container.log_options)
    if on.isolated:
        namespaces.unshare(namespaces.NEW_PID | namespaces.NEW_UTS | namespaces.NEW_IPC)
    else:
        namespaces.adopt_orphans()
    signals = _signals()
    child, streams = _fork_container(on, container)
    # the client holds the lock on the records until it has read this
    container = replace(
        container, status="running", pid=child, started=time.time(), finished=0.0, exit_code=0, error=""
    )
    save(on, container)
    os.write(tell, b"started\n")
    _follow(container, child, streams, signals, log)
    _record_end(on, container, child, tell)
    return 0


def _signals() -> int:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    return reader


def _fork_container(on: Engine, container: Container) -> tuple[int, dict[int, str]]:
    """(pid, {descriptor: stream}). Raises DockerError with what kept the program from starting."""
    out, out_end = os.pipe()
    err, err_end = os.pipe()
    failed, failure = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(out_end, 1)
        os.dup2(err_end, 2)
        try:
            _become_container(on, container)
        except BaseException as error:  # noqa: BLE001 - a child must never unwind into its parent's code
            os.write(failure, str(error).encode())
        os._exit(127)
    for descriptor in (out_end, err_end, failure):
        os.close(descriptor)
    said = os.read(failed, 1 << 16).decode(errors="replace")  # end of file: exec went well
    os.close(failed)
    if said:
        os.waitpid(child, 0)
        raise DockerError(f"failed to create task for container: {said}")
    return child, {out: "stdout", err: "stderr"}


def _follow(container: Container, child: int, streams: dict[int, str], signals: int, log: LogWriter) -> None:
    """Write the log until the container's first process, which is not reaped yet, and all others have ended."""
    kill_at: float | None = None
    while True:
        patience = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        ready, _, _ = select.select([signals, *streams], [], [], patience)
        for descriptor in ready:
            if descriptor != signals:
                _copy(descriptor, streams, log)
            elif signal.SIGTERM in os.read(signals, 4096) and kill_at is None:
                # the VM shuts down: what the engine does to its containers then
                send_signal(child, signal.SIGTERM)
                kill_at = time.monotonic() + container.stop_timeout
        if kill_at is not None and time.monotonic() >= kill_at:
            send_signal(child, signal.SIGKILL)
            kill_at = None
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            break
        _reap_adopted(child)
    _end_the_others(child)
    while streams:
        ready, _, _ = select.select(list(streams), [], [], 1.0)
        for descriptor in ready:
            _copy(descriptor, streams, log)
        if not ready:
            break


def _copy(descriptor: int, streams: dict[int, str], log: LogWriter) -> None:
    data = os.read(descriptor, 1 << 14)
    if data:
        log.write(streams[descriptor], data)
    else:
        os.close(descriptor)
        del streams[descriptor]


def _reap_adopted(child: int) -> None:
    """Without namespaces the keeper inherits what the container's processes leave behind."""
    for row in rows() if _has_adopted(child) else ():
        if row.parent == os.getpid() and row.pid != child and row.is_zombie:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(row.pid, os.WNOHANG)


def _has_adopted(child: int) -> bool:
    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return ended is not None and ended.si_pid != child


def _end_the_others(child: int) -> None:
    """With its first process a container ends. The kernel sees to that in a pid namespace; here we do."""
    while True:
        others = [row for row in rows() if row.parent == os.getpid() and row.pid != child]
        if not others:
            return
        for row in others:
            send_signal(row.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(row.pid, os.WNOHANG)
        time.sleep(0.001)


def _record_end(on: Engine, container: Container, child: int, tell: int) -> None:
    """Under the lock, so that nobody sends a signal to a pid that was reaped."""
    with exclusive(on):
        status = os.waitpid(child, 0)[1]
        code = os.waitstatus_to_exitcode(status)
        code = 128 - code if code < 0 else code
        if container.auto_remove:
            remove(on, container)
        else:
            save(on, replace(container, status="exited", exit_code=code, finished=time.time(), pid=0))
    with contextlib.suppress(OSError):
        os.write(tell, str(code).encode())


# --- in the container -----------------------------------------------------------------------------------------


def _become_container(on: Engine, container: Container) -> NoReturn:
    namespaces.die_with_parent(signal.SIGKILL)
    root = directory(on, container) / "rootfs"
    for name in ("app", "root", "home", "tmp", "run", "var/tmp", container.working_directory.lstrip("/")):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    argv, environment = [*on.images[container.image], *container.arguments], _environment(on, container)
    if on.isolated:
        _enter_root(on, container, root)
        os.chdir(container.working_directory)
    else:
        argv, environment = _without_mounts(container, root, argv, environment)
        os.chdir(root / container.working_directory.lstrip("/"))
    _reset_signals()
    if container.init:
        _become_init(argv, environment)
    os.execvpe(argv[0], argv, environment)


def _environment(on: Engine, container: Container) -> dict[str, str]:
    environment = {"PATH": _PATH, "HOSTNAME": container.hostname, **on.environment}
    if on.library_path:
        environment["LD_LIBRARY_PATH"] = on.library_path
    for entry in container.environment:
        name, _, value = entry.partition("=")
        environment[name] = value
    environment.setdefault("HOME", "/root")
    return environment


def _enter_root(on: Engine, container: Container, root: Path) -> None:
    namespaces.unshare(namespaces.NEW_MOUNT)
    namespaces.make_private()
    namespaces.bind(root, root)
    for entry in sorted(Path("/").iterdir()):
        rootfs.show_system_entry(entry, root / entry.name)
    for name in ("usr", "etc", "sys"):
        namespaces.bind(Path("/", name), root / name, read_only=True)
    namespaces.bind("/dev", root / "dev")
    (root / "proc").mkdir(exist_ok=True)
    namespaces.mount("proc", root / "proc", "proc", 14)
    rootfs.show([Path(path) for path in on.readable], root)
    for host, inside, fixed in container.volumes:
        namespaces.bind(host, root / inside.lstrip("/"), read_only=fixed)
    namespaces.change_root(root)
    namespaces.set_hostname(container.hostname)


def _without_mounts(
    container: Container, root: Path, argv: list[str], environment: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Paths below a volume become paths below the directory it shows, in arguments and environment."""
    for host, inside, _ in container.volumes:
        link = root / inside.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink() and not link.exists():
            link.symlink_to(host)
        argv = [_moved(word, inside, host) for word in argv]
        environment = {name: _moved(value, inside, host) for name, value in environment.items()}
    environment.setdefault("HOME", str(root / "root"))
    if environment["HOME"] == "/root":
        environment["HOME"] = str(root / "root")
    return argv, environment


def _moved(text: str, inside: str, host: str) -> str:
    option, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
    if value == inside or value.startswith(f"{inside.rstrip('/')}/"):
        return f"{option}{equals}{host}{value[len(inside.rstrip('/')) :]}"
    return text


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _become_init(argv: list[str], environment: dict[str, str]) -> None:
    """docker's --init (tini): forward signals to the program, reap, and end as it ends. Returns in the program."""
    child = os.fork()
    if child == 0:
        return
    # once this process has let go of its standard output, the log ends with the program and its children
    nothing = os.open("/dev/null", os.O_RDWR)
    os.closerange(3, nothing)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.closerange(3, 1 << 16)
    for number in _FORWARDED:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, lambda received, _: send_signal(child, received))
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(128 - code if code < 0 else code)
