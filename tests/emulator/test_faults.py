"""Faults on request, as a client of the embedded Azure meets them; and what they become on cloudtrain's side."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ServiceResponseError
from azure.core.pipeline.policies import RetryPolicy

from cloudtrain.azure.errors import translated
from cloudtrain.emulator import settings, timing
from cloudtrain.emulator.app import KINDS
from cloudtrain.emulator.machines import OffCause
from cloudtrain.emulator.settings import NotUnderstood
from cloudtrain.errors import Blocks, CloudtrainError, Exit, Refused

from .conftest import Cloud, open_cloud

VM = "/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm"
VERSION = "?api-version=2022-12-01"

# Every refusal of Azure's that concerns a run: what we call it, and what it closes.
BLOCKED = [
    ("SkuNotAvailable", "SkuNotAvailable", Blocks.SIZE),
    ("AllocationFailed", "AllocationFailed", Blocks.SIZE),
    ("ZonalAllocationFailed", "ZonalAllocationFailed", Blocks.ZONE),
    ("OverconstrainedAllocationRequest", "OverconstrainedAllocationRequest", Blocks.SIZE),
    ("OverconstrainedZonalAllocationRequest", "OverconstrainedZonalAllocationRequest", Blocks.ZONE),
    ("QuotaExceeded", "SpotQuotaExceeded", Blocks.SPOT),
    ("SpotPriceGreaterThanProvidedMaxPrice", "SpotPriceGreaterThanProvidedMaxPrice", Blocks.SIZE),
    ("MaxPriceValueInvalid", "MaxPriceValueInvalid", Blocks.EVERYTHING),
    ("MaxPriceChangeNotAllowedForAllocatedVMs", "MaxPriceChangeNotAllowedForAllocatedVMs", Blocks.EVERYTHING),
    ("AzureSpotIsNotSupportedForThisVMSize", "AzureSpotIsNotSupportedForThisVMSize", Blocks.SIZE),
    ("AzureSpotFeatureNotEnabledForSubscription", "AzureSpotFeatureNotEnabledForSubscription", Blocks.SPOT),
    (
        "EvictionPolicyCanBeSetOnlyOnAzureSpotVirtualMachines",
        "EvictionPolicyCanBeSetOnlyOnAzureSpotVirtualMachines",
        Blocks.EVERYTHING,
    ),
    ("VMPriorityCannotBeApplied", "VMPriorityCannotBeApplied", Blocks.EVERYTHING),
    ("AzureSpotVMNotSupportedInAvailabilitySet", "AzureSpotVMNotSupportedInAvailabilitySet", Blocks.EVERYTHING),
    ("ResourcePurchaseValidationFailed", "ResourcePurchaseValidationFailed", Blocks.EVERYTHING),
    ("MarketplacePurchaseEligibilityFailed", "MarketplacePurchaseEligibilityFailed", Blocks.EVERYTHING),
    ("VMMarketplaceInvalidInput", "VMMarketplaceInvalidInput", Blocks.EVERYTHING),
    ("InvalidParameter", "InvalidParameter", Blocks.SIZE),
    ("AuthorizationFailed", "AuthorizationFailed", Blocks.EVERYTHING),
    ("SubscriptionNotFound", "SubscriptionNotFound", Blocks.EVERYTHING),
    ("ReadOnlyDisabledSubscription", "ReadOnlyDisabledSubscription", Blocks.EVERYTHING),
    ("ResourceGroupBeingDeleted", "ResourceGroupBeingDeleted", Blocks.NOTHING),
    ("InvalidTemplateDeployment", "SkuNotAvailable", Blocks.SIZE),
    ("OSProvisioningTimedOut", "OSProvisioningTimedOut", Blocks.NOTHING),
    ("OSProvisioningClientError", "OSProvisioningClientError", Blocks.NOTHING),
    ("VMStartTimedOut", "VMStartTimedOut", Blocks.NOTHING),
    ("Conflict", "OperationInProgress", Blocks.NOTHING),
]
AS_THE_END_OF_AN_OPERATION = [row for row in BLOCKED if row[0] not in ("SubscriptionNotFound", "AuthorizationFailed")]


def put(cloud: Cloud, name: str = "vm", **properties: Any) -> Any:
    if not cloud.resources.resource_groups.check_existence("g"):
        cloud.group()
    body = cloud.vm_body(cloud.net(), **properties)
    return cloud.compute.virtual_machines.begin_create_or_update("g", name, body)


def told(action: Any) -> CloudtrainError:
    """What cloudtrain makes of the refusal that an action meets."""
    with pytest.raises(CloudtrainError) as caught, translated("making the VM"):
        action()
    error = caught.value
    assert error.message and error.hint, error
    assert "making the VM" in error.message
    return error


@pytest.mark.parametrize(("code", "name", "blocks"), BLOCKED)
def test_a_refusal_is_named_and_says_what_it_closes(cloud: Cloud, code: str, name: str, blocks: Blocks) -> None:
    cloud.azure.add_fault("refuse", code=code)
    error = told(lambda: put(cloud))
    assert isinstance(error, Refused)
    assert (error.code, error.blocks, error.exit_code) == (name, blocks, Exit.REFUSED)
    assert "{" not in error.message


@pytest.mark.parametrize(("code", "name", "blocks"), AS_THE_END_OF_AN_OPERATION)
def test_so_is_an_operation_that_failed_although_its_status_is_200(
    cloud: Cloud, code: str, name: str, blocks: Blocks
) -> None:
    cloud.azure.add_fault("fail-late", code=code)
    poller = put(cloud)
    with pytest.raises(HttpResponseError) as raw:
        poller.result()
    assert (raw.value.status_code, raw.value.error.code) == (200, code)
    error = told(lambda: (_ for _ in ()).throw(raw.value))
    assert (error.code, error.blocks, error.exit_code) == (name, blocks, Exit.REFUSED)
    view = cloud.call("GET", f"{VM}?$expand=instanceView").body["properties"]
    assert view["provisioningState"] == "Failed"
    assert view["instanceView"]["statuses"][0]["code"] == f"ProvisioningState/failed/{code}"
    assert cloud.machines.log() == []


@pytest.mark.parametrize("code", ["ExpiredAuthenticationToken", "InvalidAuthenticationTokenTenant"])
def test_a_login_that_is_no_good_is_exit_8_and_says_how_to_log_in(cloud: Cloud, code: str) -> None:
    cloud.azure.add_fault("refuse", code=code, on="ResourceGroups_Get")
    error = told(lambda: cloud.resources.resource_groups.get("g"))
    assert (error.code, error.blocks, error.exit_code) == (code, Blocks.EVERYTHING, Exit.UNREACHABLE)
    assert "az login" in error.hint


# the real refusals, met without any fault


def test_the_quota_of_spot_cores_is_a_409_that_the_sdk_calls_existing_and_we_do_not(cloud: Cloud) -> None:
    cloud.azure.set(lambda records, _: settings.set_quota(records, "spot_cores", 3, "eastus"))
    cloud.vm()
    with pytest.raises(ResourceExistsError):
        put(cloud, "other")
    error = told(lambda: put(cloud, "other"))
    assert (error.code, error.blocks) == ("SpotQuotaExceeded", Blocks.SPOT)
    assert "Current Limit: 3" in error.message
    cloud.azure.set(lambda records, _: settings.back_to_defaults(records))
    assert put(cloud, "third", storageProfile=_disk("third")).result().provisioning_state == "Succeeded"


def _disk(name: str) -> dict[str, Any]:
    image = {"publisher": "microsoft-dsvm", "offer": "ubuntu-hpc", "sku": "2204", "version": "latest"}
    return {
        "imageReference": image,
        "osDisk": {"createOption": "FromImage", "name": name, "deleteOption": "Delete"},
    }


@pytest.mark.parametrize(
    ("cores", "size", "name", "blocks"),
    [
        (1, "Standard_D2s_v3", "RegionalQuotaExceeded", Blocks.REGION),
        (100, "Standard_NC4as_T4_v3", "FamilyQuotaExceeded", Blocks.SIZE),
    ],
)
def test_the_other_quotas_close_a_region_or_a_family(
    cloud: Cloud, cores: int, size: str, name: str, blocks: Blocks
) -> None:
    cloud.azure.set(lambda records, _: settings.set_quota(records, "cores", cores, None))
    error = told(lambda: put(cloud, priority="Regular", hardwareProfile={"vmSize": size}))
    assert (error.code, error.blocks) == (name, blocks)


def test_a_higher_price_refuses_new_vms_and_evicts_those_that_would_pay_less(cloud: Cloud) -> None:
    vm = cloud.vm(billingProfile={"maxPrice": 0.05})
    generous = cloud.vm("generous", billingProfile={"maxPrice": -1}, storageProfile=_disk("generous"))
    cloud.azure.set(lambda records, _: settings.set_spot_price(records, 0.06, "Standard_D2s_v3", "eastus"))
    assert cloud.machines.notice(vm.vm_id) == 30.0
    assert cloud.machines.notice(generous.vm_id) is None
    error = told(lambda: put(cloud, "third", billingProfile={"maxPrice": 0.05}))
    assert (error.code, error.blocks) == ("SpotPriceGreaterThanProvidedMaxPrice", Blocks.SIZE)
    assert "0.06" in error.message


def test_capacity_can_be_gone_for_a_time_by_size_zone_and_region(cloud: Cloud) -> None:
    def gone(size: str | None = None, zone: str | None = None, location: str | None = None) -> None:
        def change(records: Any, now: float) -> None:
            settings.end_shortages(records)
            settings.set_shortage(records, size, zone, location, now + 60)

        cloud.azure.set(change)

    cloud.group()
    cloud.net()
    gone(size="Standard_D4s_v3")
    vm = cloud.vm()
    cloud.compute.virtual_machines.begin_deallocate("g", "vm").result()
    gone(location="eastus")
    error = told(lambda: cloud.compute.virtual_machines.begin_start("g", "vm").result())
    assert (error.code, error.blocks) == ("AllocationFailed", Blocks.SIZE)
    assert cloud.power() == "deallocated"
    assert cloud.compute.virtual_machines.get("g", "vm").provisioning_state == "Failed"
    cloud.clock.sleep(61)
    cloud.compute.virtual_machines.begin_start("g", "vm").result()
    assert cloud.power() == "running"
    assert cloud.compute.virtual_machines.get("g", "vm").provisioning_state == "Succeeded"
    assert [what for what, _ in cloud.machines.log()].count("boot") == 2
    gone(zone="2")
    body = cloud.vm_body(cloud.net(), storageProfile=_disk("zonal")) | {"zones": ["2"]}
    error = told(lambda: cloud.compute.virtual_machines.begin_create_or_update("g", "zonal", body).result())
    assert (error.code, error.blocks) == ("ZonalAllocationFailed", Blocks.ZONE)
    assert "Standard_D2s_v3 in zone 2" in error.message
    assert vm.vm_id


def test_every_operation_has_a_duration_in_every_profile() -> None:
    assert timing.AZURE.keys() == timing.REHEARSAL.keys()
    assert KINDS.keys() <= timing.AZURE.keys()


def test_operations_take_as_long_as_on_azure_times_a_factor(cloud: Cloud) -> None:
    cloud.group()
    subnet = cloud.net()
    cloud.azure.set(lambda records, _: settings.set_latency(records, "azure", 0.5))
    began = cloud.clock.now()
    begun = cloud.call("PUT", VM, cloud.vm_body(subnet))
    assert begun.headers["retry-after-ms"] == "5000"
    assert cloud.finish(begun).body["status"] == "Succeeded"
    assert 38 <= (cloud.clock.now() - began).total_seconds() <= 38 + 5
    cloud.compute.virtual_machines.begin_power_off("g", "vm").result()
    cloud.compute.virtual_machines.begin_start("g", "vm").result()
    took = {each.kind: each.due - each.started for each in cloud.azure.done()}
    assert took["vm.create"] == pytest.approx(38)
    assert took["vm.start"] == pytest.approx(4)
    vm = cloud.compute.virtual_machines.get("g", "vm")
    cloud.machines.cut(vm.vm_id, OffCause.EVICTED)
    assert cloud.power() == "deallocating"
    cloud.clock.sleep(20)
    assert cloud.power() == "deallocated"


# answers, connections


@pytest.mark.parametrize(
    ("kind", "retry_after", "status", "exit_code"),
    [
        ("429", None, 429, Exit.REFUSED),
        ("429", 7, 429, Exit.REFUSED),
        ("500", None, 500, Exit.UNREACHABLE),
        ("503", 3, 503, Exit.UNREACHABLE),
    ],
)
def test_an_answer_of_the_moment_strikes_as_often_as_asked_and_is_not_held_against_anything(
    cloud: Cloud, kind: str, retry_after: int | None, status: int, exit_code: Exit
) -> None:
    cloud.group()
    cloud.azure.add_fault(kind, on="ResourceGroups_Get", count=2, after=1, retry_after=retry_after)
    got = [cloud.call("GET", "/resourceGroups/g") for _ in range(4)]
    assert [reply.status for reply in got] == [200, status, status, 200]
    assert got[1].headers.get("Retry-After") == (None if retry_after is None else str(retry_after))
    assert got[1].body["error"]["code"] and got[1].body["error"]["message"]
    cloud.azure.clear_faults()
    cloud.azure.add_fault(kind, on="ResourceGroups_Get")
    error = told(lambda: cloud.resources.resource_groups.get("g"))
    assert (error.exit_code, error.blocks) == (exit_code, Blocks.NOTHING)


def test_compute_and_resource_manager_throttle_in_words_of_their_own(cloud: Cloud) -> None:
    cloud.vm()
    cloud.azure.add_fault("429", count=2)
    compute = cloud.call("GET", VM).body["error"]
    assert (compute["code"], compute["details"][0]["code"]) == ("OperationNotAllowed", "TooManyRequests")
    assert cloud.call("GET", "/resourceGroups/g").body["error"]["code"] == "SubscriptionRequestsThrottled"


@pytest.mark.parametrize(("kind", "done"), [("drop-before", False), ("drop-after", True), ("hang", False)])
def test_a_dropped_connection_looks_like_a_real_one(cloud: Cloud, kind: str, done: bool) -> None:
    cloud.group()
    cloud.azure.add_fault(kind, on="PATCH */resourceGroups/g")
    began = cloud.clock.now()
    error = told(lambda: cloud.resources.resource_groups.update("g", {"tags": {"new": "yes"}}))
    assert (error.code, error.exit_code) == ("CloudUnreachable", Exit.UNREACHABLE)
    assert (cloud.resources.resource_groups.get("g").tags == {"new": "yes"}) is done
    waited = (cloud.clock.now() - began).total_seconds()
    assert waited == 300 if kind == "hang" else waited < 1  # azure-core waits 300 s for an answer


def test_a_rule_strikes_as_often_as_asked_however_many_ask_at_once(tmp_path: Path) -> None:
    views = [open_cloud(tmp_path) for _ in range(4)]
    views[0].azure.add_fault("503", on="Subscriptions_List", count=5)
    with ThreadPoolExecutor(4) as together:
        said = list(
            together.map(lambda n: views[n % 4].call("GET", "https://x/subscriptions" + VERSION).status, range(40))
        )
    assert said.count(503) == 5 and said.count(200) == 35
    assert views[3].azure.fault_rules()[0].struck == 5
    for view in views:
        view.azure.close()


def test_a_rule_holds_until_it_is_cleared_and_its_draws_are_those_of_its_seed(cloud: Cloud) -> None:
    cloud.group()

    def struck(seed: int) -> list[int]:
        cloud.azure.clear_faults()
        cloud.azure.add_fault("503", on="ResourceGroups_*", count=None, probability=0.5, seed=seed)
        return [cloud.call("GET", "/resourceGroups/g").status for _ in range(24)]

    first = struck(1)
    assert set(first) == {200, 503}
    assert struck(1) == first
    assert struck(2) != first
    rule = cloud.azure.fault_rules()[0]
    assert rule.seen == 24 and 0 < rule.struck < 24


# VMs, scripts, groups


def test_an_eviction_without_notice_and_one_while_the_vm_is_made(cloud: Cloud) -> None:
    cloud.vm()
    cloud.azure.add_fault("evict", on="VirtualMachines_InstanceView")
    assert cloud.power() == "deallocating"
    cloud.await_power("deallocated")
    cloud.azure.add_fault("evict-creating")
    made = put(cloud, "other", storageProfile=_disk("other")).result()
    assert made.provisioning_state == "Succeeded"
    cloud.await_power("deallocated", "other")
    cloud.azure.add_fault("evict-creating")
    poller = put(cloud, "third", evictionPolicy="Delete", storageProfile=_disk("third"))
    error = told(poller.result)
    assert (error.code, error.blocks) == ("EvictedWhileMade", Blocks.NOTHING)
    assert cloud.call("GET", VM.replace("/vm", "/third")).body["error"]["code"] == "NotFound"
    cloud.azure.close()  # waits for the work in hand
    assert len(cloud.machines.strays()) == 2


def test_a_script_that_was_lost_half_way_is_a_success_that_did_not_finish(cloud: Cloud) -> None:
    vm = cloud.vm()
    cloud.azure.add_fault("lose-script", count=2)
    action = cloud.compute.virtual_machines.begin_run_command(
        "g", "vm", {"commandId": "RunShellScript", "script": ["sleep"]}
    ).result()
    assert action.value[0].message == "Enable succeeded: Last script execution didn't finish."
    assert action.value[0].code == "ProvisioningState/succeeded"
    body = {
        "location": "eastus",
        "properties": {"source": {"script": "#test: Succeeded said-the-marker"}, "asyncExecution": True},
    }
    commands = cloud.compute.virtual_machine_run_commands
    commands.begin_create_or_update("g", "vm", "go", body).result()
    view = commands.get_by_virtual_machine("g", "vm", "go", expand="instanceView").instance_view
    assert (view.execution_state, view.exit_code) == ("Succeeded", 0)
    assert view.output and not view.output.endswith("marker")
    assert {script["state"] for script in cloud.machines.scripts(vm.vm_id).values()} == {"Canceled", "Succeeded"}


def test_another_run_command_in_progress_is_a_conflict_to_wait_for(cloud: Cloud) -> None:
    cloud.vm()
    cloud.azure.add_fault("busy")
    command = {"commandId": "RunShellScript", "script": ["#test: Succeeded hi"]}
    error = told(lambda: cloud.compute.virtual_machines.begin_run_command("g", "vm", command))
    assert (error.code, error.blocks) == ("RunCommandBusy", Blocks.NOTHING)


def test_the_whole_group_can_go_away(cloud: Cloud) -> None:
    cloud.vm()
    cloud.azure.add_fault("delete-group", on="VirtualMachines_Restart")
    error = told(lambda: cloud.compute.virtual_machines.begin_restart("g", "vm").result())
    assert (error.code, error.blocks) == ("ResourceGroupBeingDeleted", Blocks.NOTHING)
    cloud.clock.sleep(5)
    assert cloud.call("GET", "/resourceGroups/g").status == 404
    assert cloud.machines.strays() == []


def test_an_operation_that_fails_late_leaves_what_was_there(cloud: Cloud) -> None:
    cloud.vm()
    for action, method in (
        ("VirtualMachines_Deallocate", "begin_deallocate"),
        ("VirtualMachines_Delete", "begin_delete"),
    ):
        cloud.azure.add_fault("fail-late", on=action, code="InternalExecutionError")
        told(lambda method=method: getattr(cloud.compute.virtual_machines, method)("g", "vm").result())
        assert cloud.power() == "running"
    cloud.azure.add_fault("fail-late", on="ResourceGroups_Delete", code="InternalExecutionError")
    told(lambda: cloud.resources.resource_groups.begin_delete("g").result())
    assert cloud.resources.resource_groups.get("g").properties.provisioning_state == "Succeeded"
    cloud.azure.add_fault("fail-late", on="VirtualNetworks_CreateOrUpdate", code="InternalExecutionError")
    told(lambda: cloud.net())
    assert cloud.network.virtual_networks.get("g", "vnet").provisioning_state == "Failed"
    cloud.resources.resource_groups.begin_delete("g").result()
    assert cloud.machines.strays() == []


@pytest.mark.parametrize(
    ("kind", "terms", "says"),
    [
        ("504", {}, "429"),
        ("refuse", {"code": "SkuNotAvailabel"}, "SkuNotAvailable"),
        ("503", {"on": "VirtualMachine_Start"}, "VirtualMachines_Start"),
        ("503", {"on": "FETCH */x"}, "FETCH"),
        ("503", {"count": 0}, "--count"),
        ("503", {"after": -1}, "--after"),
        ("503", {"probability": 1.5}, "--probability"),
        ("hang", {"retry_after": 1}, "--retry-after"),
        ("429", {"retry_after": 0}, "--retry-after"),
        ("hang", {"seconds": 0.0}, "--seconds"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_with_what_could(
    cloud: Cloud, kind: str, terms: dict[str, Any], says: str
) -> None:
    with pytest.raises(NotUnderstood, match=says):
        cloud.azure.add_fault(kind, **terms)
    assert cloud.azure.fault_rules() == []


def test_azure_core_repeats_the_very_request_that_we_rely_on() -> None:
    """Of azure-core we change one rule: POST and PATCH after 429, when nothing was done, are sent again too."""
    from cloudtrain.azure.retries import AZURE, EMBEDDED, Retries

    class Answer:
        def __init__(self, status_code: int) -> None:
            self.status_code = status_code

    class Post:
        method = "POST"

    for pace in (AZURE, EMBEDDED):
        ours = Retries(pace)
        assert ours._is_method_retryable(ours.configure_retries({}), Post(), Answer(429))
        assert not ours._is_method_retryable(ours.configure_retries({}), Post(), Answer(409))
    theirs = RetryPolicy()
    assert not theirs._is_method_retryable(theirs.configure_retries({}), Post(), Answer(429))


def test_every_profile_of_durations_knows_every_operation() -> None:
    from cloudtrain.emulator import timing

    for profile in timing.PROFILES.values():
        assert set(profile) == set(timing.REHEARSAL)


# storage


def a_container(cloud: Cloud) -> Any:
    cloud.account()
    return cloud.blobs(credential=cloud.key()).create_container("run")


@pytest.mark.parametrize(("kind", "code"), [("503", "ServerBusy"), ("500", "InternalError")])
def test_storage_is_away_until_the_fault_is_cleared(cloud: Cloud, kind: str, code: str) -> None:
    container = a_container(cloud)
    cloud.azure.add_fault(kind, on="Blobs_*", count=None)
    for action in (lambda: container.upload_blob("b", b"x"), lambda: list(container.list_blobs())):
        with pytest.raises(HttpResponseError) as caught:
            action()
        assert (caught.value.status_code, caught.value.error_code) == (int(kind), code)
    assert cloud.key()  # Resource Manager answers
    cloud.azure.clear_faults()
    container.upload_blob("b", b"x")


def test_a_fault_strikes_the_blobs_that_its_address_names(cloud: Cloud) -> None:
    container = a_container(cloud)
    cloud.azure.add_fault("503", on="PUT https://acct.blob.core.windows.net/run/models/*", count=None)
    container.upload_blob("logs/a", b"x")
    with pytest.raises(HttpResponseError):
        container.upload_blob("models/a b", b"x")
    assert [blob.name for blob in container.list_blobs()] == ["logs/a"]


def test_an_upload_whose_answer_is_lost_is_done_all_the_same(cloud: Cloud) -> None:
    container = a_container(cloud)
    cloud.azure.add_fault("drop-before", on="Blobs_PutBlob")
    cloud.azure.add_fault("drop-after", on="Blobs_PutBlob")
    for there in (False, True):
        with pytest.raises(ServiceResponseError):
            container.upload_blob("b", b"x", overwrite=True)
        assert container.get_blob_client("b").exists() is there
    container.upload_blob("b", b"y", overwrite=True)


def test_a_storage_that_hangs_is_given_up(cloud: Cloud) -> None:
    container = a_container(cloud)
    cloud.azure.add_fault("hang", on="Blobs_PutBlock", seconds=600)
    before = cloud.clock.now()
    with pytest.raises(ServiceResponseError):
        container.get_blob_client("b").stage_block("AAAA", b"x", read_timeout=20)
    assert (cloud.clock.now() - before).total_seconds() == 20


def test_a_fault_for_everything_strikes_no_blob(cloud: Cloud) -> None:
    container = a_container(cloud)
    cloud.azure.add_fault("503", count=None)
    container.upload_blob("b", b"x")
    with pytest.raises(HttpResponseError):
        cloud.resources.resource_groups.get("g")


def test_what_only_machines_can_suffer_is_no_fault_of_a_blob(cloud: Cloud) -> None:
    with pytest.raises(NotUnderstood, match="Requests for blobs are struck by 500, 503"):
        cloud.azure.add_fault("evict", on="Blobs_PutBlob")
    with pytest.raises(NotUnderstood, match="Did you mean Blobs_PutBlob"):
        cloud.azure.add_fault("503", on="Blobs_PutBlub")
