"""The embedded Azure as the rest of cloudtrain sees it: one WSGI app over one directory."""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloudtrain.clock import Clock
from cloudtrain.emulator import (
    account_files,
    app,
    catalog,
    faults,
    ids,
    ledger,
    market,
    marketplace,
    operations,
    power,
    principals,
    providers,
    settings,
    storage,
    store,
    timing,
)
from cloudtrain.emulator.blobs.call import DOMAIN
from cloudtrain.emulator.blobs.service import OPERATION_NAMES, BlobService
from cloudtrain.emulator.locks import WorkLocks
from cloudtrain.emulator.machines import MachineError, Machines
from cloudtrain.emulator.operations import Azure
from cloudtrain.emulator.settings import Settings
from cloudtrain.emulator.store import Records, Store
from cloudtrain.emulator.wire import guid


@dataclass(frozen=True)
class VmStatus:
    """cause: why it is off, in the machine's words; "" while it is on."""

    id: str
    name: str
    resource_group: str
    location: str
    size: str
    power_state: str
    cause: str


@dataclass(frozen=True)
class Done:
    """An operation that has ended. Times are epoch seconds; due: when it was to end by the durations that are set,
    ended: when a request found that it had."""

    kind: str
    target: str
    started: float
    due: float
    ended: float


@dataclass(frozen=True)
class Status:
    """strays: vm_ids of machines that no VM of the database stands for. faults: rules that can still strike."""

    directory: str
    kind: str
    subscription_id: str
    spot_cores: int
    resource_groups: list[str]
    vms: list[VmStatus]
    storage_accounts: list[str]
    open_operations: list[str]
    strays: list[str]
    faults: int


class OtherMachines(Exception):
    """VMs of another kind are there; all VMs of one embedded Azure are of one kind."""

    def __init__(self, kind: str, vms: list[str]) -> None:
        super().__init__(f"The VMs of this embedded Azure are machines of kind '{kind}': {', '.join(vms)}.")


@dataclass(frozen=True)
class MachineChoice:
    """kind: 'process' or 'container'. node_base: the image that nodes are built on; empty: one is made."""

    kind: str
    node_base: str


def choose_machine(root: Path, *, kind: str | None = None, node_base: str | None = None) -> MachineChoice:
    """What the VMs below `root` run on: what is said now, else what was said last, else processes.

    Raises OtherMachines, StoreError."""
    with contextlib.closing(Store(root, _first_settings(fresh=False))) as opened, opened.write() as records:
        held = records.setting("machine") or "process"
        if kind is not None and kind != held:
            vms = [vm.name for vm in records.resources(ids.VM)]
            if vms:
                raise OtherMachines(held, vms)
            records.set_setting("machine", kind)
        if node_base is not None:
            records.set_setting("node_base", node_base)
        return MachineChoice(kind or held, records.setting("node_base") or "")


class EmbeddedAzure:
    """Azure's management plane on this machine. Everything it keeps lies under `root`.

    machines: what VMs run on. fresh: whether a store that does not exist yet begins as a brand-new
    subscription (no provider registered, no terms accepted, 3 Spot cores) and not as one in use. Raises
    StoreError."""

    def __init__(self, root: Path, *, clock: Clock, machines: Machines, fresh: bool = False) -> None:
        self.root = root
        self.machines = machines
        self._azure = Azure(
            store=Store(root, _first_settings(fresh)),
            clock=clock,
            machines=machines,
            locks=WorkLocks(root / "work.lock"),
            secrets=root / _SEALING_KEY,
            ledger=root / "machines.list",
            blobs=root / _BLOBS,
            kinds=app.KINDS,
        )
        self._app = app.App(self._azure)
        self.blobs = _blob_service(self._azure.store, root, clock)
        """The blob service alone, as a WSGI app that takes the account from the path, too."""

    @property
    def machine(self) -> str:
        """The kind that its VMs are."""
        return self.machines.kind

    @property
    def subscription_id(self) -> str:
        return self._setting("subscription_id")

    @property
    def tenant_id(self) -> str:
        return self._setting("tenant_id")

    @property
    def token(self) -> str:
        """Every request to Resource Manager carries `Authorization: Bearer` and this."""
        return self._setting("token")

    @property
    def storage_token(self) -> str:
        """The caller's token for blobs. It opens those on which the caller has a role."""
        with self._azure.store.read() as records:
            return principals.token(records, principals.STORAGE, principals.caller(records))

    @property
    def caller_id(self) -> str:
        """The caller's object id, to which a role can be assigned."""
        with self._azure.store.read() as records:
            return principals.caller(records)

    def _setting(self, key: str) -> str:
        with self._azure.store.read() as records:
            return records.setting(key) or ""

    def __call__(self, environ: dict[str, Any], start_response: app.StartResponse) -> Iterable[bytes]:
        """PEP 3333. Raises StoreError when the database cannot be used any more, and gaierror for the host of a storage
        account that there is not."""
        host = str(environ.get("HTTP_HOST") or "").partition(":")[0].lower()
        return (self.blobs if host.endswith(DOMAIN) else self._app)(environ, start_response)

    def set_notice(self, vm_resource_id: str, seconds: float) -> None:
        """How long before its next evictions a VM is told (30 s unless set; at least 0)."""
        with self._azure.store.write() as records:
            records.set_setting(f"notice:{vm_resource_id.lower()}", str(max(0.0, float(seconds))))

    def ssh_address(self, vm_resource_id: str) -> tuple[str, int] | None:
        """Where this machine reaches the VM's SSH server, if the network security group lets it in."""
        with self._azure.store.read() as records:
            vm = records.resource(vm_resource_id)
        return None if vm is None else self._azure.machines.ssh_address(vm.private["vm_id"])

    def status(self) -> dict[str, Any]:
        """What it holds, ready for JSON: the fields of `Status`."""
        operations.advance_all(self._azure)
        power.observe(self._azure, None, None)
        with self._azure.store.read() as records:
            vms = records.resources(ids.VM)
            accounts = [account.name for account in records.resources(ids.STORAGE_ACCOUNT)]
            groups = [group.name for group in records.resources(ids.GROUP)]
            pending = [f"{o.kind} {o.target.rsplit('/', 1)[-1]}" for o in records.open_operations()]
            cores = int(records.setting("spot_cores") or 0)
            striking = [rule for rule in faults.rules(records) if rule.count is None or rule.struck < rule.count]
        known = {vm.private["vm_id"] for vm in vms}
        found = Status(
            str(self.root),
            self._azure.machines.kind,
            self.subscription_id,
            cores,
            groups,
            [_vm_status(self._azure, vm) for vm in vms],
            accounts,
            pending,
            [stray for stray in self._azure.machines.strays() if stray not in known],
            len(striking),
        )
        return asdict(found)

    def reset(self, *, fresh: bool = False) -> None:
        """Remove every VM and begin again, with another subscription and another token."""
        with self._azure.store.write() as records:
            machines = {vm.private["vm_id"]: vm.seq for vm in records.resources(ids.VM)}
            node_base = records.setting("node_base")
            records.clear()
            if node_base:
                records.set_setting("node_base", node_base)
            for key, value in _first_settings(fresh).items():
                records.set_setting(key, value)
        for vm_id in machines.keys() | ledger.noted(self._azure.ledger) | set(self._azure.machines.strays()):
            self._erase(vm_id, machines.get(vm_id))
        ledger.clear(self._azure.ledger)
        self.blobs.close()
        account_files.erase_directory(self._azure.blobs)
        self.sweep()

    def sweep(self) -> list[str]:
        """Without any VM left, nothing that served them is needed. Returns what is left all the same."""
        with self._azure.store.read() as records:
            return [] if records.resources(ids.VM) else self._azure.machines.sweep()

    def _erase(self, vm_id: str, number: int | None) -> None:
        """number: the VM's lock; whoever is booting it is let finish first, so that it does not come back."""
        deadline = time.monotonic() + timing.CLOSING_SECONDS
        while number is not None and time.monotonic() < deadline:
            with self._azure.locks.attempt(number) as mine:
                if mine:
                    break
            time.sleep(0.02)
        self._azure.machines.erase(vm_id)

    def done(self) -> list[Done]:
        """The long-running operations that have ended, in the order in which they began."""
        with self._azure.store.read() as records:
            ended = [operation for operation in records.operations() if operation.ended is not None]
        return [Done(each.kind, each.target, each.started, each.ready, each.ended or 0.0) for each in ended]

    def settings(self) -> Settings:
        with self._azure.store.read() as records:
            return settings.current(records, self._azure.now())

    def set(self, change: Callable[[Records, float], None]) -> Settings:
        """Change what is set, all or nothing. change: is handed the records and the time. Spot VMs that would pay less
        than the price is now are evicted. Raises NotUnderstood."""
        with self._azure.store.write() as records:
            change(records, self._azure.now())
            outbid = [(vm.private["vm_id"], power.notice(records, vm)) for vm in market.outbid(records)]
        for vm_id, notice in outbid:
            with contextlib.suppress(MachineError):  # it is off
                self._azure.machines.evict(vm_id, notice)
        return self.settings()

    def add_fault(self, kind: str, **terms: Any) -> faults.Rule:
        """terms: those of `faults.add`. Raises NotUnderstood."""
        with self._azure.store.write() as records:
            return faults.add(records, _OPERATIONS, kind, **terms)

    def fault_rules(self) -> list[faults.Rule]:
        with self._azure.store.read() as records:
            return faults.rules(records)

    def clear_faults(self, numbers: Sequence[int] = ()) -> list[faults.Rule]:
        """Remove these, or all; returns what was removed. Raises NotUnderstood."""
        with self._azure.store.write() as records:
            return faults.clear(records, numbers)

    def close(self) -> None:
        """Let work in hand end (at most 15 s; what is left, a later request takes over), and close the
        database."""
        self._join_workers()
        self.blobs.close()
        self._azure.store.close()

    def _join_workers(self) -> None:
        deadline = time.monotonic() + timing.CLOSING_SECONDS
        for worker in list(self._azure.workers.values()):
            worker.join(max(0.0, deadline - time.monotonic()))


_BLOBS, _SEALING_KEY = "blobs", "sealing.key"
_OPERATIONS = [route.operation for route in app.ROUTES] + [f"Blobs_{name}" for name in OPERATION_NAMES]


def _blob_service(store: Store, root: Path, clock: Clock) -> BlobService:
    accounts = storage.Accounts(store, clock, root / _SEALING_KEY)
    return BlobService(root / _BLOBS, clock, accounts.account, faults.BlobFaults(store, clock).around)


def _vm_status(azure: Azure, vm: store.Resource) -> VmStatus:
    parsed = ids.parse(vm.id)
    state = power.shown_phase(azure, vm)
    off = state in (power.DEALLOCATED, power.DEALLOCATING, power.STOPPED)
    return VmStatus(
        vm.id,
        vm.name,
        parsed.group if parsed else "",
        vm.location,
        vm.body["properties"]["hardwareProfile"]["vmSize"],
        state,
        str(vm.private.get("off_cause") or "asked for") if off else "",
    )


def _first_settings(fresh: bool) -> dict[str, str]:
    return {
        "subscription_id": guid(),
        "tenant_id": guid(),
        "token": secrets.token_urlsafe(32),
        "spot_cores": str(catalog.FRESH_SPOT_CORES if fresh else catalog.DEFAULT_SPOT_CORES),
        **providers.first_settings(fresh),
        **marketplace.first_settings(fresh),
    }
