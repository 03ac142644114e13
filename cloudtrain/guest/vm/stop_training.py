"""Ask the trainer to save and end, and wait for it. argv[1]: base64 of JSON {"wait_seconds": ...}.

Where the VM has storage, then waits for a while until everything is there. Leaves the file `stopping`, so that the
trainer is not started again before the startup script is called the next time. Ends with 0 when no container runs any
more, 1 when one still does or the engine does not answer.
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


def stop(seconds: float) -> int:
    if guest.read_json(guest.ROOT / "settings.json") is None:
        tell("stopped", None)  # nothing was installed that could run
        return 0
    try:
        (guest.ROOT / "stopping").touch()
    except OSError as error:  # a full disk: it may start again, but the checkpoint counts
        print(f"cannot write {guest.ROOT}/stopping: {error}", flush=True)
    end = time.monotonic() + seconds
    asked, was = "", "stopped"
    while True:
        try:
            found = guest.container(timeout=10)
        except guest.EngineSilent as error:
            print(f"the Docker engine does not answer: {error}", flush=True)
            if time.monotonic() >= end:
                tell("unknown", None)
                return 1
            time.sleep(0.5)
            continue
        if found is None or not found.runs:
            tell(was, found.exit_code if found is not None else None, delivered())
            return 0
        was = "running"
        if found.id != asked:
            asked = found.id
            guest.event("stop_asked", container=found.id)
            guest.docker("kill", "--signal", "TERM", found.id)
            print("asked the trainer to save", flush=True)
        if time.monotonic() >= end:
            print(f"the trainer still runs after {seconds:.0f} s", flush=True)
            tell("running", None)
            return 1
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(stop(float(json.loads(base64.b64decode(sys.argv[1]))["wait_seconds"])))
