"""Machines that keep nothing but states, in a file: for tests of the HTTP service, also across processes.

Scripts 'run' as the test says: a script's first line `#test: OUTCOME [stdout]` ends it at once; without it the script
runs until `finish` is called.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloudtrain.clock import Clock
from cloudtrain.emulator.machines import (
    MachineError,
    MachineSpec,
    OffCause,
    Power,
    Script,
    ScriptResult,
    ScriptState,
)


class MemoryMachines:
    kind = "memory"

    def __init__(self, root: Path, clock: Clock) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root, self._clock = root, clock
        self._file = root / "machines.json"
        self.ready = True
        self.refuse_boot = ""

    @contextmanager
    def _state(self) -> Iterator[dict[str, Any]]:
        with (self._root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = json.loads(self._file.read_text()) if self._file.exists() else {"vms": {}, "log": []}
            yield state
            new = self._file.with_suffix(".new")
            new.write_text(json.dumps(state))
            new.replace(self._file)

    def log(self) -> list[list[str]]:
        """Everything that was really done, in order: [what, vm_id]."""
        with self._state() as state:
            return list(state["log"])

    def _on(self, state: dict[str, Any], vm_id: str) -> dict[str, Any]:
        vm = state["vms"].get(vm_id)
        if vm is None or not vm["on"]:
            raise MachineError("The VM is off.")
        return vm

    def boot(self, spec: MachineSpec, *, same_host: bool = False) -> None:
        if self.refuse_boot:
            raise MachineError(self.refuse_boot)
        with self._state() as state:
            vm = state["vms"].setdefault(spec.vm_id, {"on": False, "boot": 0, "scripts": {}, "spec": {}})
            if not vm["on"]:
                vm.update(on=True, boot=vm["boot"] + 1, cause=None, temporary_disk="kept" if same_host else "new")
                vm["spec"] = {
                    "name": spec.name,
                    "user_data": spec.user_data,
                    "size": spec.size,
                    "ssh_open": spec.ssh_open,
                }
                state["log"].append(["boot", spec.vm_id])

    def temporary_disk(self, vm_id: str) -> str:
        """What the last boot found at /mnt: 'kept' or 'new'."""
        with self._state() as state:
            return str(state["vms"][vm_id]["temporary_disk"])

    def spec(self, vm_id: str) -> dict[str, Any]:
        with self._state() as state:
            return dict(state["vms"][vm_id]["spec"])

    def power(self, vm_id: str) -> Power:
        with self._state() as state:
            vm = state["vms"].get(vm_id)
            if vm is None:
                return Power(False, OffCause.NEVER_STARTED)
            if vm["on"]:
                return Power(True, boot=vm["boot"])
            return Power(False, OffCause(vm["cause"]), datetime.fromtimestamp(vm["since"], UTC), vm["boot"])

    def agent_ready(self, vm_id: str) -> bool:
        return self.ready and self.power(vm_id).on

    def cut(self, vm_id: str, cause: OffCause) -> None:
        """The power goes, as if by itself."""
        with self._state() as state:
            vm = state["vms"].get(vm_id)
            if vm is not None and vm["on"]:
                vm.update(on=False, cause=cause.value, since=self._clock.now().timestamp())
                for script in vm["scripts"].values():
                    if script["state"] == "Running":
                        script["state"] = "Interrupted"
                state["log"].append([f"off: {cause.value}", vm_id])

    def power_off(self, vm_id: str) -> None:
        self.cut(vm_id, OffCause.POWERED_OFF)

    def shut_down(self, vm_id: str, grace_seconds: float = 10.0) -> None:
        self.cut(vm_id, OffCause.POWERED_OFF)

    def reboot(self, vm_id: str) -> None:
        with self._state() as state:
            vm = self._on(state, vm_id)
            vm["boot"] += 1
            for script in vm["scripts"].values():
                if script["state"] == "Running":
                    script["state"] = "Interrupted"
            state["log"].append(["reboot", vm_id])

    def evict(self, vm_id: str, notice_seconds: float) -> None:
        with self._state() as state:
            self._on(state, vm_id)["notice"] = notice_seconds
        if notice_seconds <= 0:
            self.cut(vm_id, OffCause.EVICTED)

    def notice(self, vm_id: str) -> float | None:
        with self._state() as state:
            return state["vms"][vm_id].get("notice")

    def erase(self, vm_id: str) -> None:
        with self._state() as state:
            if state["vms"].pop(vm_id, None) is not None:
                state["log"].append(["erase", vm_id])

    def start_script(self, vm_id: str, script: Script) -> str:
        with self._state() as state:
            vm = self._on(state, vm_id)
            if script.token in vm.setdefault("tokens", {}):
                return str(vm["tokens"][script.token])
            key = f"{script.name}/{len(vm['scripts']) + 1}"
            ended, _, output = script.text.partition("\n")[0].removeprefix("#test: ").partition(" ")
            known = ended in {s.value for s in ScriptState}
            vm["scripts"][key] = {
                "state": ended if known else "Running",
                "stdout": output if known else "",
                "exit_code": {"Succeeded": 0, "Failed": 3}.get(ended),
                "text": script.text,
                "arguments": list(script.arguments),
                "environment": dict(script.environment),
                "flavour": script.flavour,
            }
            state["log"].append([f"script {script.name}", vm_id])
            if script.token:
                vm["tokens"][script.token] = key
            return key

    def scripts(self, vm_id: str) -> dict[str, Any]:
        with self._state() as state:
            return dict(state["vms"][vm_id]["scripts"])

    def finish(self, vm_id: str, key: str, state_name: str, stdout: str = "") -> None:
        with self._state() as state:
            state["vms"][vm_id]["scripts"][key].update(
                state=state_name, stdout=stdout, exit_code={"Succeeded": 0, "Failed": 3}.get(state_name)
            )

    def script(self, vm_id: str, key: str) -> ScriptResult:
        with self._state() as state:
            script = state["vms"].get(vm_id, {"scripts": {}})["scripts"][key]
        now, running = self._clock.now(), script["state"] in ("Running", "Pending")
        return ScriptResult(
            ScriptState(script["state"]),
            script["exit_code"],
            script["stdout"].encode(),
            b"",
            now,
            None if running else now,
        )

    def cancel_script(self, vm_id: str, key: str) -> None:
        with self._state() as state:
            script = state["vms"][vm_id]["scripts"][key]
            if script["state"] == "Running":
                script["state"] = "Canceled"

    def open_ssh(self, vm_id: str, allowed: bool) -> None:
        with self._state() as state:
            state["log"].append([f"open_ssh {allowed}", vm_id])

    def ssh_address(self, vm_id: str) -> tuple[str, int] | None:
        return None

    def disk(self, vm_id: str) -> Path:
        return self._root / vm_id

    def sweep(self) -> list[str]:
        return []

    def strays(self) -> list[str]:
        with self._state() as state:
            return list(state["vms"])
