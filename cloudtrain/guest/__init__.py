"""What is installed on the VM, and the reading of it.

`vm/` holds the files that are installed, the same bytes everywhere, and the programs that RunCommand
carries along. `scripts` makes the RunCommand scripts; `observation` and `outcome` read what they print.
"""

from cloudtrain.guest.observation import Observation, StorageState, parse_observation, parse_stored_observation
from cloudtrain.guest.outcome import (
    IncompleteOutput,
    StartOutcome,
    StopOutcome,
    exit_code,
    parse_start,
    parse_stop,
)
from cloudtrain.guest.scripts import (
    PULL_LOGIN,
    SECRETS,
    STORAGE,
    await_script,
    install_script,
    observe_script,
    renew_script,
    save_and_stop_script,
)
from cloudtrain.guest.settings import GuestSettings

__all__ = [
    "PULL_LOGIN",
    "SECRETS",
    "STORAGE",
    "GuestSettings",
    "IncompleteOutput",
    "Observation",
    "StartOutcome",
    "StopOutcome",
    "StorageState",
    "await_script",
    "exit_code",
    "install_script",
    "observe_script",
    "parse_observation",
    "parse_start",
    "parse_stop",
    "parse_stored_observation",
    "renew_script",
    "save_and_stop_script",
]
