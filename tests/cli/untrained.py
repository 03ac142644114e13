"""The command line on machines that are only states, where every start of training is 'seen' at once: `up` without a
trainer. Run as a program it also plays Azure: the embedded one, in a session that says that it bills."""

import re
import sys
import time
from pathlib import Path
from typing import Any

from cloudtrain.clock import Clock
from cloudtrain.emulator.machines import Script
from tests.emulator.memory_machines import MemoryMachines


class UntrainedMachines(MemoryMachines):
    def __init__(self, root: Path, *, clock: Clock, **_: Any) -> None:
        super().__init__(root, clock)

    def start_script(self, vm_id: str, script: Script) -> str:
        key = super().start_script(vm_id, script)
        nonce = re.search(r"cloudtrain-done ([\w-]+) rc=", script.text)
        assert nonce is not None, script.text
        seen = f"cloudtrain-seen seen=progress time={time.time()} step=1 total_steps=4"
        self.finish(vm_id, key, "Succeeded", f"{seen}\ncloudtrain-done {nonce[1]} rc=0\n")
        return key


def patches() -> dict[str, object]:
    return {
        "cloudtrain.emulator.machines.process.ProcessMachines": UntrainedMachines,
        "cloudtrain.azure.session.trainer_missing": lambda: None,
    }


def billing(home: Path) -> Any:
    """What `cloudtrain.azure.session._azure` is, on the embedded Azure."""

    def session(clock: Clock, subscription: str | None) -> Any:
        from dataclasses import replace

        from cloudtrain.azure.session import _embedded

        opened = _embedded(home, clock)
        opened.cloud, opened.name = "azure", "Azure"
        opened.capabilities = replace(opened.capabilities, bills=True)
        return opened

    return session


if __name__ == "__main__":
    from unittest.mock import patch

    from cloudtrain.cli import main
    from cloudtrain.paths import home

    for target, value in (patches() | {"cloudtrain.azure.session._azure": billing(home())}).items():
        patch(target, value).start()
    sys.argv[0] = "cloudtrain"
    main()
