"""A docker client for the tests: containers are real processes, and outlive this client, as with Docker's
engine.

$FAKE_DOCKER holds everything: images/, containers/ID/, names/. Files there change what the engine does:
`down` (silent), `no-pull` (its text is the error), `hang-pull` (never ends), `hang-run` (the client hangs
after the container was started), `hold-create` and `hold-start` (docker run gets no further than this while the file
is there; `held` says that it is so far).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

HOME = Path(os.environ["FAKE_DOCKER"])
CONTAINERS = HOME / "containers"
PROGRAM = json.loads((HOME / "program.json").read_text())  # what every image runs


def fail(text: str, code: int = 1) -> int:
    print(text, file=sys.stderr)
    return code


def find(name: str) -> Path | None:
    named = HOME / "names" / name
    if named.exists():
        return CONTAINERS / named.read_text()
    found = CONTAINERS / name
    return found if name and found.is_dir() else None


def missing(name: str) -> int:
    return fail(f"Error: No such container: {name}")


def pid_of(folder: Path) -> int | None:
    try:
        return int((folder / "pid").read_text())
    except (OSError, ValueError):
        return None


def running(folder: Path) -> bool:
    """The keeper of the container holds a lock as long as it lives, so a power cut shows."""
    if (folder / "exit").exists() or not (folder / "keeper").exists():
        return False
    keeper = int((folder / "keeper").read_text())
    try:
        return "Z" not in Path(f"/proc/{keeper}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def hold(name: str) -> None:
    while (HOME / name).exists():
        (HOME / "held").touch()
        time.sleep(0.02)


def exit_code(folder: Path) -> int:
    try:
        return int((folder / "exit").read_text())
    except OSError:
        return 255  # the power was cut


def run(arguments: list[str]) -> int:
    import argparse  # here, because the other verbs are called often and need not wait for them
    import shutil
    import uuid

    parser = argparse.ArgumentParser(prog="docker run")
    for flag in ("--detach", "--init"):
        parser.add_argument(flag, action="store_true")
    for option in ("--name", "--gpus", "--stop-timeout", "--log-driver"):
        parser.add_argument(option)
    for option in ("--label", "--volume", "--env", "--log-opt"):
        parser.add_argument(option, action="append", default=[])
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    told = parser.parse_args(arguments)
    with (HOME / "runs.jsonl").open("a") as runs:
        runs.write(json.dumps(arguments) + "\n")
    if not (HOME / "images" / told.image.replace("/", "%")).exists():
        return fail(f"Unable to find image '{told.image}' locally", 125)
    hold("hold-create")
    identifier = uuid.uuid4().hex * 2
    folder = CONTAINERS / identifier
    folder.mkdir(parents=True)
    labels = dict(each.split("=", 1) for each in told.label)
    (folder / "config").write_text(json.dumps({"labels": labels, "started": time.time()}))
    (folder / "id").write_text(identifier)
    try:
        os.link(folder / "id", HOME / "names" / told.name)  # whole at once, whenever the power is cut
    except FileExistsError:
        shutil.rmtree(folder)
        return fail(f'docker: Error response from daemon: Conflict. The name "/{told.name}" is in use.', 125)
    hold("hold-start")
    if not folder.is_dir():
        return fail(f"docker: Error response from daemon: No such container: {identifier}", 125)
    start(folder, told)
    if (HOME / "hang-run").exists():
        (HOME / "hang-run").unlink()
        (HOME / "hanging").write_text(str(os.getpid()))
        signal.pause()
    print(identifier)
    return 0


def start(folder: Path, told: Any) -> None:
    import subprocess

    mounts = dict(reversed(each.split(":")[:2]) for each in told.volume)
    environment = {"PATH": os.environ["PATH"], "VM_DISK": os.environ["VM_DISK"]}
    for each in told.env:
        name, given, value = each.partition("=")
        if not given and name not in os.environ:
            continue
        value = value if given else os.environ[name]
        environment[name] = mounts.get(value, value)  # there is no mount namespace here
    subprocess.Popen(
        [
            sys.executable,
            "-sSEB",
            str(Path(__file__).with_name("fake_engine.py")),
            folder,
            *PROGRAM,
            *told.command,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    while not (folder / "keeper").exists() or not ((folder / "pid").exists() or (folder / "exit").exists()):
        time.sleep(0.002)


def inspect(arguments: list[str]) -> int:
    folder = find(arguments[-1])
    if folder is None:
        return missing(arguments[-1])
    config = json.loads((folder / "config").read_text())
    runs = running(folder)
    status = "running" if runs else "exited"
    if not (folder / "keeper").exists():
        status = "created"
    words = [folder.name, status, "0" if runs else str(exit_code(folder))]
    words += ["true" if (folder / "oom").exists() else "false", "2026-01-01T00:00:00.5Z"]
    print(*words, config["labels"].get("cloudtrain.spec", ""))
    return 0


def logs(arguments: list[str]) -> int:
    folder = find(arguments[-1])
    if folder is None:
        return missing(arguments[-1])
    follow = "--follow" in arguments
    with (folder / "log").open("rb", buffering=0) as log:
        while True:
            ended = not running(folder)
            while chunk := log.read(65536):
                os.write(1, chunk)
            if ended or not follow:
                return 0
            time.sleep(0.02)


def wait(name: str) -> int:
    folder = find(name)
    if folder is None:
        return missing(name)
    while running(folder):
        time.sleep(0.02)
    print(exit_code(folder))
    return 0


def kill(arguments: list[str]) -> int:
    folder = find(arguments[-1])
    if folder is None:
        return missing(arguments[-1])
    process = pid_of(folder)
    if not running(folder) or process is None:
        return fail(f"Error response from daemon: container {folder.name} is not running")
    os.kill(process, signal.SIGTERM)
    print(arguments[-1])
    return 0


def remove(arguments: list[str]) -> int:
    name = arguments[-1]
    folder = find(name)
    if folder is None:
        return missing(name)
    if running(folder) and "--force" not in arguments:
        return fail(f'Error response from daemon: cannot remove container "{name}": container is running')
    process = pid_of(folder)
    if running(folder) and process is not None:
        os.kill(process, signal.SIGKILL)
    for named in (HOME / "names").iterdir():
        if named.read_text() == folder.name:
            named.unlink()
    (HOME / "removed").mkdir(exist_ok=True)
    folder.rename(HOME / "removed" / folder.name)
    print(name)
    return 0


def pull(image: str) -> int:
    (HOME / "pulled-with").write_text(json.dumps(dict(os.environ)))
    if (HOME / "hang-pull").exists():
        print("a1: Pulling fs layer", flush=True)
        signal.pause()
    if (HOME / "no-pull").exists():
        return fail((HOME / "no-pull").read_text())
    print("a1: Pulling fs layer\na1: Pull complete", flush=True)
    (HOME / "images" / image.replace("/", "%")).touch()
    return 0


def main(arguments: list[str]) -> int:
    if (HOME / "down").exists():
        return fail("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.")
    verb, rest = arguments[0], arguments[1:]
    if verb == "image":
        here = (HOME / "images" / rest[-1].replace("/", "%")).exists()
        return 0 if here else fail(f"Error: No such image: {rest[-1]}")
    verbs = {
        "run": lambda: run(rest),
        "inspect": lambda: inspect(rest),
        "logs": lambda: logs(rest),
        "wait": lambda: wait(rest[-1]),
        "kill": lambda: kill(rest),
        "rm": lambda: remove(rest),
        "pull": lambda: pull(rest[-1]),
    }
    return verbs[verb]()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
