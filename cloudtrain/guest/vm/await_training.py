"""Wait until training is under way, telling each stage when it changes. argv[1]: base64 of JSON, see
`Wanted`.

Ends with 0 when it has seen training, or its end; 5 when training failed; 1 when the startup script does
not run; 124 when time was up. The last line but the marker is for programs: `cloudtrain-seen seen=progress
step=...`.
"""

import base64
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import guest  # type: ignore[import-not-found]

SILENT_SECONDS = 20.0  # nobody keeps the trainer running: cron or the engine may be slow, but not that slow


@dataclass(frozen=True)
class Wanted:
    """after: a session of the startup script that does not count any more. Times in seconds."""

    after: int | None
    timeout: float
    container_seconds: float
    liveness_seconds: float
    silent_seconds: float = SILENT_SECONDS


def tell(text: str) -> None:
    print(text, flush=True)


def seen(what: str, found: dict[str, Any] | None, state: dict[str, Any]) -> int:
    """The line for programs."""
    words = {"seen": what, "time": time.time(), "start": state.get("starts"), "session": state.get("session")}
    if what in ("progress", "container"):
        current = state.get("spec") == guest.spec_of(guest.settings())
        words["settings"] = "current" if current else "former"
    for key in ("step", "total_steps", "epoch", "epochs", "resumed_from_step"):
        words[key] = guest.step_of(found, key)
    if found is not None and what == "progress":
        words["steps_lost"] = guest.steps_lost(found)
    tell(" ".join(["cloudtrain-seen", *(f"{key}={value}" for key, value in words.items() if value is not None)]))
    return 0


def tail(name: str, lines: int) -> None:
    """The last lines of a file, as far as the agent shows them."""
    try:
        content = (guest.ROOT / name).read_bytes()[-2500:]
    except OSError:
        return
    kept = content.decode(errors="replace").splitlines()[-lines:]
    if kept:
        tell(f"the last lines of {name}:")
        for line in kept:
            tell(f"  {line}")


STAGES = {
    "starting": "starting",
    "restore": "fetching what the run's storage has",
    "fenced": "a newer VM of this run has taken over",
    "engine": "waiting for the Docker engine",
    "pull": "pulling the trainer image",
    "start": "starting the container",
    "running": "the container runs; waiting for the first step",
    "ended": "the container ended",
    "pause": "the trainer crashed",
    "evicting": "an eviction is announced; waiting for what comes of it",
    "stopped": "training was stopped",
}


def told_by(state: dict[str, Any]) -> tuple[str, str]:
    stage, detail = str(state.get("stage")), str(state.get("detail", ""))
    return STAGES.get(stage, stage), detail


class Teller:
    """Prints a stage when it changes, and a sign of life when nothing does."""

    def __init__(self, liveness: float) -> None:
        self.liveness = liveness
        self.last: tuple[str, str] = ("", "")
        self.began = self.spoke = time.monotonic()

    def __call__(self, stage: str, detail: str) -> None:
        now = time.monotonic()
        if stage != self.last[0]:
            self.began = now
        elif now - self.spoke < self.liveness and (detail == self.last[1] or "pulling" in stage):
            return
        waited = f" ({now - self.began:.0f} s)" if stage == self.last[0] else ""
        tell(f"{stage}{waited}" + (f": {detail}" if detail else ""))
        self.last, self.spoke = (stage, detail), now


def newer(told: dict[str, Any] | None, wanted: Wanted) -> bool:
    session = (told or {}).get("session")
    return wanted.after is None or (isinstance(session, int) and session > wanted.after)


def over(wanted: Wanted, state: dict[str, Any], live: bool) -> int | None:
    """The exit code when training has ended, well or badly."""
    done = guest.read_json(guest.ROOT / "finished")
    if done is not None and not live and done.get("spec") == guest.spec_of(guest.settings()):
        tell("training has finished")
        return seen("finished", guest.progress(), state)
    broken = guest.read_json(guest.ROOT / "failed")
    if broken is not None and newer(broken, wanted) and not live:
        tell(f"training failed: {broken.get('reason')}")
        tail("container.log", 20)
        tell("cloudtrain-seen seen=failed")
        return 5
    return None


class Waiting:
    """The conditions under which training is under way."""

    def __init__(self, wanted: Wanted, writes_progress: bool | None) -> None:
        self.wanted = wanted
        self.writes_progress = writes_progress
        self.container = ""
        self.since = self.live = time.monotonic()

    def under_way(self, state: dict[str, Any]) -> int | None:
        """The exit code once it is. A container counts from when it was first seen here."""
        if state.get("stage") != "running":
            self.container = ""
            return None
        if state.get("container") != self.container:
            self.container, self.since = str(state.get("container")), time.monotonic()
        found = guest.passed_start()
        if found and self.writes_progress is not False:
            tell(f"step {found['step']}" + self.of(found))
            return seen("progress", found, state)
        shown = guest.progress() is not None and self.writes_progress is None
        patient = self.writes_progress or (shown and not self.same_as_before())
        if not patient and time.monotonic() - self.since >= self.wanted.container_seconds:
            tell(f"the container has run for {self.wanted.container_seconds:.0f} s")
            return seen("container", None, state)
        return None

    @staticmethod
    def of(found: dict[str, Any]) -> str:
        total, resumed = guest.step_of(found, "total_steps"), guest.step_of(found, "resumed_from_step")
        return (f" of {total}" if total else "") + (f", resumed from step {resumed}" if resumed else "")

    @staticmethod
    def same_as_before() -> bool:
        """progress.json is what an earlier container left."""
        return bool(guest.read_json(guest.ROOT / "progress.before.json") == guest.progress())


def wait(wanted: Wanted) -> int:
    if guest.read_json(guest.ROOT / "settings.json") is None:
        tell("the guest is not installed on this VM")
        return 1
    end = time.monotonic() + wanted.timeout
    writes = guest.settings().get("writes_progress")
    teller, waiting = Teller(wanted.liveness_seconds), Waiting(wanted, writes)
    while time.monotonic() < end:
        state = guest.read_json(guest.ROOT / "state.json") or {}
        live = guest.alive(state.get("writer"))
        code = over(wanted, state, live)
        if code is not None:
            return code
        if live and newer(state, wanted):
            waiting.live = time.monotonic()
            teller(*told_by(state))
            code = waiting.under_way(state)
            if code is not None:
                return code
        elif time.monotonic() - waiting.live > wanted.silent_seconds:
            tell("the startup script does not run")
            tail("startup.log", 10)
            return 1
        else:
            teller("waiting for the startup script", "")
        time.sleep(0.2)
    tell(f"nothing more happened within {wanted.timeout:.0f} s")
    tail("startup.log", 10)
    return 124


if __name__ == "__main__":
    sys.exit(wait(Wanted(**json.loads(base64.b64decode(sys.argv[1])))))
