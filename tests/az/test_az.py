"""The real `az` against the embedded Azure, unpatched: the commands of a VM's life, and the tutorial's."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Az

pytestmark = pytest.mark.az

VM = "-g rehearsal -n vm"
CREATE = f"az vm create {VM} --image Ubuntu2204 --priority Spot --max-price 0.5 --generate-ssh-keys --only-show-errors"


def codes(az: Az, vm: str = VM) -> list[str]:
    found: list[str] = az.told(f"az vm get-instance-view {vm} --query instanceView.statuses[].code")
    return found


def until(holds: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_life_of_a_vm(az: Az) -> None:
    assert az("az group exists -n rehearsal").json is False
    made = az.told("az group create -n rehearsal -l westeurope --tags course=devops")
    assert (made["location"], made["properties"]["provisioningState"]) == ("westeurope", "Succeeded")
    assert az("az group exists -n rehearsal").json is True
    assert az.told("az group show -n rehearsal")["tags"] == {"course": "devops"}

    skus = az.told("az vm list-skus -l westeurope --size Standard_D2s --all")
    assert "Standard_D2s_v3" in [sku["name"] for sku in skus]
    limits = {one["name"]["value"]: one["limit"] for one in az.told("az vm list-usage -l westeurope")}
    assert int(limits["lowPriorityCores"]) == 16
    urn = "nvidia:tensorflow_from_nvidia:gen2_21-06-0:latest"
    refused = az(f"{CREATE.replace('Ubuntu2204', urn)} --size Standard_D2s_v3")
    assert refused.code == 1 and "MarketplacePurchaseEligibilityFailed" in refused.err
    assert az.told(f"az vm image accept-terms --urn {urn} --only-show-errors")["accepted"] is True

    refused = az(f"{CREATE} --size Standard_B2s")
    assert refused.code != 0 and "AzureSpotIsNotSupportedForThisVMSize" in refused.err
    vm = az.told(f"{CREATE} --size Standard_D2s_v3 --os-disk-size-gb 64 --custom-data 'hello'")
    assert (vm["powerState"], vm["privateIpAddress"]) == ("VM running", "10.0.0.4")
    shown = az.told(f"az vm show {VM}")
    assert (shown["priority"], shown["billingProfile"]["maxPrice"]) == ("Spot", 0.5)
    assert [one["name"] for one in az.told("az vm list -g rehearsal")] == ["vm"]
    (addresses,) = az.told(f"az vm list-ip-addresses {VM}")
    assert addresses["virtualMachine"]["network"]["publicIpAddresses"][0]["ipAddress"] == vm["publicIpAddress"]
    types = [one["type"].rpartition("/")[2] for one in az.told("az resource list -g rehearsal")]
    assert sorted(types) == [
        "disks",
        "networkInterfaces",
        "networkSecurityGroups",
        "publicIPAddresses",
        "virtualMachines",
        "virtualNetworks",
    ]
    assert az.told("az deployment group list -g rehearsal --query [].properties.provisioningState") == ["Succeeded"]

    for verb, left in (("stop", "stopped"), ("start", "running"), ("deallocate", "deallocated"), ("start", "running")):
        az.told(f"az vm {verb} {VM} --only-show-errors")
        assert codes(az) == ["ProvisioningState/succeeded", f"PowerState/{left}"]
    az.told(f"az vm simulate-eviction {VM}")
    refused = az("az vm simulate-eviction -g rehearsal -n other")
    assert refused.code == 3 and "ResourceNotFound" in refused.err
    az.told(f"az vm delete {VM} --yes")
    assert az.told("az vm list -g rehearsal") == []
    az.told("az group delete -n rehearsal --yes")
    assert az("az group show -n rehearsal").code == 3


def test_the_life_of_a_storage_account(az: Az) -> None:
    here = "-g rehearsal -n rehearsaldata"
    az.told("az group create -n rehearsal -l westeurope")
    assert az.told("az storage account check-name -n rehearsaldata")["nameAvailable"] is True
    create = f"az storage account create {here} --sku Standard_LRS --min-tls-version TLS1_2 --only-show-errors"
    made = az.told(f"{create} --allow-blob-public-access false")
    assert (made["provisioningState"], made["minimumTlsVersion"]) == ("Succeeded", "TLS1_2")
    assert az.told("az storage account check-name -n rehearsaldata")["reason"] == "AlreadyExists"
    assert [one["name"] for one in az.told("az storage account list -g rehearsal")] == ["rehearsaldata"]
    changed = az.told(f"az storage account update {here} --allow-shared-key-access false")
    assert changed["allowSharedKeyAccess"] is False
    before = az.told(f"az storage account keys list {here}")
    after = az.told(f"az storage account keys renew {here} --key key1")
    assert [old["value"] == new["value"] for old, new in zip(before, after, strict=True)] == [False, True]
    container = "--storage-account rehearsaldata -g rehearsal"
    assert az.told(f"az storage container-rm create {container} -n runs")["name"] == "runs"
    assert [one["name"] for one in az.told(f"az storage container-rm list {container}")] == ["runs"]
    refused = az("az storage account create -g rehearsal -n Bad_Name")
    assert refused.code == 1 and "AccountNameInvalid" in refused.err
    az.told(f"az storage account delete {here} --yes")
    assert az.told("az resource list -g rehearsal") == []
    az.told("az group delete -n rehearsal --yes")


# As they stand in the tutorial, but for the image, which it chooses in the portal.

CREATE_TUTORIAL = """az group create --name tutorial-resource-group --location westus2 --output none &&
az vm create -g tutorial-resource-group -n cloud-training --image Ubuntu2204 --priority Spot --size Standard_D2s_v3 \
  --generate-ssh-keys --output none --only-show-errors"""
INVOKE = "az vm run-command invoke -g tutorial-resource-group -n cloud-training --command-id RunShellScript --scripts "
MAKE = rf"""{INVOKE}"
mkdir /tutorial
mkdir /tutorial/models
touch /tutorial/models/log.txt
touch /tutorial/startup-script.sh
cat <<EOF > /tutorial/startup-script.sh
#\!/bin/bash
docker container run -v /tutorial/models:/app/Saved_Model miltonius/cloud_trainingv2 
EOF
chmod +x /tutorial/startup-script.sh"
"""
SCHEDULE = rf"""{INVOKE}"
sudo crontab -l > cron_bkp
sudo echo '@reboot sudo /tutorial/startup-script.sh >/dev/null 2>&1' >> cron_bkp
sudo crontab cron_bkp
sudo rm cron_bkp"
"""
START = rf"""{INVOKE}"
/tutorial/startup-script.sh"
"""
RESTART = "az vm restart --name cloud-training --resource-group tutorial-resource-group"
LOOK = rf"""{INVOKE}"
cat /tutorial/models/log.txt"
"""


def message(told: dict[str, list[dict[str, str]]]) -> str:
    (entry,) = told["value"]
    assert (entry["code"], entry["displayStatus"]) == ("ProvisioningState/succeeded", "Provisioning succeeded")
    return entry["message"]


def test_the_tutorials_commands_do_what_they_did_on_azure(az: Az) -> None:
    az.told(CREATE_TUTORIAL)
    assert message(az.told(MAKE)) == "Enable succeeded: \n[stdout]\n\n[stderr]\n"
    (disk,) = Path(az.home / "emulator/vms").glob("*/disk")
    script = (disk / "tutorial/startup-script.sh").read_text()
    assert script == (
        "#\\!/bin/bash\ndocker container run -v /tutorial/models:/app/Saved_Model miltonius/cloud_trainingv2 \n"
    )
    assert message(az.told(SCHEDULE)) == "Enable succeeded: \n[stdout]\n\n[stderr]\nno crontab for root\n"

    log = disk / "tutorial/models/log.txt"
    starting = az.begin(START)  # docker runs in the foreground: the command lasts as long as training
    until(lambda: "Checkpoint saved" in log.read_text())
    az.told(RESTART)
    out, _ = starting.communicate(timeout=60)
    assert "Enable succeeded: Last script execution didn't finish." in out
    until(lambda: "Training has resumed" in log.read_text())  # by crontab
    journal = message(az.told(LOOK))
    assert journal.startswith("Enable succeeded: \n[stdout]\nTraining has begun at: ")
    assert "Resuming from Epoch Number: 1" in journal
    az.told("az group delete --name tutorial-resource-group --yes")
    assert not list((az.home / "emulator/vms").glob("*/disk"))
