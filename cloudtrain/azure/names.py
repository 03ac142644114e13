"""What things are called on Azure. The resources of generation N are `<run>-gN...`, so that two generations can stand
side by side while a run moves."""

import hashlib

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


def vnet(run: str) -> str:
    return f"{run}-vnet"


def nsg(run: str) -> str:
    return f"{run}-nsg"


def storage_account(run: str, group_id: str, attempt: int) -> str:
    """24 small letters and digits at most, no others, and unique in all of Azure. attempt: 0, until one is free."""
    digest = hashlib.sha256(f"{group_id.lower()}|{attempt}".encode()).hexdigest()
    return f"ct{''.join(c for c in run if c.isalnum())[:10]}{digest}"[:24]
