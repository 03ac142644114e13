"""Let a VM go that has nothing more to do, by its own identity: deallocate or delete it, as `when_done` says.

https://learn.microsoft.com/rest/api/compute/virtual-machines/deallocate
"""

import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import guest  # type: ignore[import-not-found]
import storage  # type: ignore[import-not-found]

ARM = "https://management.azure.com"
VERSION = "2026-04-01"
RELEASED = guest.ROOT / "released.json"


def main() -> int:
    """As a program: of a VM that has no storage. What is on its disk stays there, so it is not deleted."""
    guest.redirect(guest.ROOT / "upload.log")
    release(stored=False)
    return 0


def release(*, stored: bool) -> None:
    """Once for each time that training finished. stored: storage has everything; else the VM is not deleted."""
    settings = guest.read_json(guest.ROOT / "settings.json") or {}
    action, vm = str(settings.get("when_done") or "keep"), str(settings.get("vm_id") or "")
    done = guest.read_json(guest.ROOT / "finished")
    if done is None or not vm or action not in ("deallocate", "delete") or not may_go(done):
        return
    if action == "delete" and not stored:
        not_released(action, "not everything is in storage")
        return
    guest.event("releasing", action=action)
    token = storage.Token(ARM)
    pauses = [*guest.tuning("release_pauses"), None]
    for pause in pauses:
        reason = ask(action, vm, token)
        if not reason:
            guest.write_json(RELEASED, {"time": done.get("time")}, sync=True)
            guest.event("released", action=action)
            guest.say(f"{action}: Azure does it")
            return
        guest.say(f"{action} failed: {reason}")
        if pause is None:
            not_released(action, reason)
            return
        # A new role takes up to ten minutes to spread.
        if not wait(pause, done):
            return


def not_released(action: str, reason: str) -> None:
    guest.event("not_released", action=action, reason=reason)
    guest.say(f"the VM goes on running: {reason}")


def may_go(done: dict[str, Any]) -> bool:
    """Not where it was released before, somebody stopped it, or it trains again; nor at a later boot, which is of
    somebody who wants to look at its disk."""
    before = (guest.read_json(RELEASED) or {}).get("time")
    now = (guest.read_json(guest.ROOT / "finished") or {}).get("time")
    later = done.get("boot") != guest.boot()
    again = before == done.get("time") or now != done.get("time")
    return not (later or again or guest.stopping() or guest.evicting())


def wait(seconds: float, done: dict[str, Any]) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not may_go(done):
            return False
        time.sleep(min(0.5, max(0.0, end - time.monotonic())))
    return may_go(done)


def ask(action: str, vm: str, token: Any) -> str:
    """Why it failed, or nothing."""
    base = os.environ.get("CLOUDTRAIN_ARM", ARM).rstrip("/")
    path = "/deallocate" if action == "deallocate" else ""
    url = f"{base}{vm}{path}?api-version={VERSION}"
    method = "POST" if action == "deallocate" else "DELETE"
    try:
        headers = {"Authorization": f"Bearer {token.get()}", "Content-Length": "0"}
        request = urllib.request.Request(url, headers=headers, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30):
            return ""
    except urllib.error.HTTPError as error:
        if error.code == 404 and action == "delete":
            return ""
        if error.code == 401:
            token.until = 0.0
        code = re.search(rb'"code"\s*:\s*"([A-Za-z0-9]{1,80})"', error.read(64 * 1024))
        return f"Azure said {error.code}" + (f" {code[1].decode()}" if code else "")
    except storage.StorageError as error:
        return str(error)
    except (OSError, http.client.HTTPException) as error:
        return f"no answer: {type(error).__name__}"


if __name__ == "__main__":
    sys.exit(main())
