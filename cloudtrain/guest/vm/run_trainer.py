"""Keep one trainer running until it has finished, or cannot: the part of startup-script.sh that bash does
badly.

Runs under the startup lock. Each turn looks at the container that Docker has, decides, and acts; so it does
not matter who was killed before, this program, a docker client, or the whole VM.

When the VM shuts down, it is Docker's engine that asks the trainer to save: it sends SIGTERM to every
container and waits for its --stop-timeout. This program then only takes care not to start it again.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import guest  # type: ignore[import-not-found]
import restore  # type: ignore[import-not-found]
import storage  # type: ignore[import-not-found]
import trainer_output  # type: ignore[import-not-found]

SAVED = 75  # the trainer saved when it was told to end: start me again
KILLED = (137, 143)  # SIGKILL, SIGTERM
# Refused arguments (argparse's code, and a shell's for misuse); a command that cannot be run, or is not in the image.
HOPELESS = (2, 126, 127)
STOP_SECONDS = 60  # that the engine gives a container to save, on its way down
TICK_SECONDS = 0.25
LOGIN = guest.ROOT / "docker"  # a docker config.json that may pull the image, readable by root alone
POWER_CUT = (137, 143, 255)  # how a container is found after the VM, or the engine, was cut off

down = threading.Event()  # this VM goes down


def verdict(
    code: int, *, fenced: bool, evicting: bool, going_down: bool, stopping: bool, found: bool, oom: bool
) -> str:
    """What the end of a container means. found: it had ended before anybody looked, as after a power cut."""
    if code == 0:
        return "finished"
    if code == SAVED or (code in KILLED and not oom):
        for holds, name in (
            (fenced, "fenced"),
            (stopping, "stopped"),
            (evicting, "evicted"),
            (going_down, "shut down"),
        ):
            if holds:
                return name
    if code == SAVED:
        return "asked again"
    if found and code in POWER_CUT and not oom:
        return "cut off"
    return "failed"


class State:
    """state.json: where things stand, for whoever waits, and what must be remembered over boots."""

    def __init__(self) -> None:
        kept = guest.read_json(guest.ROOT / "state.json") or {}
        self.fields: dict[str, Any] = {
            "writer": guest.identity(os.getpid()),
            "session": (guest.whole(kept.get("session")) or 0) + 1,  # starts of this program
            "starts": guest.whole(kept.get("starts")) or 0,  # of containers
            "judged": str(kept.get("judged", "")),  # the last container whose end was dealt with
            "failures": 0,
        }
        self.stage("starting", sync=True)

    def stage(self, name: str, detail: str = "", *, sync: bool = False, **fields: Any) -> None:
        if name != self.fields.get("stage"):
            self.fields["since"] = time.time()
        self.fields.update(stage=name, detail=detail, **fields)
        guest.write_json(guest.ROOT / "state.json", self.fields, sync=sync)


def pause(seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """Wait, but not longer than until the VM goes down or the condition holds."""
    end = time.monotonic() + seconds
    while not down.is_set() and not until() and time.monotonic() < end:
        down.wait(min(0.25, max(0.0, end - time.monotonic())))


class Failed(Exception):
    """Training cannot go on; the message says why."""


def look(state: State) -> Any:
    """The container, waiting for the engine where it is late. Raises Failed when it never answers."""
    end = time.monotonic() + guest.tuning("engine_seconds")
    told = ""
    while not down.is_set():
        try:
            return guest.container()
        except guest.EngineSilent as error:
            if str(error) != told:
                told = str(error)
                guest.say(f"waiting for the Docker engine: {told}")
                guest.event("engine_late", reason=told)
            if time.monotonic() > end:
                raise Failed(f"the Docker engine does not answer: {told}") from error
        state.stage("engine", told)
        down.wait(0.5)
    return None


def pull(image: str, state: State) -> None:
    """Fetch the image; the one that is here will do where that fails. Raises Failed when there is none."""
    guest.event("pulling", image=image)
    pauses = [*guest.tuning("pull_pauses"), None]
    for wait in pauses:
        reason = pull_once(image, state)
        if not reason:
            guest.event("pulled", image=image)
            return
        guest.say(f"pull failed: {reason}")
        guest.event("pull_failed", image=image, reason=reason)
        if guest.docker("image", "inspect", image).returncode == 0:
            guest.say("going on with the image that is already here")
            guest.event("cached_image", image=image)
            return
        if wait is None or down.is_set():
            raise Failed(f"the image {image} cannot be pulled: {reason}")
        state.stage("pull", f"failed, trying again: {reason}")
        pause(wait)


def pull_once(image: str, state: State) -> str:
    """Why it failed, or nothing."""
    state.stage("pull", image)
    # Of a private image; `up` has put it there.
    login = {"DOCKER_CONFIG": str(LOGIN)} if (LOGIN / "config.json").exists() else {}
    try:
        client = subprocess.Popen(
            ["docker", "pull", image],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **login},
        )
    except OSError as error:
        return str(error)
    limit = threading.Timer(guest.tuning("pull_seconds"), client.kill)
    limit.start()
    try:
        last = follow_pull(client, image, state)
    finally:
        limit.cancel()
    code = client.wait()
    if code == 0:
        return ""
    if code == -signal.SIGKILL:
        return f"docker pull was stuck and killed, or killed by somebody; the last it said: {last}"
    return last or f"docker pull ended with {code}"


def follow_pull(client: "subprocess.Popen[bytes]", image: str, state: State) -> str:
    """Tells how far it is; the last line that it printed."""
    layers: dict[bytes, bool] = {}
    last, shown = b"", 0.0
    for line in client.stdout or ():
        last = line.strip() or last
        layer, _, what = last.partition(b": ")
        if what == b"Pulling fs layer" or what in (b"Pull complete", b"Already exists"):
            layers[layer] = what != b"Pulling fs layer"
        if layers and time.monotonic() - shown > 1:
            shown = time.monotonic()
            state.stage("pull", f"{image}, {sum(layers.values())} of {len(layers)} layers")
    return last.decode(errors="replace")[-300:]


def run_command(wanted: dict[str, Any]) -> list[str]:
    """The docker run that starts the trainer. Arguments reach it as they are: there is no shell between."""
    environment = {
        **dict(wanted["environment"]),
        "CHECKPOINT_DIR": wanted["mount"],
        "TFDS_DATA_DIR": "/data",
    }
    options = ["--name", guest.CONTAINER, "--init", "--stop-timeout", str(STOP_SECONDS)]
    if wanted["gpus"]:
        options += ["--gpus", "all"]
    labels = {
        "cloudtrain.run": wanted["run"],
        "cloudtrain.generation": wanted["generation"],
        "cloudtrain.spec": guest.spec_of(wanted),
    }
    for name, value in labels.items():
        options += ["--label", f"{name}={value}"]
    options += ["--log-driver", "json-file", "--log-opt", "max-size=100m", "--log-opt", "max-file=2"]
    options += ["--volume", f"{guest.MODELS}:{wanted['mount']}", "--volume", f"{guest.ROOT / 'data'}:/data"]
    for name, value in environment.items():
        options += ["--env", f"{name}={value}"]
    for name in wanted.get("secrets") or ():
        options += ["--env", name]  # docker takes the value from its own environment: no process list has it
    return ["run", "--detach", *options, wanted["image"], *wanted["arguments"]]


def secrets_of(wanted: dict[str, Any]) -> dict[str, str]:
    """Raises Failed for one whose value has not reached this VM."""
    found = {}
    for name, value in guest.secrets(wanted).items():
        if value is None:
            raise Failed(f"the secret variable {name} has no value on this VM")
        found[name] = value
    return found


def snapshot() -> None:
    """Keep what progress.json said before this start: the steps lost are told from it."""
    try:
        content = (guest.MODELS / "progress.json").read_bytes()
    except OSError:
        (guest.ROOT / "progress.before.json").unlink(missing_ok=True)
        return
    guest.write(guest.ROOT / "progress.before.json", content)


def start(wanted: dict[str, Any], old: Any, session: "Session") -> str:
    """Start a new container in place of the old one, unless a stop was asked for. Why it failed, or nothing."""
    lock = guest.hold_start_lock()
    try:
        # A stop that comes later finds the lock held, and waits for the container.
        return "" if guest.stopping() else start_container(wanted, old, session, lock)
    finally:
        if lock is not None:
            os.close(lock)


def start_container(wanted: dict[str, Any], old: Any, session: "Session", lock: int | None) -> str:
    state = session.state
    secrets = secrets_of(wanted)
    (guest.ROOT / "finished").unlink(missing_ok=True)
    if old is not None:
        guest.docker("rm", "--force", old.id)
    snapshot()
    begun = state.fields["starts"] + 1
    state.stage("start", wanted["image"], starts=begun)
    ran = guest.docker(*run_command(wanted), timeout=600, environment=secrets, lock=lock)
    if ran.returncode == 0:
        identifier = ran.stdout.strip()[-64:]
        session.attended[identifier] = time.monotonic()
        guest.event("started", container=identifier, start=begun, image=wanted["image"])
        guest.say(f"container started (start {begun})")
        return ""
    reason = ran.stderr.strip()[-300:] or f"docker run ended with {ran.returncode}"
    guest.say(f"docker run ended with {ran.returncode}: {reason}")
    return reason


class Tick:
    """What is looked at while the trainer runs in that container."""

    def __init__(self, state: State, container: str) -> None:
        self.state = state
        self.container = container
        self.fenced_at: float | None = None
        self.stepped = False
        self.checked = time.monotonic()

    def __call__(self) -> None:
        seen = None if self.stepped else guest.passed_start()
        if seen:
            self.stepped = True
            resumed, step = guest.step_of(seen, "resumed_from_step"), guest.step_of(seen)
            lost = guest.steps_lost(seen)
            guest.event(
                "first_step", step=step, resumed_from_step=resumed, steps_lost=lost, last_seen=guest.last_seen()
            )
            self.state.stage("running", f"step {step}")
        if guest.fenced():
            self.end_container()
        if time.monotonic() - self.checked > guest.tuning("check_seconds"):
            self.checked = time.monotonic()
            restore.adopt()
            guest.keep_uploader()
            if not guest.held(guest.ROOT / "watch.lock"):
                guest.say("the eviction watcher was gone")
                guest.detach([sys.executable, "-sSEB", str(guest.ROOT / "eviction_watch.py")])

    def end_container(self) -> None:
        """Another VM trains: this one must not, whatever the trainer thinks of being asked."""
        now = time.monotonic()
        if self.fenced_at is None:
            self.fenced_at = now
            guest.say("a newer VM of this run has taken over: ending the container")
            guest.docker("kill", "--signal", "TERM", self.container, timeout=20)
        elif now - self.fenced_at > STOP_SECONDS:
            self.fenced_at = now
            guest.docker("rm", "--force", self.container)


def attend(running: Any, state: State) -> None:
    """Stay with a running container to its end, copying what it prints."""
    tick = Tick(state, running.id)
    copy = trainer_output.Copy(running.id)
    while True:
        wait_for_end(running.id, tick)
        if down.is_set():
            wait_for_save(running.id)
            break
        now = look(state)
        if now is None or now.id != running.id or not now.runs:
            break
    tick()
    copy.finish()


def wait_for_end(identifier: str, tick: Callable[[], None]) -> None:
    """docker wait: returns when the container ended, or when the client was killed, or the VM goes down."""
    client = subprocess.Popen(
        ["docker", "wait", identifier],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                client.wait(timeout=TICK_SECONDS)
                break
            except subprocess.TimeoutExpired:
                tick()
            if down.is_set():
                break
        if client.returncode:
            down.wait(0.5)
    finally:
        if client.poll() is None and down.is_set():
            client.terminate()
        client.wait()


def wait_for_save(identifier: str) -> None:
    """The VM goes down: the engine asks the trainer to save, and gives it this long."""
    end = time.monotonic() + STOP_SECONDS
    while time.monotonic() < end:
        container = quietly_look()
        if container is None or container.id != identifier or not container.runs:
            return
        time.sleep(0.2)


def quietly_look() -> Any:
    try:
        return guest.container(timeout=5)
    except guest.EngineSilent:
        return None


def remember_end(name: str, ended: Any, note: str = "") -> None:
    seen = guest.progress()
    guest.event(
        name.replace(" ", "_"),
        exit_code=ended.exit_code,
        step=guest.step_of(seen),
        saved_step=guest.step_of(seen, "saved_step"),
        out_of_memory=ended.out_of_memory,
        note=note,
    )
    guest.say(f"{name}: exit code {ended.exit_code}" + (f", {note}" if note else ""))


def conclude(name: str, state: State, **fields: Any) -> None:
    """Leave the file `finished` or `failed`, which outlives this program."""
    content = {"time": time.time(), "session": state.fields["session"], "boot": guest.boot(), **fields}
    if not guest.write_json(guest.ROOT / name, content, sync=True):
        guest.give_up_reserve()
        guest.write_json(guest.ROOT / name, content, sync=True)
    state.stage(name, str(fields.get("reason", "")), sync=True)


def judge(ended: Any, found: bool, state: State) -> str:
    """What the end meant, written where it is looked for."""
    evicted = guest.evicting() or (guest.read_json(guest.ROOT / "evicted.json") or {}).get("container") == ended.id
    asked = evicted or guest.stopping() or guest.fenced()
    if ended.exit_code in (SAVED, *KILLED) and not found and not asked:
        down.wait(guest.tuning("settle_seconds"))
    if guest.going_down():
        down.set()
    name = verdict(
        ended.exit_code,
        fenced=guest.fenced(),
        evicting=evicted,
        going_down=down.is_set(),
        stopping=guest.stopping(),
        found=found,
        oom=ended.out_of_memory,
    )
    remember_end(name, ended)
    state.stage("ended", name, judged=ended.id)
    if name == "cut off":
        guest.journal("was found cut off")
    return name


class Session:
    """One run of this program: what it has done so far, and how many crashes in a row it saw without
    progress."""

    def __init__(self) -> None:
        self.state = State()
        self.attended: dict[str, float] = {}  # containers that it started or saw running, and since when
        self.pulled = ""
        self.restored = False
        self.failures = 0
        self.step: int | None = None  # at the last end

    def progressed(self) -> bool:
        """Whether there are more steps than at the end before this one."""
        step, before = guest.step_of(guest.progress()), self.step
        self.step = step
        return step is not None and before is not None and step > before

    def try_again(self, reason: str) -> None:
        """Pause, longer each time, unless the settings change. Raises Failed after the last attempt."""
        self.failures = 1 if self.progressed() else self.failures + 1
        pauses = guest.tuning("retry_pauses")
        if self.failures > len(pauses):
            raise Failed(f"{reason}, {self.failures} times in a row without progress")
        seconds = float(pauses[self.failures - 1])
        guest.event("retry", attempt=self.failures, pause=seconds, reason=reason)
        guest.say(f"{reason}; trying again in {seconds:g} s (attempt {self.failures} of {len(pauses)})")
        detail = f"{reason}; attempt {self.failures} of {len(pauses)} in {seconds:g} s"
        self.state.stage("pause", detail, failures=self.failures)
        stamp = settings_stamp()
        pause(seconds, until=lambda: guest.stopping() or guest.fenced() or settings_stamp() != stamp)


def settings_stamp() -> int:
    try:
        return int((guest.ROOT / "settings.json").stat().st_mtime_ns)
    except OSError:
        return 0


def already_finished(wanted: dict[str, Any]) -> bool:
    done = guest.read_json(guest.ROOT / "finished")
    return done is not None and done.get("spec") == guest.spec_of(wanted)


def take_care_of(running: Any, wanted: dict[str, Any], session: Session) -> None:
    if running.spec != guest.spec_of(wanted):
        guest.say("the container runs with its former settings; the new ones apply at its next start")
    session.attended.setdefault(running.id, time.monotonic())
    session.state.stage("running", container=running.id, spec=running.spec)
    restore.adopt()
    # The notice, or the stop, came while the container was being started. Whoever saw it may have told the trainer too:
    # a second SIGTERM changes nothing.
    if guest.evicting() or guest.stopping():
        guest.docker("kill", "--signal", "TERM", running.id)
    attend(running, session.state)


def deal_with_end(ended: Any, wanted: dict[str, Any], session: Session) -> bool:
    """Whether there is nothing left to do. Raises Failed."""
    trainer_output.catch_up(ended.id)
    begun = session.attended.get(ended.id)
    name = judge(ended, begun is None, session.state)
    if name == "finished":
        conclude("finished", session.state, spec=ended.spec, step=guest.step_of(guest.progress()))
        return bool(ended.spec == guest.spec_of(wanted))
    if name == "failed" and ended.exit_code in HOPELESS:
        raise Failed(f"the trainer ended with exit code {ended.exit_code}, which another attempt would not change")
    if name == "failed":
        memory = ", out of memory" if ended.out_of_memory else ""
        session.try_again(f"the trainer ended with exit code {ended.exit_code}{memory}")
    elif name == "asked again" and begun is not None and time.monotonic() - begun < 10 and not guest.passed_start():
        session.try_again("the trainer asked at once to be started again")
    return False


def give_way(state: State) -> None:
    if state.fields["stage"] != "fenced":
        guest.say("a newer VM of this run has taken over: nothing more is done here")
        guest.journal("has ended here", "a newer VM of this run has taken over")
    state.stage("fenced", sync=True)


def restore_once(state: State) -> bool:
    """What storage has and the disk has not, before the first start. Raises Failed."""

    def given_up() -> bool:
        return down.is_set() or guest.stopping() or guest.evicting()

    state.stage("restore")
    try:
        return bool(restore.restore(lambda reason: state.stage("restore", reason), given_up))
    except storage.Fenced as fenced:
        guest.write_json(guest.ROOT / "fenced", {"generation": fenced.generation, "time": time.time()}, sync=True)
        guest.event("fenced", generation=fenced.generation)
        return True
    except restore.Impossible as reason:
        raise Failed(
            f"the run's storage cannot be read: {reason}. It may have checkpoints, and none is on this VM's disk: "
            "training does not begin anew"
        ) from None


def turn(wanted: dict[str, Any], session: Session) -> bool:
    """Look at the container and do the one thing that is due. Whether there is nothing left to do. Raises
    Failed."""
    container = look(session.state)
    if container is not None and container.runs:
        take_care_of(container, wanted, session)
        return False
    ended = container is not None and container.status not in ("created", "removing")
    if ended and container.id != session.state.fields["judged"]:
        return deal_with_end(container, wanted, session)
    if guest.fenced():
        give_way(session.state)
        return True
    if guest.stopping():
        session.state.stage("stopped")
        return True
    if guest.evicting():
        session.state.stage("evicting")
        pause(3600, until=lambda: not guest.evicting())
        return False
    if already_finished(wanted):
        session.state.stage("finished")
        return True
    if not session.restored:
        session.restored = restore_once(session.state)
        return False  # a notice may have come meanwhile
    if session.pulled != wanted["image"]:
        pull(wanted["image"], session.state)
        session.pulled = wanted["image"]
        return False  # a notice may have come while it was pulled
    reason = start(wanted, container, session)
    if reason and not down.is_set() and not guest.stopping():
        session.try_again(reason)
    return False


def supervise(session: Session) -> None:
    """Until there is nothing left to do, or the VM goes down. Raises Failed."""
    while not down.is_set():
        if turn(guest.settings(), session):
            return
    last = quietly_look()
    if last is not None and last.id in session.attended and not last.runs:
        deal_with_end(last, guest.settings(), session)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: down.set())
    session = Session()
    state = session.state
    (guest.ROOT / "failed").unlink(missing_ok=True)
    guest.keep_reserve()
    # Not before the new session is written down: it has to wait for the comparing of disk and storage.
    guest.keep_uploader(always=True)
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    guest.event("session", session=state.fields["session"], uptime=uptime)
    guest.say(f"session {state.fields['session']} begins")
    try:
        supervise(session)
    except Failed as failure:
        conclude("failed", state, reason=str(failure))  # first: on a full disk it makes room for the others
        guest.keep_uploader()
        guest.say(f"failed: {failure}")
        guest.event("failed", reason=str(failure))
        guest.journal("has failed", str(failure))
        return 1
    guest.say(f"session {state.fields['session']} ends: {state.fields['stage']}")
    guest.keep_uploader()
    if state.fields["stage"] == "finished" and not (guest.ROOT / "storage.json").exists():
        guest.detach([sys.executable, "-sSEB", str(guest.ROOT / "release.py")])
    return 0


if __name__ == "__main__":
    sys.exit(main())
