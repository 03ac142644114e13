"""What the guest's scripts print on a machine that runs nothing: the same words as `vm/`, told from a model."""

import base64
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

from cloudtrain.guest.outcome import MARKER

_NONCE = re.compile(rf"{MARKER} ([A-Za-z0-9-]+) rc=")
_PROGRAMS = {"await_training.py": "install", "stop_training.py": "stop", "observe.py": "read"}
# A RunCommand shows 4096 bytes, and the guest's own program leaves out what does not fit.
_EVENTS_AT_ONCE = 24


class Told(Protocol):
    """What the model knows; times in epoch seconds."""

    time: float
    under_way: bool
    finished: bool
    session: int
    resumes: int
    step: int
    saved: int
    resumed_from: int
    before_step: int | None
    before_time: float | None
    digest: str
    failure: str
    pending: int | None
    sent: float | None
    events: list[dict[str, Any]]

    @property
    def total(self) -> int: ...


class SimulatedGuest:
    def generation(self, tags: Mapping[str, str]) -> int:
        """As the VM's tags tell it."""
        told = tags.get("cloudtrain-generation", "")
        return int(told) if told.isdigit() else 1

    def wants(self, script: str) -> str:
        """'install', 'stop', 'read', or 'renew' for a script without a program."""
        # The program's name stands right before its one argument, at the end of the script.
        end = script.rstrip().rpartition(" ")[0][-60:]
        return next((wants for name, wants in _PROGRAMS.items() if name in end), "renew")

    def prints(self, script: str, told: Told) -> str:
        """'' while the script would go on."""
        wants = self.wants(script)
        if wants == "install":
            if not (told.under_way or told.finished):
                return ""
            seen = "finished" if told.finished else "progress"
            line = f"cloudtrain-seen seen={seen} time={told.time} step={told.step} total_steps={told.total}"
        elif wants == "renew":
            line = ""
        elif wants == "stop":
            line = f"cloudtrain-stopped was=stopped step={told.step} saved_step={told.saved}"
        else:
            line = self._observed(script, told)
        nonce = _NONCE.search(script)
        return f"{line}\n{MARKER} {nonce[1] if nonce else ''} rc=0\n"

    def _observed(self, script: str, told: Told) -> str:
        wanted = json.loads(base64.b64decode(script.split()[-1]))
        # A position in the list stands for one in bytes.
        first = max(0, wanted["events"]) if wanted["events"] >= 0 else max(0, len(told.events) - _EVENTS_AT_ONCE)
        events = told.events[first : first + _EVENTS_AT_ONCE]
        before = None if told.before_step is None else {"step": told.before_step, "time": told.before_time}
        fields = {
            "version": 1,
            "installed": True,
            "time": told.time,
            "progress": {
                "step": told.step,
                "total_steps": told.total,
                "resumed_from_step": told.resumed_from or None,
                "resumes": told.resumes,
                "saved_step": told.saved,
                "finished": told.finished,
                "digest": told.digest if told.finished else None,
                "time": told.time,
            },
            "before": before,
            "of_this_start": told.under_way or told.finished,
            "container": {"status": "running" if told.under_way else "exited", "exit_code": 0},
            "state": {"stage": "running" if told.under_way else "ended", "session": told.session},
            "finished": {"session": told.session} if told.finished else None,
            "failed": {"reason": told.failure} if told.failure else None,
            "storage": None if told.pending is None else {"pending": told.pending, "at": told.sent},
            "events": events,
            "events_offset": first + len(events),
        }
        return base64.b64encode(zlib.compress(json.dumps(fields).encode() + b"\n", 9)).decode()
