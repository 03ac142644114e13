"""Ask the trainer to save and end, and wait for it. argv[1]: base64 of JSON {"wait_seconds": ...}.

Where the VM has storage, then waits for a while until everything is there. Leaves the file `stopping`, so that the
trainer is not started again before the startup script is called the next time. Ends with 0 when no container runs any
more and none is being started, 1 when one still does or is, or the engine does not answer.
"""

import base64
import json
import sys
import time
from typing import Any

import guest  # type: ignore[import-not-found]


def tell(was: str, code: int | None, delivered: str | None = None) -> None:
    seen = guest.progress()
    words: dict[str, Any] = {"was": was, "exit_code": code, "delivered": delivered}
    words["step"], words["saved_step"] = guest.step_of(seen), guest.step_of(seen, "saved_step")
    print(" ".join(["cloudtrain-stopped", *(f"{k}={v}" for k, v in words.items() if v is not None)]), flush=True)


def delivered() -> str | None:
    """Whether everything is in storage: yes or no, None without storage."""
    token = guest.ask_flush(ended=True)
    if not token:
        return None
    told = guest.await_flush(token, time.monotonic() + guest.tuning("flush_seconds"))
    return "yes" if guest.tell_flush(token, told) else "no"


class Stopping:
    """One look after the other, until no container runs and none is about to. was: what the first looks found."""

    def __init__(self) -> None:
        self.was = "stopped"
        self.found: Any = None
        self.noted = self.asked = ""  # the container
        self.holds = ("", "")  # what is waited for: the word for it, and a sentence

    def over(self) -> bool:
        # The lock first: a start that is over by then has left a container for the look. Once one was seen running no
        # other can come, and a docker client that hangs is nothing to wait for.
        starts = self.was == "stopped" and guest.starts_container()
        try:
            self.found = guest.container(timeout=10)
        except guest.EngineSilent as error:
            return self.waits("unknown", f"the Docker engine does not answer: {error}")
        if self.found is not None and self.found.runs:
            self.was = "running"
            self.ask(self.found.id)
            return self.waits("running", "the trainer still runs")
        if starts:
            return self.waits("unknown", "a container is still being started")
        if self.found is not None and self.found.status == "created":
            # A start that was cut off, or failed. What is gone, the engine cannot start late; unforced, because it may
            # have done so by now.
            guest.docker("rm", self.found.id)
            return self.waits("unknown", "a container that never ran cannot be removed")
        return True

    def waits(self, was: str, why: str) -> bool:
        self.holds = was, why
        return False

    def ask(self, container: str) -> None:
        """Once, but again where it did not reach the container."""
        if container == self.asked:
            return
        if container != self.noted:
            self.noted = container
            guest.event("stop_asked", container=container)
        if guest.docker("kill", "--signal", "TERM", container).returncode == 0:
            self.asked = container
            print("asked the trainer to save", flush=True)


def stop(seconds: float) -> int:
    if guest.read_json(guest.ROOT / "settings.json") is None:
        tell("stopped", None)  # nothing was installed that could run
        return 0
    try:
        (guest.ROOT / "stopping").touch()
    except OSError as error:  # a full disk: it may start again, but the checkpoint counts
        print(f"cannot write {guest.ROOT}/stopping: {error}", flush=True)
    end = time.monotonic() + seconds
    stopping = Stopping()
    while not stopping.over():
        if time.monotonic() >= end:
            print(f"after {seconds:.0f} s: {stopping.holds[1]}", flush=True)
            tell(stopping.holds[0], None)
            return 1
        time.sleep(0.2)
    tell(stopping.was, stopping.found.exit_code if stopping.found is not None else None, delivered())
    return 0


if __name__ == "__main__":
    sys.exit(stop(float(json.loads(base64.b64decode(sys.argv[1]))["wait_seconds"])))
