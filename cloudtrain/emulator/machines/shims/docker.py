"""The VM's `docker`: docker's command line, answers and exit codes, as far as guest scripts use them.

Its images are argv prefixes that the host gave (the trainer of this Python environment); it pulls nothing. What it
does not have it refuses by name.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cloudtrain.emulator.machines.process_table import send_signal
from cloudtrain.emulator.machines.shims import keeper
from cloudtrain.emulator.machines.shims.containers import (
    Container,
    DockerError,
    Engine,
    LogLine,
    LogReader,
    await_end,
    create,
    engine,
    everyone,
    exclusive,
    find,
    image_id,
    inspection,
    is_alive,
    log_path,
    new_id,
    new_name,
    normalised,
    remove,
    save,
    shown_time,
    size_in_bytes,
)
from cloudtrain.emulator.machines.shims.gotemplate import TemplateError, render

_VERSION = "27.5.1"
_FOLLOW_SECONDS = 0.05  # between looks at a log that is followed


class Refused(Exception):
    """A message of the docker client itself, and the exit code that goes with it."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


# --- options --------------------------------------------------------------------------------------------------


@dataclass
class Options:
    """What was given on the command line: values in the order given, switches as ['true']."""

    given: dict[str, list[str]] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)

    def on(self, name: str) -> bool:
        return self.given.get(name, ["false"])[-1] == "true"

    def last(self, name: str, default: str = "") -> str:
        return self.given.get(name, [default])[-1]

    def all(self, name: str) -> list[str]:
        return self.given.get(name, [])


def parse(words: Sequence[str], command: str, known: Mapping[str, str], *, interspersed: bool = True) -> Options:
    """known: flag as typed -> its name, with '=' behind the name when it takes a value.

    Raises Refused as docker does, with exit code 125, for a flag that is not known."""
    options = Options()
    pending = list(words)
    while pending:
        word = pending.pop(0)
        if word == "--":
            options.rest += pending
            break
        if not word.startswith("-") or word == "-":
            options.rest.append(word)
            if not interspersed:
                options.rest += pending
                break
            continue
        for flag, value in _flags(word, known):
            name = known.get(flag)
            if name is None:
                raise Refused(
                    f"unknown flag: {flag} (this VM's docker knows: {' '.join(sorted(known))})\n\n"
                    f"Usage:  docker {command} [OPTIONS]\n\nRun 'docker {command} --help' for more information",
                    125,
                )
            if not name.endswith("="):
                options.given.setdefault(name, []).append(value or "true")
            elif value is None and not pending:
                raise Refused(f"flag needs an argument: {flag}\n\nSee 'docker {command} --help'.", 125)
            else:
                options.given.setdefault(name[:-1], []).append(pending.pop(0) if value is None else value)
    return options


def _flags(word: str, known: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """--name=value, or single letters run together (-dit), the last of which may have its value attached."""
    if word.startswith("--"):
        flag, equals, value = word.partition("=")
        return [(flag, value if equals else None)]
    found: list[tuple[str, str | None]] = []
    for position, letter in enumerate(word[1:], 1):
        flag = f"-{letter}"
        if known.get(flag, "").endswith("="):
            attached = word[position + 1 :].removeprefix("=")
            return [*found, (flag, attached or None)]
        found.append((flag, None))
    return found


# --- run, create, start -----------------------------------------------------------------------------------------

_RUN_FLAGS = {
    "-d": "detach",
    "--detach": "detach",
    "--name": "name=",
    "--init": "init",
    "--gpus": "gpus=",
    "-l": "label=",
    "--label": "label=",
    "-v": "volume=",
    "--volume": "volume=",
    "--mount": "mount=",
    "-e": "env=",
    "--env": "env=",
    "--env-file": "env-file=",
    "-w": "workdir=",
    "--workdir": "workdir=",
    "-h": "hostname=",
    "--hostname": "hostname=",
    "--stop-timeout": "stop-timeout=",
    "--log-driver": "log-driver=",
    "--log-opt": "log-opt=",
    "--rm": "rm",
    "--restart": "restart=",
    "--pull": "pull=",
    # taken, and without effect: there is no terminal, and VM and container share network and memory anyway
    "-i": "interactive",
    "--interactive": "interactive",
    "-t": "tty",
    "--tty": "tty",
    "--ipc": "ipc=",
    "--network": "network=",
    "--net": "network=",
    "--shm-size": "shm-size=",
    "--ulimit": "ulimit=",
}


def run(on: Engine, words: Sequence[str]) -> int:
    options = parse(words, "run", _RUN_FLAGS, interspersed=False)
    container = _described(on, options, "run")
    with exclusive(on):
        _create(on, container)
        try:
            ends = keeper.start(on, container)
        except DockerError as error:
            save(on, replace(container, exit_code=127, error=str(error)))
            raise Refused(f"docker: Error response from daemon: {error}", 127) from error
        log = LogReader(log_path(on, container))
    if options.on("detach"):
        print(container.id)
        return 0
    return _attend(on, container, log, ends)


def create_only(on: Engine, words: Sequence[str]) -> int:
    options = parse(words, "create", _RUN_FLAGS, interspersed=False)
    container = _described(on, options, "create")
    with exclusive(on):
        _create(on, container)
    print(container.id)
    return 0


def start(on: Engine, words: Sequence[str]) -> int:
    options = parse(words, "start", {"-a": "attach", "--attach": "attach"})
    if options.on("attach") and len(options.rest) == 1:
        with exclusive(on):
            container = find(on, options.rest[0])
            log = LogReader(log_path(on, container))
            for _ in log.read():  # only what this start prints
                pass
            ends = keeper.start(on, container) if container.status != "running" else None
        return _attend(on, container, log, ends) if ends is not None else 0

    def one(name: str) -> None:
        container = find(on, name)
        if container.status != "running":
            os.close(keeper.start(on, container))
        print(name)

    return _each(on, options.rest, one, "start")


def _described(on: Engine, options: Options, command: str) -> Container:
    if not options.rest:
        raise Refused(f"'docker {command}' requires at least 1 argument\n\nUsage:  docker {command} [OPTIONS] IMAGE", 1)
    _refuse_what_is_missing(options, command)
    reference, *arguments = options.rest
    image = on.image(reference)
    if image is None:
        print(f"Unable to find image '{normalised(reference)}' locally", file=sys.stderr)
        raise Refused(f"docker: Error response from daemon: {_no_such_image(on, reference)}", 125)
    identifier = new_id()
    return Container(
        id=identifier,
        name=_checked_name(options.last("name") or new_name(), command),
        image=image,
        arguments=arguments,
        created=time.time(),
        labels=dict(_pair(label) for label in options.all("label")),
        environment=_environment(options, command),
        volumes=[_volume(text, command) for text in options.all("volume")]
        + [_mount(text, command) for text in options.all("mount")],
        working_directory=options.last("workdir", "/app"),
        hostname=options.last("hostname", identifier[:12]),
        init=options.on("init"),
        stop_timeout=_seconds(options.last("stop-timeout", "10"), "--stop-timeout"),
        auto_remove=options.on("rm"),
        log_driver=options.last("log-driver", "json-file"),
        log_options=dict(_pair(option) for option in options.all("log-opt")),
    )


def _refuse_what_is_missing(options: Options, command: str) -> None:
    if options.last("restart", "no") not in ("no", ""):
        raise Refused(
            f"docker: this VM's docker has no restart policies (--restart {options.last('restart')}): nothing starts "
            "a container again but `docker start`",
            125,
        )
    driver = options.last("log-driver", "json-file")
    if driver not in ("json-file", "local"):
        raise Refused(f'docker: Error response from daemon: logger: no log driver named "{driver}" is registered', 125)
    for option in options.all("log-opt"):
        name, value = _pair(option)
        if name == "max-size":
            _check_size(value)
        elif name != "max-file":
            raise Refused(f"docker: Error response from daemon: unknown log opt '{name}' for {driver} log driver", 125)
    if options.last("gpus") and not Path("/dev/nvidiactl").exists():
        print("docker: warning: --gpus has no effect, this emulated VM has no GPU", file=sys.stderr)


def _check_size(text: str) -> None:
    try:
        size_in_bytes(text)
    except DockerError as error:
        raise Refused(f"docker: Error response from daemon: {error}", 125) from error


def _seconds(text: str, flag: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Refused(f'invalid argument "{text}" for "{flag}" flag: not a number', 125) from None


def _checked_name(name: str, command: str) -> str:
    if not re.fullmatch(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+", name):
        raise Refused(
            f"docker: Error response from daemon: Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] "
            f"are allowed\n\nRun 'docker {command} --help' for more information",
            125,
        )
    return name.removeprefix("/")


def _create(on: Engine, container: Container) -> None:
    try:
        create(on, container)
    except DockerError as error:
        raise Refused(
            f"docker: Error response from daemon: {error}\n\nRun 'docker run --help' for more information",
            125,
        ) from error


def _environment(options: Options, command: str) -> list[str]:
    entries: dict[str, str] = {}
    for path in options.all("env-file"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError as error:
            raise Refused(f"docker: open {path}: {error.strerror}\n\nSee 'docker {command} --help'.", 125) from error
        _take(entries, [line for line in lines if line.strip() and not line.lstrip().startswith("#")])
    _take(entries, options.all("env"))
    return [f"{name}={value}" for name, value in entries.items()]


def _take(entries: dict[str, str], lines: Sequence[str]) -> None:
    """NAME=value; a NAME alone has the value it has here, or is not passed on."""
    for line in lines:
        name, equals, value = line.partition("=")
        if equals:
            entries[name] = value
        elif name in os.environ:
            entries[name] = os.environ[name]


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _volume(text: str, command: str) -> list[Any]:
    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[1].startswith("/"):
        raise Refused(f"docker: invalid volume specification: '{text}'\n\nSee 'docker {command} --help'.", 125)
    if not parts[0].startswith("/"):
        raise Refused(
            f"docker: this VM's docker has no named volumes ('{parts[0]}'): mount a directory, by its absolute path",
            125,
        )
    modes = parts[2].split(",") if len(parts) == 3 else []
    if not set(modes) <= {
        "ro",
        "rw",
        "z",
        "Z",
        "rprivate",
        "private",
        "rslave",
        "rshared",
        "shared",
        "slave",
    }:
        raise Refused(f"docker: Error response from daemon: invalid mode: {parts[2]}", 125)
    return [parts[0], parts[1], "ro" in modes]


def _mount(text: str, command: str) -> list[Any]:
    options = dict(_pair(part) for part in text.split(","))
    source = options.get("source") or options.get("src")
    target = options.get("target") or options.get("destination") or options.get("dst")
    if options.get("type", "volume") != "bind" or not source or not target:
        raise Refused(f"docker: this VM's docker has bind mounts only: '{text}'", 125)
    if not Path(source).exists():
        raise Refused(
            'docker: Error response from daemon: invalid mount config for type "bind": bind source path does not '
            f"exist: {source}",
            125,
        )
    fixed = options.get("readonly", options.get("ro", "false")) in ("", "true", "1")
    return [source, target, fixed]


def _attend(on: Engine, container: Container, log: LogReader, ends: int) -> int:
    """The foreground: show what it prints, hand on our signals, end with its exit code."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda received, _: _hand_on(on, container, received))
    os.set_blocking(ends, False)
    while True:
        try:
            code = os.read(ends, 64)
        except BlockingIOError:
            code = None
        for line in log.read():
            _show(line)
        if code is not None:
            return int(code) if code else 255
        time.sleep(_FOLLOW_SECONDS)


def _hand_on(on: Engine, container: Container, number: int) -> None:
    with exclusive(on):
        for current in everyone(on):
            if current.id == container.id and current.status == "running":
                send_signal(current.pid, number)


# --- wait, kill, stop, rm -----------------------------------------------------------------------------------------


def wait(on: Engine, words: Sequence[str]) -> int:
    def one(name: str) -> None:
        with exclusive(on):
            container = find(on, name)
        await_end(on, container)
        with exclusive(on):
            ended = [other for other in everyone(on) if other.id == container.id]
        print(ended[0].exit_code if ended else 0, flush=True)

    return _each(on, parse(words, "wait", {}).rest, one, "wait", locked=False)


def kill(on: Engine, words: Sequence[str]) -> int:
    options = parse(words, "kill", {"-s": "signal=", "--signal": "signal="})
    number = _signal_number(options.last("signal", "KILL"))

    def one(name: str) -> None:
        container = find(on, name)
        if container.status != "running":
            raise DockerError(f"cannot kill container: {name}: container {container.id} is not running")
        send_signal(container.pid, number)
        print(name)

    code = _each(on, options.rest, one, "kill")
    if number == signal.SIGKILL:
        _await_all(on, options.rest)
    return code


def _await_all(on: Engine, names: Sequence[str]) -> None:
    for name in names:
        try:
            with exclusive(on):
                container = find(on, name)
        except DockerError:
            continue
        await_end(on, container)


def _signal_number(text: str) -> int:
    if text.isdigit() and int(text) in range(1, 65):
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    try:
        return int(signal.Signals[name])
    except KeyError:
        raise Refused(f"Error response from daemon: invalid signal: {text}") from None


def stop(on: Engine, words: Sequence[str]) -> int:
    flags = {"-t": "time=", "--time": "time=", "--timeout": "time=", "-s": "signal=", "--signal": "signal="}
    options = parse(words, "stop", flags)
    number = _signal_number(options.last("signal", "TERM"))

    def one(name: str) -> None:
        with exclusive(on):
            container = find(on, name)
            if container.status == "running":
                send_signal(container.pid, number)
        _stop(on, container, float(options.last("time") or container.stop_timeout))
        print(name)

    return _each(on, options.rest, one, "stop", locked=False)


def _stop(on: Engine, container: Container, patience: float) -> None:
    give_up = time.monotonic() + patience
    while _is_running(on, container):
        if time.monotonic() >= give_up:
            _hand_on(on, container, signal.SIGKILL)
            await_end(on, container)
        time.sleep(0.02)


def _is_running(on: Engine, container: Container) -> bool:
    try:
        return is_alive(on, container)
    except FileNotFoundError:
        return False


def remove_containers(on: Engine, words: Sequence[str]) -> int:
    options = parse(words, "rm", {"-f": "force", "--force": "force", "-v": "volumes", "--volumes": "volumes"})

    def one(name: str) -> None:
        with exclusive(on):
            try:
                container = find(on, name)
            except DockerError:
                if options.on("force"):  # like rm -f; docker says so, and ends with 0
                    print(f"Error response from daemon: No such container: {name}", file=sys.stderr)
                    return
                raise
            if container.status == "running" and not options.on("force"):
                raise DockerError(
                    f'cannot remove container "/{container.name}": container is running: stop the container before '
                    "removing or force remove"
                )
            if container.status == "running":
                send_signal(container.pid, signal.SIGKILL)
        await_end(on, container)
        with exclusive(on):
            if any(other.id == container.id for other in everyone(on)):
                remove(on, container)
        print(name)

    return _each(on, options.rest, one, "rm", locked=False)


def _each(on: Engine, names: Sequence[str], one: Callable[[str], None], command: str, *, locked: bool = True) -> int:
    """Do it to every one; what fails is said, and the others are done all the same."""
    if not names:
        raise Refused(f"'docker {command}' requires at least 1 argument\n\nUsage:  docker {command} CONTAINER...")
    code = 0
    for name in names:
        try:
            if locked:
                with exclusive(on):
                    one(name)
            else:
                one(name)
        except DockerError as error:
            print(f"Error response from daemon: {error}", file=sys.stderr)
            code = 1
    return code


# --- logs -----------------------------------------------------------------------------------------------------


def logs(on: Engine, words: Sequence[str]) -> int:
    flags = {
        "-f": "follow",
        "--follow": "follow",
        "-t": "timestamps",
        "--timestamps": "timestamps",
        "-n": "tail=",
        "--tail": "tail=",
        "--since": "since=",
        "--until": "until=",
    }
    options = parse(words, "logs", flags)
    if len(options.rest) != 1:
        raise Refused("'docker logs' requires 1 argument\n\nUsage:  docker logs [OPTIONS] CONTAINER")
    with exclusive(on):
        container = find(on, options.rest[0])
        reader = LogReader(log_path(on, container))
    since, until = _moment(options.last("since"), 0.0), _moment(options.last("until"), float("inf"))
    lines = [line for line in reader.read() if since <= line.time <= until]
    stamped = options.on("timestamps")
    for line in _last_lines(lines, options.last("tail", "all")):
        _show(line, stamped)
    while options.on("follow"):
        going = _is_running(on, container)
        for line in reader.read():
            if since <= line.time <= until:
                _show(line, stamped)
        if not going:
            break
        time.sleep(_FOLLOW_SECONDS)
    return 0


def _last_lines(lines: list[LogLine], wanted: str) -> list[LogLine]:
    if not wanted.isdigit():
        return lines
    kept: list[LogLine] = []
    count = 0
    for line in reversed(lines):
        count += line.text.endswith("\n") or not kept
        if count > int(wanted):
            break
        kept.insert(0, line)
    return kept


def _show(line: LogLine, stamped: bool = False) -> None:
    stream = sys.stdout if line.stream == "stdout" else sys.stderr
    stream.write(f"{shown_time(line.time)} {line.text}" if stamped else line.text)
    stream.flush()


def _moment(text: str, default: float) -> float:
    """A date, seconds since 1970, or how long ago (1h10m). Epoch seconds."""
    if not text:
        return default
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    ago = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    if ago:
        hours, minutes, seconds = (float(part or 0) for part in ago.groups())
        return time.time() - hours * 3600 - minutes * 60 - seconds
    try:
        return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).timestamp()
    except ValueError:
        raise Refused(f'invalid value for "since": failed to parse value as time or duration: "{text}"') from None


# --- what is there --------------------------------------------------------------------------------------------


def inspect(on: Engine, words: Sequence[str]) -> int:
    flags = {"-f": "format=", "--format": "format=", "--type": "type=", "-s": "size", "--size": "size"}
    options = parse(words, "inspect", flags)
    if options.last("type") == "image":
        return inspect_images(on, ["--format", options.last("format"), *options.rest])
    found, missing = [], []
    for name in options.rest:
        try:
            with exclusive(on):
                found.append(inspection(on, find(on, name)))
        except DockerError as error:
            missing.append(str(error) if options.last("type") else f"No such object: {name}")
    _print_inspected(found, options.last("format"))
    for message in missing:
        print(
            f"Error response from daemon: {message}" if options.last("type") else f"Error: {message}",
            file=sys.stderr,
        )
    return 1 if missing else 0


def _print_inspected(found: list[dict[str, Any]], template: str) -> None:
    if not template:
        print(json.dumps(found, indent=4))
    elif template == "json":
        print(json.dumps(found, separators=(",", ":")))
    else:
        print("\n".join(render(template, value) for value in found))


def inspect_images(on: Engine, words: Sequence[str]) -> int:
    options = parse(words, "image inspect", {"-f": "format=", "--format": "format="})
    known = [on.image(reference) for reference in options.rest]
    shown = [_image(name) for name in known if name is not None]
    _print_inspected(shown, options.last("format"))
    missing = [reference for reference, name in zip(options.rest, known, strict=True) if name is None]
    for reference in missing:
        print(f"Error: No such image: {reference}", file=sys.stderr)
    return 1 if missing else 0


def _image(name: str) -> dict[str, Any]:
    return {
        "Id": image_id(name),
        "RepoTags": [normalised(name)],
        "RepoDigests": [],
        "Os": "linux",
        "Size": 0,
        "Config": {"WorkingDir": "/app", "Labels": {}},
    }


def list_images(on: Engine, words: Sequence[str]) -> int:
    options = parse(words, "images", {"-q": "quiet", "--quiet": "quiet", "-a": "all", "--format": "format="})
    rows = []
    for name in on.images:
        repository, _, tag = normalised(name).rpartition(":")
        rows.append({"Repository": repository, "Tag": tag, "ID": image_id(name)[7:19], "Size": "0B"})
    _print_table(rows, options, ["Repository", "Tag", "ID", "Size"], {"ID": "IMAGE ID"})
    return 0


def pull(on: Engine, words: Sequence[str]) -> int:
    options = parse(words, "pull", {"-q": "quiet", "--quiet": "quiet", "--platform": "platform="})
    if len(options.rest) != 1:
        raise Refused("'docker pull' requires 1 argument\n\nUsage:  docker pull [OPTIONS] NAME[:TAG|@DIGEST]")
    reference = options.rest[0]
    name = on.image(reference)
    if name is None:
        raise Refused(f"Error response from daemon: {_no_such_image(on, reference)}")
    if normalised(reference) != reference and ":" not in reference and not options.on("quiet"):
        print("Using default tag: latest")
    if not options.on("quiet"):
        print(f"Status: Image is up to date for {normalised(name)}")
    print(_full_name(name))
    return 0


def _full_name(name: str) -> str:
    full = normalised(name)
    first, slash, _ = full.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return full
    return f"docker.io/{full}" if slash else f"docker.io/library/{full}"


def _no_such_image(on: Engine, reference: str) -> str:
    return (
        f"pull access denied for {reference}, repository does not exist or may require 'docker login': denied: "
        "requested access to the resource is denied\n"
        "This VM is emulated and its docker pulls nothing: it holds only the trainer of this Python environment, as "
        + (", ".join(f"'{name}'" for name in sorted(on.images)) or "no image at all")
    )


def ps(on: Engine, words: Sequence[str]) -> int:
    flags = {
        "-a": "all",
        "--all": "all",
        "-q": "quiet",
        "--quiet": "quiet",
        "-f": "filter=",
        "--filter": "filter=",
        "--format": "format=",
        "--no-trunc": "no-trunc",
        "-n": "last=",
        "-l": "latest",
        "--latest": "latest",
    }
    options = parse(words, "ps", flags)
    with exclusive(on):
        shown = everyone(on)
    tests = [_filter(text) for text in options.all("filter")]
    wants_all = options.on("all") or any(text.startswith("status=") for text in options.all("filter"))
    shown = [c for c in shown if (wants_all or c.status == "running") and all(test(c) for test in tests)]
    rows = [_row(container, options.on("no-trunc")) for container in shown]
    columns = ["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"]
    _print_table(rows, options, columns, {"ID": "CONTAINER ID", "RunningFor": "CREATED"})
    return 0


def _filter(text: str) -> Callable[[Container], bool]:
    name, _, value = text.partition("=")
    match name:
        case "name":
            return lambda c: re.search(value, f"/{c.name}") is not None or re.search(value, c.name) is not None
        case "id":
            return lambda c: c.id.startswith(value)
        case "status":
            return lambda c: c.status == value
        case "label":
            key, equals, wanted = value.partition("=")
            return lambda c: key in c.labels and (not equals or c.labels[key] == wanted)
        case "ancestor":
            return lambda c: normalised(c.image) == normalised(value)
    raise Refused(f"Error response from daemon: invalid filter '{name}'")


def _row(container: Container, whole: bool) -> dict[str, Any]:
    command = " ".join([container.image, *container.arguments])
    return {
        "ID": container.id if whole else container.id[:12],
        "Image": container.image,
        "Command": f'"{command if whole or len(command) <= 20 else command[:19] + "…"}"',
        "CreatedAt": shown_time(container.created),
        "RunningFor": f"{_span(time.time() - container.created)} ago",
        "Ports": "",
        "State": container.status,
        "Status": _status(container),
        "Names": container.name,
        "Labels": ",".join(f"{name}={value}" for name, value in container.labels.items()),
        "_labels": container.labels,
    }


def _status(container: Container) -> str:
    match container.status:
        case "running":
            return f"Up {_span(time.time() - container.started)}"
        case "exited":
            return f"Exited ({container.exit_code}) {_span(time.time() - container.finished)} ago"
    return "Created"


def _span(seconds: float) -> str:
    """As docker words it (go-units HumanDuration)."""
    if seconds < 1:
        return "Less than a second"
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return "Less than a second"


def _print_table(rows: list[dict[str, Any]], options: Options, columns: list[str], titles: dict[str, str]) -> None:
    template = options.last("format")
    if options.on("quiet"):
        for row in rows:
            print(row["ID"])
    elif template and not template.startswith("table"):
        for row in rows:
            visible = {name: value for name, value in row.items() if not name.startswith("_")}
            print(json.dumps(visible) if template == "json" else render(template, row))
    else:
        if template:
            columns = re.findall(r"\{\{\s*\.(\w+)\s*\}\}", template)
        lines = [[titles.get(name, name.upper()) for name in columns]]
        lines += [[str(row.get(name, "")) for name in columns] for row in rows]
        widths = [max(len(line[i]) for line in lines) + 3 for i in range(len(columns))]
        for line in lines:
            print("".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def info(on: Engine, words: Sequence[str]) -> int:
    template = parse(words, "info", {"-f": "format=", "--format": "format="}).last("format")
    with exclusive(on):
        running = [container.status == "running" for container in everyone(on)]
    values = {
        "ServerVersion": _VERSION,
        "Containers": len(running),
        "ContainersRunning": sum(running),
        "Images": len(on.images),
        "Driver": "cloudtrain",
        "LoggingDriver": "json-file",
        "OperatingSystem": "cloudtrain emulated VM",
        "Runtimes": {},
    }
    if template:
        print(json.dumps(values) if template in ("json", "{{json .}}") else render(template, values))
        return 0
    print("Client:\n Version:    " + _VERSION + "\n\nServer:")
    for title, name in (
        ("Containers", "Containers"),
        ("  Running", "ContainersRunning"),
        ("Images", "Images"),
        ("Server Version", "ServerVersion"),
        ("Storage Driver", "Driver"),
        ("Logging Driver", "LoggingDriver"),
        ("Operating System", "OperatingSystem"),
    ):
        print(f" {title}: {values[name]}")
    return 0


def version(on: Engine, words: Sequence[str]) -> int:
    template = parse(words, "version", {"-f": "format=", "--format": "format="}).last("format")
    values = {"Client": {"Version": _VERSION}, "Server": {"Version": _VERSION}}
    if template:
        print(json.dumps(values) if template == "json" else render(template, values))
    else:
        print(f"Client:\n Version:           {_VERSION}\n\nServer: cloudtrain emulated VM\n Engine:")
        print(f"  Version:          {_VERSION}")
    return 0


# --- the command line -----------------------------------------------------------------------------------------

_COMMANDS: dict[str, Callable[[Engine, Sequence[str]], int]] = {
    "run": run,
    "create": create_only,
    "start": start,
    "wait": wait,
    "kill": kill,
    "stop": stop,
    "rm": remove_containers,
    "logs": logs,
    "ps": ps,
    "inspect": inspect,
    "images": list_images,
    "pull": pull,
    "info": info,
    "version": version,
}
_OF_CONTAINERS = {name: name for name in ("run", "create", "start", "wait", "kill", "stop", "rm", "logs", "inspect")}
_GROUPS = {
    "container": {**_OF_CONTAINERS, "ls": "ps", "list": "ps", "ps": "ps"},
    "image": {"ls": "images", "list": "images", "pull": "pull", "inspect": "image inspect"},
    "system": {"info": "info"},
}


def main(words: Sequence[str]) -> int:
    try:
        return _dispatch(list(words))
    except Refused as refused:
        print(refused, file=sys.stderr)
        return refused.code
    except TemplateError as error:
        print(error, file=sys.stderr)
        return 1
    except DockerError as error:
        print(f"Error response from daemon: {error}", file=sys.stderr)
        return 1
    except (BrokenPipeError, KeyboardInterrupt):
        return 130


def _dispatch(words: list[str]) -> int:
    if words[:1] in (["--version"], ["-v"]):
        print(f"Docker version {_VERSION}, build cloudtrain")
        return 0
    name = _command_name(words)
    on = engine()
    if on is None:
        raise Refused(
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
        )
    if os.getuid() != 0 and on.isolated:
        raise Refused(
            "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock"
        )
    if name == "container inspect":
        return inspect(on, ["--type", "container", *words])
    return inspect_images(on, words) if name == "image inspect" else _COMMANDS[name](on, words)


def _command_name(words: list[str]) -> str:
    """Takes the command off `words`. Raises Refused for one that is not there."""
    if not words or words[0] in ("--help", "-h", "help"):
        raise Refused(f"Usage:  docker COMMAND\n\nThis VM's docker has: {' '.join(sorted(_COMMANDS))}", 0)
    first = words.pop(0)
    if first in _GROUPS:
        second = words.pop(0) if words else ""
        found = _GROUPS[first].get(second)
        if found is None:
            raise Refused(f"docker: this VM's docker has no command '{first} {second}'".rstrip())
        return "container inspect" if (first, found) == ("container", "inspect") else found
    if first not in _COMMANDS:
        raise Refused(f"docker: '{first}' is not a docker command that this VM's docker has.\nSee 'docker --help'")
    return first
