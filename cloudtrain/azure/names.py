"""What things are called on Azure. The resources of generation N are `<run>-gN...`, so that two generations can stand
side by side while a run moves."""

import hashlib
import re

GROUP_PREFIX = "cloudtrain-"
SUBNET = "default"
NETWORK_WATCHER_GROUP = "NetworkWatcherRG"


def group(run: str) -> str:
    return GROUP_PREFIX + run


def vm(run: str, generation: int) -> str:
    return f"{run}-g{generation}"


def nic(run: str, generation: int) -> str:
    return f"{vm(run, generation)}-nic"


def public_ip(run: str, generation: int) -> str:
    return f"{vm(run, generation)}-ip"


def disk(run: str, generation: int) -> str:
    return f"{vm(run, generation)}-disk"


def vnet(run: str, elsewhere: str = "") -> str:
    """elsewhere: the location, where it is not the run's own: a network does not reach into another."""
    return f"{run}-{elsewhere}-vnet" if elsewhere else f"{run}-vnet"


def nsg(run: str, elsewhere: str = "") -> str:
    return f"{run}-{elsewhere}-nsg" if elsewhere else f"{run}-nsg"


def is_network_elsewhere(name: str, run: str) -> bool:
    return re.fullmatch(rf"{re.escape(run)}-[a-z0-9]+-(vnet|nsg)", name, re.IGNORECASE) is not None


def storage_account(run: str, group_id: str, attempt: int) -> str:
    """24 small letters and digits at most, no others, and unique in all of Azure. attempt: 0, until one is free."""
    digest = hashlib.sha256(f"{group_id.lower()}|{attempt}".encode()).hexdigest()
    return f"ct{''.join(c for c in run if c.isalnum())[:10]}{digest}"[:24]
