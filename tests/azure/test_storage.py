"""The run's storage account on the embedded Azure: made, reached, closed, taken down with the run's group."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import ContainerClient

from cloudtrain.azure import group as groups
from cloudtrain.azure import leftovers, storage
from cloudtrain.azure.group import Group
from cloudtrain.azure.session import Session, open_session
from cloudtrain.azure.storage import AccessKind, VmAccess
from cloudtrain.clock import SystemClock
from cloudtrain.errors import Refused
from cloudtrain.spec import RunSpec

CLOCK = SystemClock()


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with open_session("embedded", home=tmp_path, clock=CLOCK) as opened:
        yield opened


def new_group(session: Session, run: str = "horses") -> Group:
    spec = RunSpec(
        run=run,
        location="eastus",
        size="Standard_D2s_v3",
        vm_image="a:b:c:latest",
        image="trainer",
        mount="/m",
        arguments=(),
        max_price=-1,
        eviction_policy="Deallocate",
        ssh_public_key="",
        disk_gb=64,
    )
    return groups.create(session, spec, CLOCK.now().isoformat())


@pytest.fixture
def group(session: Session) -> Group:
    return new_group(session)


def from_the_vm(session: Session, access: VmAccess) -> ContainerClient:
    """What the uploader has: a URL and its signature, and no login."""
    transport = session._options["transport"]
    return ContainerClient.from_container_url(
        f"{access.container_url}?{access.signature}", transport=transport, retry_total=0
    )


def give_role(session: Session, made: storage.Storage) -> None:
    assert storage.assign_data_role(session, made, session.principal_id, "User")
    CLOCK.sleep(0.3)  # until the blob service knows


def test_the_account_is_private_and_closed_to_keys(session: Session, group: Group) -> None:
    assert storage.find(session, group) is None
    made = storage.create(session, group, CLOCK)
    assert storage.create(session, group, CLOCK) == made == storage.find(session, group)
    account = session.storage.storage_accounts.get_properties(group.name, made.account)
    assert (account.minimum_tls_version, account.enable_https_traffic_only) == ("TLS1_2", True)
    assert (account.allow_blob_public_access, account.allow_shared_key_access) == (False, False)
    assert account.tags == {"cloudtrain-run": "horses"}
    assert not made.shared_key
    assert made.id in leftovers.of_run(session, "horses")


def test_an_account_that_an_interrupted_command_began_is_waited_for(session: Session, group: Group) -> None:
    body = {"location": "eastus", "kind": "StorageV2", "sku": {"name": "Standard_LRS"}}
    body["tags"] = {"cloudtrain-run": "horses"}
    session.storage.storage_accounts.begin_create(group.name, "ctbegun", body, polling=False)
    assert storage.find(session, group) is None
    assert storage.create(session, group, CLOCK).account == "ctbegun"


def test_a_name_that_somebody_has_is_passed_over(session: Session, group: Group) -> None:
    other = new_group(session, "other")
    taken = storage.create(session, group, CLOCK).account
    session.storage.storage_accounts.delete(group.name, taken)
    body = {"location": "eastus", "kind": "StorageV2", "sku": {"name": "Standard_LRS"}}
    session.storage.storage_accounts.begin_create(other.name, taken, body).result()
    made = storage.create(session, group, CLOCK)
    assert made.account != taken
    assert storage.find(session, other) is None  # without our tag it is not ours


def test_a_login_with_a_role_signs_for_the_vm_without_any_key(session: Session, group: Group) -> None:
    made = storage.create(session, group, CLOCK)
    give_role(session, made)
    assert storage.assign_data_role(session, made, session.principal_id, "User")  # once more changes nothing
    access = storage.vm_access(session, made, timedelta(days=30), CLOCK)
    assert access.kind is AccessKind.DELEGATION
    assert access.expires <= CLOCK.now() + timedelta(days=7)
    vm = from_the_vm(session, access)
    vm.upload_blob("models/log.txt", b"begun")
    container = storage.open_container(session, made)
    assert [blob.name for blob in container.list_blobs()] == ["models/log.txt"]
    found = storage.find(session, group)
    assert found is not None
    assert not found.shared_key
    storage.revoke(session, found)
    with pytest.raises(HttpResponseError):
        vm.upload_blob("more", b"x")


def test_a_login_without_a_role_lets_the_vm_in_behind_a_policy(session: Session, group: Group) -> None:
    made = storage.create(session, group, CLOCK)
    with pytest.raises(Refused) as refusal:
        storage.open_container(session, made)
    assert refusal.value.code == "NoDataRole"
    access = storage.vm_access(session, made, timedelta(days=30), CLOCK)
    assert access.kind is AccessKind.POLICY
    assert "si=vm" in access.signature
    assert access.signature not in repr(access)
    vm = from_the_vm(session, access)
    vm.upload_blob("models/log.txt", b"begun")
    vm.upload_blob("models/log.txt", b"begun, resumed", overwrite=True)
    found = storage.find(session, group)
    assert found is not None
    assert [blob.name for blob in storage.open_container(session, found).list_blobs()] == ["models/log.txt"]
    storage.revoke(session, found)
    with pytest.raises(HttpResponseError):
        vm.upload_blob("more", b"x")
    again = storage.vm_access(session, made, timedelta(days=30), CLOCK)  # and it can be opened again
    from_the_vm(session, again).upload_blob("more", b"x")


def test_one_runs_signature_reads_nothing_of_another(session: Session, group: Group) -> None:
    made = storage.create(session, group, CLOCK)
    access = storage.vm_access(session, made, timedelta(days=1), CLOCK)
    other = storage.create(session, new_group(session, "other"), CLOCK)
    strange = VmAccess(access.kind, access.expires, other.endpoint + storage.CONTAINER, access.signature)
    storage.vm_access(session, other, timedelta(days=1), CLOCK)
    with pytest.raises(HttpResponseError) as refusal:
        next(iter(from_the_vm(session, strange).list_blobs()))
    assert refusal.value.status_code == 403


def test_the_group_takes_the_account_along(session: Session, group: Group, tmp_path: Path) -> None:
    made = storage.create(session, group, CLOCK)
    access = storage.vm_access(session, made, timedelta(days=1), CLOCK)
    from_the_vm(session, access).upload_blob("b", b"x" * 100_000)
    groups.begin_delete(session, group).result()
    assert leftovers.of_run(session, "horses") == []
    assert list((tmp_path / "emulator" / "blobs").iterdir()) == []
    assert storage.find(session, group) is None
