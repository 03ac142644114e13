"""Storage accounts: their management through azure-mgmt-storage, who is let in, and what survives a kill."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError, ServiceRequestError
from azure.storage.blob import generate_container_sas

from cloudtrain.clock import SystemClock
from cloudtrain.emulator import settings
from cloudtrain.emulator.store import StoreError

from .blob_services import CONTRIBUTOR, Service, embedded
from .conftest import Cloud, open_cloud

STORAGE = "/resourceGroups/g/providers/Microsoft.Storage/storageAccounts"
BODY = {"sku": {"name": "Standard_LRS"}, "kind": "StorageV2", "location": "eastus", "properties": {}}
VERSION = "2026-09-01"


def code(error: pytest.ExceptionInfo[Any]) -> str:
    return str(getattr(error.value.error_code, "value", error.value.error_code))


def call(cloud: Cloud, method: str, url: str, body: Any = None) -> Any:
    return cloud.call(method, url, body, version=VERSION)


# accounts


def test_an_account_is_made_as_azure_makes_it(cloud: Cloud) -> None:
    cloud.group()
    begun = call(cloud, "PUT", f"{STORAGE}/acct", BODY)
    assert (begun.status, begun.body) == (202, None)
    assert "Azure-AsyncOperation" not in begun.headers
    assert "/providers/Microsoft.Storage/locations/eastus/asyncoperations/" in begun.headers["Location"]
    assert "monitor=true" in begun.headers["Location"]
    pending = call(cloud, "GET", begun.headers["Location"])
    assert (pending.status, pending.body) == (202, None)
    with pytest.raises(ServiceRequestError):  # its host is not there yet
        cloud.blobs(credential="A" * 86 + "==").get_container_client("c").exists()
    done = cloud.finish(begun)
    assert done.status == 200
    shown = done.body
    assert shown["sku"] == {"name": "Standard_LRS", "tier": "Standard"}
    assert shown["properties"]["provisioningState"] == "Succeeded"
    assert shown["properties"]["minimumTlsVersion"] == "TLS1_0"  # what Azure gives to who names none
    assert shown["properties"]["primaryEndpoints"]["blob"] == "https://acct.blob.core.windows.net/"
    assert "allowSharedKeyAccess" not in shown["properties"]
    assert call(cloud, "GET", f"{STORAGE}/acct").body == shown


def test_accounts_are_listed_changed_and_deleted(cloud: Cloud) -> None:
    cloud.account("one", allowSharedKeyAccess=False)
    cloud.account("two", group="h")
    accounts = cloud.storage.storage_accounts
    assert [a.name for a in accounts.list_by_resource_group("g")] == ["one"]
    assert {a.name for a in accounts.list()} == {"one", "two"}
    changed = accounts.update("g", "one", {"tags": {"a": "b"}, "properties": {"minimumTlsVersion": "TLS1_3"}})
    assert (changed.tags, changed.minimum_tls_version, changed.allow_shared_key_access) == (
        {"a": "b"},
        "TLS1_3",
        False,
    )
    assert call(cloud, "DELETE", f"{STORAGE}/one").status == 200
    assert call(cloud, "DELETE", f"{STORAGE}/one").status == 204
    gone = call(cloud, "GET", f"{STORAGE}/one")
    assert (gone.status, gone.body["error"]["code"]) == (404, "ResourceNotFound")


@pytest.mark.parametrize(
    ("name", "change", "status", "code"),
    [
        ("Bad_Name", {}, 400, "AccountNameInvalid"),
        ("ab", {}, 400, "AccountNameInvalid"),
        ("taken", {}, 409, "StorageAccountAlreadyTaken"),
        ("fine", {"location": None}, 400, "LocationRequired"),
        ("fine", {"sku": {"name": "Best_LRS"}}, 400, "InvalidValuesForRequestParameters"),
        ("fine", {"properties": {"allowSharedKeyAccess": "no"}}, 400, "InvalidRequestFormat"),
        ("fine", {"properties": {"minimumTlsVersion": "TLS9"}}, 400, "InvalidValuesForRequestParameters"),
    ],
)
def test_accounts_that_cannot_be_are_refused(
    cloud: Cloud, name: str, change: dict[str, Any], status: int, code: str
) -> None:
    cloud.account("taken", group="h")
    cloud.group()
    reply = call(cloud, "PUT", f"{STORAGE}/{name}", BODY | change)
    assert (reply.status, reply.body["error"]["code"]) == (status, code)


def test_a_name_is_checked_before_it_is_used(cloud: Cloud) -> None:
    cloud.account("taken")
    check = cloud.storage.storage_accounts.check_name_availability
    kind = "Microsoft.Storage/storageAccounts"
    assert check({"name": "free", "type": kind}).name_available
    taken, invalid = check({"name": "taken", "type": kind}), check({"name": "Not-Good", "type": kind})
    assert (taken.name_available, taken.reason) == (False, "AlreadyExists")
    assert taken.message == "The storage account named taken is already taken."
    assert (invalid.name_available, invalid.reason) == (False, "AccountNameInvalid")


def test_a_subscription_without_storage_says_so(fresh_cloud: Cloud) -> None:
    fresh_cloud.group()
    reply = call(fresh_cloud, "PUT", f"{STORAGE}/acct", BODY)
    assert (reply.status, reply.body["error"]["code"]) == (409, "MissingSubscriptionRegistration")
    fresh_cloud.resources.providers.register("Microsoft.Storage")
    fresh_cloud.clock.sleep(1)
    assert fresh_cloud.account().provisioning_state == "Succeeded"


def test_one_change_at_a_time(cloud: Cloud) -> None:
    cloud.group()
    call(cloud, "PUT", f"{STORAGE}/acct", BODY)
    again = call(cloud, "PUT", f"{STORAGE}/acct", BODY)
    assert again.status == 409
    assert "requires exclusive access" in again.body["error"]["message"]


def test_containers_are_managed_beside_the_blob_protocol(cloud: Cloud) -> None:
    cloud.account()
    made = call(cloud, "PUT", f"{STORAGE}/acct/blobServices/default/containers/runs", {})
    assert (made.status, sorted(made.body)) == (201, ["id", "name", "type"])
    assert "ETag" in made.headers
    assert call(cloud, "PUT", f"{STORAGE}/acct/blobServices/default/containers/runs", {}).status == 200
    client = cloud.blobs(credential=cloud.key()).get_container_client("runs")
    client.upload_blob("b", b"x")
    containers = cloud.storage.blob_containers
    found = containers.get("g", "acct", "runs")
    assert (found.public_access, found.lease_state, found.has_legal_hold) == ("None", "Available", False)
    assert [c.name for c in containers.list("g", "acct")] == ["runs"]
    containers.delete("g", "acct", "runs")
    assert not client.exists()
    assert call(cloud, "DELETE", f"{STORAGE}/acct/blobServices/default/containers/runs").status == 204
    bad = call(cloud, "PUT", f"{STORAGE}/acct/blobServices/default/containers/Not_Good", {})
    assert (bad.status, bad.body["error"]["code"]) == (400, "InvalidResourceName")


# lifetime


def test_a_group_takes_its_accounts_and_their_files_along(cloud: Cloud) -> None:
    cloud.account()
    container = cloud.blobs(credential=cloud.key()).create_container("runs")
    container.upload_blob("b", b"x" * 1000)
    assert [r.type for r in cloud.resources.resources.list_by_resource_group("g")] == [
        "Microsoft.Storage/storageAccounts"
    ]
    blobs = cloud.azure.root / "blobs"
    assert len(list(blobs.iterdir())) == 1
    cloud.resources.resource_groups.begin_delete("g").result()
    assert list(blobs.iterdir()) == []
    with pytest.raises(ServiceRequestError):
        container.exists()
    cloud.account()  # the name is free again, and what was there is not
    assert list(cloud.blobs(credential=cloud.key()).list_containers()) == []


def test_a_reset_removes_all_blobs(cloud: Cloud) -> None:
    cloud.account()
    cloud.blobs(credential=cloud.key()).create_container("runs").upload_blob("b", b"x")
    cloud.azure.reset()
    assert not (cloud.azure.root / "blobs").exists()


# who is let in


@pytest.fixture
def service(cloud: Cloud) -> Service:
    return embedded(cloud)


def test_a_token_without_a_role_opens_nothing(cloud: Cloud) -> None:
    account = cloud.account()
    cloud.blobs(credential=cloud.key()).create_container("runs")
    from .blob_services import Token

    client = cloud.blobs(credential=Token(cloud.azure.storage_token)).get_container_client("runs")
    with pytest.raises(HttpResponseError) as refusal:
        client.upload_blob("b", b"x")
    assert (refusal.value.status_code, code(refusal)) == (403, "AuthorizationPermissionMismatch")
    role = f"{cloud.subscription}/providers/Microsoft.Authorization/roleDefinitions/{CONTRIBUTOR}"
    properties = {"principalId": cloud.azure.caller_id, "principalType": "User", "roleDefinitionId": role}
    scope = f"{account.id}/blobServices/default/containers/runs/providers/Microsoft.Authorization/roleAssignments"
    assert call(cloud, "PUT", f"{scope}/0f0e3c06-0000-4000-8000-000000000001", {"properties": properties}).status == 201
    with pytest.raises(HttpResponseError):  # it takes a while until the blob service knows
        client.upload_blob("b", b"x")
    cloud.clock.sleep(1)
    client.upload_blob("b", b"x")
    with pytest.raises(HttpResponseError) as elsewhere:  # a role on a container is none on the account
        cloud.blobs(credential=Token(cloud.azure.storage_token)).create_container("other")
    assert code(elsewhere) == "AuthorizationPermissionMismatch"
    twice = call(cloud, "PUT", f"{scope}/0f0e3c06-0000-4000-8000-000000000002", {"properties": properties})
    assert (twice.status, twice.body["error"]["code"]) == (409, "RoleAssignmentExists")
    assert [a["name"] for a in call(cloud, "GET", scope).body["value"]] == ["0f0e3c06-0000-4000-8000-000000000001"]
    assert call(cloud, "DELETE", f"{scope}/0f0e3c06-0000-4000-8000-000000000001").status == 200
    with pytest.raises(HttpResponseError):
        client.upload_blob("b", b"x", overwrite=True)


def test_a_token_for_resource_manager_opens_no_blobs(cloud: Cloud, service: Service) -> None:
    from .blob_services import Token

    client = service.client(Token(cloud.azure.token), permit_redirects=False)
    with pytest.raises(HttpResponseError) as refusal:
        next(iter(client.list_containers()))
    assert (refusal.value.status_code, code(refusal)) == (401, "InvalidAuthenticationInfo")
    assert call(cloud, "GET", STORAGE).status == 200
    reply = cloud.call("GET", STORAGE, version=VERSION, Authorization=f"Bearer {cloud.azure.storage_token}")
    assert reply.status == 401


def test_an_account_without_shared_keys_takes_neither_key_nor_its_signatures(cloud: Cloud, service: Service) -> None:
    service.keyed().create_container("runs")
    query = generate_container_sas(
        "acct", "runs", account_key=service.key, permission="r", expiry=service.now() + timedelta(hours=1)
    )
    cloud.storage.storage_accounts.update("g", "acct", {"properties": {"allowSharedKeyAccess": False}})
    for client in (service.keyed(), service.client(query=query)):
        with pytest.raises(HttpResponseError) as refusal:
            client.get_blob_client("runs", "b").download_blob()
        assert (refusal.value.status_code, code(refusal)) == (403, "KeyBasedAuthenticationNotPermitted")
    assert service.client(service.token).get_container_client("runs").exists()


def test_a_new_account_key_ends_what_the_old_one_signed(cloud: Cloud, service: Service) -> None:
    service.keyed().create_container("runs")
    cloud.storage.storage_accounts.regenerate_key("g", "acct", {"keyName": "key1"})
    with pytest.raises(HttpResponseError):
        service.keyed().get_container_client("runs").get_container_properties()
    assert service.keyed(cloud.key()).get_container_client("runs").exists()


def test_delegation_keys_are_short_lived_and_can_be_revoked(cloud: Cloud, service: Service) -> None:
    container = service.keyed().create_container("runs")
    container.upload_blob("b", b"x")
    now, user = service.now(), service.client(service.token)
    with pytest.raises(HttpResponseError):
        user.get_user_delegation_key(now, now + timedelta(days=8))
    key = user.get_user_delegation_key(now, now + timedelta(days=6))
    query = generate_container_sas(
        "acct", "runs", user_delegation_key=key, permission="r", expiry=now + timedelta(days=1)
    )
    reader = service.client(query=query).get_blob_client("runs", "b")
    assert reader.download_blob().readall() == b"x"
    cloud.storage.storage_accounts.revoke_user_delegation_keys("g", "acct")
    with pytest.raises(HttpResponseError) as refusal:
        reader.download_blob()
    assert code(refusal) == "AuthenticationFailed"


def test_no_secret_is_readable_in_the_database(cloud: Cloud, service: Service) -> None:
    files = [path for path in cloud.azure.root.iterdir() if path.name.startswith("azure.db")]
    assert files
    for path in files:
        assert service.key.encode() not in path.read_bytes()


def test_leases_end_by_themselves(cloud: Cloud, service: Service) -> None:
    blob = service.keyed().create_container("runs").upload_blob("b", b"1")
    lease = blob.acquire_lease(lease_duration=15)
    cloud.clock.sleep(16)
    assert blob.get_blob_properties().lease.state == "expired"
    lease.renew()
    cloud.clock.sleep(16)
    blob.upload_blob(b"2", overwrite=True)
    with pytest.raises(HttpResponseError):  # changed since: it is nobody's any more
        lease.renew()


def test_a_whole_blob_forgets_staged_blocks(service: Service) -> None:
    blob = service.keyed().create_container("runs").get_blob_client("b")
    blob.stage_block("1", b"x")
    blob.upload_blob(b"whole")
    assert blob.get_block_list("all") == ([], [])


def test_what_the_blob_service_lacks_is_named(service: Service) -> None:
    container = service.keyed().create_container("runs")
    blob = container.upload_blob("b", b"1")
    for attempt in (blob.create_snapshot, lambda: blob.set_standard_blob_tier("Cool"), blob.get_blob_tags):
        with pytest.raises(HttpResponseError) as refusal:
            attempt()
        assert (refusal.value.status_code, code(refusal)) == (501, "OperationNotEmulated")


# power cuts and company

UPLOADER = """
import sys
from pathlib import Path
from cloudtrain.clock import SystemClock
from cloudtrain.emulator.store import StoreError
from tests.emulator.conftest import open_cloud

cloud = open_cloud(Path(sys.argv[1]), clock=SystemClock())
container = cloud.blobs(credential=cloud.key(), max_single_put_size=60_000, max_block_size=60_000)
container = container.get_container_client("runs")
number = 0
while True:
    number += 1
    size = 1000 if number % 2 else 180_000
    container.upload_blob(f"{sys.argv[2]}/{number:06d}", bytes([number % 251]) * size)
    container.upload_blob(f"{sys.argv[2]}/latest", str(number).encode() * 9000, overwrite=True)
    print(number, flush=True)
"""


def uploader(root: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", UPLOADER, str(root), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def lines(process: subprocess.Popen[str]) -> Iterator[int]:
    assert process.stdout is not None
    for line in process.stdout:
        yield int(line)


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    root = tmp_path / "emulator"
    cloud = open_cloud(root, clock=SystemClock())
    cloud.account()
    container = cloud.blobs(credential=cloud.key()).create_container("runs")
    acknowledged: dict[str, int] = {}
    for name in ("a", "b"):
        process = uploader(root, name)
        for number in lines(process):
            acknowledged[name] = number
            if number == 6:
                break
        time.sleep(0.01 if name == "a" else 0.017)  # somewhere in the next upload
        os.kill(process.pid, signal.SIGKILL)
        acknowledged[name] = max([acknowledged[name], *lines(process)])
        process.wait()
    for name, last in acknowledged.items():
        for number in range(1, last + 1):
            data = container.get_blob_client(f"{name}/{number:06d}").download_blob().readall()
            assert data == bytes([number % 251]) * (1000 if number % 2 else 180_000)
        latest = container.get_blob_client(f"{name}/latest").download_blob().readall()
        assert latest in {str(number).encode() * 9000 for number in (last, last + 1)}
    cloud.azure.close()
    cloud = open_cloud(root, clock=SystemClock())  # the first look into the account clears what was left behind
    container = cloud.blobs(credential=cloud.key()).get_container_client("runs")
    # What is small lies in the index.
    sizes = sum(blob.size for blob in container.list_blobs() if blob.size > 32 * 1024)
    staged = sum(block.size for block in _staged(container, acknowledged))
    (content,) = (root / "blobs").glob("*/content")
    assert sum(path.stat().st_size for path in content.iterdir()) == sizes + staged
    cloud.azure.close()


def _staged(container: Any, acknowledged: dict[str, int]) -> Iterator[Any]:
    for name, last in acknowledged.items():
        try:
            yield from container.get_blob_client(f"{name}/{last + 1:06d}").get_block_list("uncommitted")[1]
        except ResourceNotFoundError:
            continue


def test_an_upload_that_breaks_off_leaves_nothing(cloud: Cloud, service: Service) -> None:
    container = service.keyed().create_container("runs")

    class Broken:
        """Says that it has 100000 bytes, and ends after 10."""

        left = 10

        def read(self, size: int = -1) -> bytes:
            count, self.left = self.left, 0
            return b"x" * count

    with pytest.raises(HttpResponseError):
        container.get_blob_client("b").upload_blob(Broken(), length=100_000)
    assert not container.get_blob_client("b").exists()
    (content,) = (cloud.azure.root / "blobs").glob("*/content")
    assert list(content.iterdir()) == []


def test_two_at_once_lose_nothing(tmp_path: Path) -> None:
    root = tmp_path / "emulator"
    clouds = [open_cloud(root, clock=SystemClock()) for _ in range(2)]
    clouds[0].account()
    clouds[0].blobs(credential=clouds[0].key()).create_container("runs")
    journal = [c.blobs(credential=c.key()).get_blob_client("runs", "journal") for c in clouds]
    journal[0].create_append_blob()
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for line in range(15):
                journal[number].append_block(f"{number} {line}\n".encode())
        except HttpResponseError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    text = journal[0].download_blob().readall().decode().splitlines()
    for number in range(2):
        assert [line for line in text if line.startswith(f"{number} ")] == [f"{number} {n}" for n in range(15)]
    for cloud in clouds:
        cloud.azure.close()


def test_a_damaged_index_is_named(cloud: Cloud, service: Service) -> None:
    service.keyed().create_container("runs")
    cloud.azure.close()
    (index,) = (cloud.azure.root / "blobs").glob("*/index.db")
    index.write_bytes(b"not a database" * 1000)
    again = open_cloud(cloud.azure.root)
    with pytest.raises(StoreError, match=r"index\.db cannot be used"):
        again.blobs(credential=service.key).get_container_client("runs").exists()
    again.azure.close()


def test_what_is_answered_when_it_is_done_takes_its_time(cloud: Cloud) -> None:
    account = cloud.account()
    cloud.azure.set(lambda records, _: settings.set_latency(records, "azure", None))
    role = f"{cloud.subscription}/providers/Microsoft.Authorization/roleDefinitions/{CONTRIBUTOR}"
    body = {"properties": {"principalId": cloud.azure.caller_id, "principalType": "User", "roleDefinitionId": role}}
    name = "8a3e9c7e-6b06-4d0a-9a55-0000000000aa"
    begun = cloud.clock.now()
    assert (
        cloud.call("PUT", f"{account.id}/providers/Microsoft.Authorization/roleAssignments/{name}", body).status == 201
    )
    assigned = cloud.clock.now()
    cloud.storage.storage_accounts.delete("g", "acct")
    assert ((assigned - begun).total_seconds(), (cloud.clock.now() - assigned).total_seconds()) == (4, 7)


# deletion, and who looks meanwhile


def directories(cloud: Cloud) -> list[str]:
    return [path.name for path in (cloud.azure.root / "blobs").iterdir()]


def shows_nothing(cloud: Cloud, key: str) -> None:
    with pytest.raises(ServiceRequestError):  # as of an account that is gone: its host is not there
        cloud.blobs(credential=key).get_container_client("runs").exists()
    shown = call(cloud, "GET", f"{STORAGE}/acct/blobServices/default/containers/runs")
    assert (shown.status, shown.body["error"]["code"]) == (404, "StorageAccountNotFound")


def test_who_looks_while_a_group_is_deleted_does_not_bring_its_accounts_files_back(
    cloud: Cloud, service: Service
) -> None:
    service.keyed().create_container("runs")
    other = open_cloud(cloud.azure.root, clock=cloud.clock)  # as another process
    begun = cloud.call("DELETE", "/resourcegroups/g")
    assert call(other, "GET", f"{STORAGE}/acct").status == 200
    for each in (other, cloud):  # who looks for the first time, and who did before
        shows_nothing(each, service.key)
    assert other.finish(begun).status == 200
    assert directories(cloud) == []
    other.azure.close()


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("work", ["write", "read"])
def test_a_request_that_is_under_way_when_its_group_is_deleted_leaves_nothing_either(
    cloud: Cloud, service: Service, work: str, known: bool
) -> None:
    data = b"x" * 100_000
    service.keyed().create_container("runs").upload_blob("b", data)
    other = open_cloud(cloud.azure.root, clock=cloud.clock)
    container = other.blobs(credential=service.key).get_container_client("runs")
    begun: list[Any] = []

    @contextmanager
    def meanwhile(*request: Any) -> Iterator[None]:
        begun.append(cloud.call("DELETE", "/resourcegroups/g"))
        yield

    if known:
        assert container.exists()
    other.azure.blobs.around = meanwhile
    with pytest.raises(ServiceRequestError):
        container.upload_blob("c", data) if work == "write" else container.download_blob("b")
    cloud.finish(begun.pop())
    assert directories(cloud) == []
    other.azure.close()


class Killed(BaseException):
    """In place of a kill -9."""


@contextmanager
def killed_while_removing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr("shutil.rmtree", killed)
        yield


def test_a_deletion_that_is_killed_half_way_shows_nothing_and_is_ended_by_whoever_comes_next(
    cloud: Cloud, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.keyed().create_container("runs").upload_blob("b", b"x" * 100_000)
    with killed_while_removing(monkeypatch):
        cloud.call("DELETE", "/resourcegroups/g")
    assert directories(cloud) != []
    again = open_cloud(cloud.azure.root, clock=cloud.clock)
    shows_nothing(again, service.key)
    again.finish(again.call("DELETE", "/resourcegroups/g"))
    assert directories(cloud) == []
    again.azure.close()


@pytest.mark.parametrize("then", ["the account", "the group"])
def test_what_a_killed_deletion_of_an_account_left_goes_with_the_next_deletion(
    cloud: Cloud, service: Service, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    service.keyed().create_container("runs")
    with killed_while_removing(monkeypatch):
        call(cloud, "DELETE", f"{STORAGE}/acct")
    assert directories(cloud) != []
    if then == "the account":
        assert call(cloud, "DELETE", f"{STORAGE}/acct").status == 204
    else:
        cloud.finish(cloud.call("DELETE", "/resourcegroups/g"))
    assert directories(cloud) == []
