"""Nothing in an answer that the Azure SDK's own models do not know, and nothing of another type."""

import sys
import typing
from typing import Any, Union

from azure.mgmt.compute import models as compute
from azure.mgmt.network import models as network
from azure.mgmt.resource.resources import models as resources

from .conftest import Cloud

# In Azure's answers (recorded in 2024 and 2025) and not in the models.
BESIDE_THE_MODELS = {"NetworkInterface": {"kind"}, "NetworkInterfacePropertiesFormat": {"allowPort25Out"}}


def strangers(model: Any, body: Any, path: str = "$") -> list[str]:
    """Where a body has keys that its model does not know, or a list or object where another thing belongs."""
    model.__new__(model)  # the model base makes its table of fields with the first instance
    hints = _hints(model)
    fields = {field._rest_name: hints[name] for name, field in model._attr_to_rest_field.items() if name in hints}
    found = []
    for key, value in body.items():
        here = f"{path}.{key}"
        if key in fields:
            found += _misfits(_without_none(fields[key]), value, here)
        elif key not in BESIDE_THE_MODELS.get(model.__name__, set()):
            found.append(f"{here} is not of {model.__name__}")
    return found


def _hints(model: Any) -> dict[str, Any]:
    package = sys.modules[model.__module__.rpartition(".models.")[0] + ".models"]
    return typing.get_type_hints(model, localns={"_models": package})


def _without_none(hint: Any) -> Any:
    """Of the kinds that a union allows, the one that says most: a model, else a list, else the first."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if typing.get_origin(hint) is not Union or not kinds:
        return hint
    return next((kind for kind in kinds if hasattr(kind, "_is_model")), kinds[0])


def _misfits(kind: Any, value: Any, path: str) -> list[str]:
    if typing.get_origin(kind) is list:
        if not isinstance(value, list):
            return [f"{path} is no list"]
        inner = _without_none(typing.get_args(kind)[0])
        return [misfit for entry in value for misfit in _misfits(inner, entry, f"{path}[]")]
    if hasattr(kind, "_is_model"):
        return strangers(kind, value, path) if isinstance(value, dict) else [f"{path} is no object"]
    wanted = {str: str, bool: bool, int: int, float: (int, float)}.get(kind)
    return [] if wanted is None or isinstance(value, wanted) else [f"{path} is no {kind.__name__}"]


def test_every_resource_of_a_run_fits_its_model(cloud: Cloud) -> None:
    nsg = {"location": "eastus", "properties": {}}
    cloud.group()
    cloud.network.network_security_groups.begin_create_or_update("g", "nsg", nsg).result()
    cloud.vm(
        scheduledEventsPolicy={"userInitiatedReboot": {"automaticallyApprove": True}},
        diagnosticsProfile={"bootDiagnostics": {"enabled": True}},
    )
    path = "/resourceGroups/g/providers/Microsoft."
    command = {"location": "eastus", "properties": {"source": {"script": "#test: Succeeded"}}}
    cloud.finish(cloud.call("PUT", f"{path}Compute/virtualMachines/vm/runCommands/go", command))
    lists = {
        f"{path}Compute/virtualMachines?$expand=instanceView": compute.VirtualMachine,
        f"{path}Compute/virtualMachines/vm/runCommands?$expand=instanceView": compute.VirtualMachineRunCommand,
        f"{path}Compute/disks": compute.Disk,
        f"{path}Network/virtualNetworks": network.VirtualNetwork,
        f"{path}Network/networkSecurityGroups": network.NetworkSecurityGroup,
        f"{path}Network/publicIPAddresses": network.PublicIPAddress,
        f"{path}Network/networkInterfaces": network.NetworkInterface,
        "/resourcegroups": resources.ResourceGroup,
        "/resourceGroups/g/resources": resources.GenericResourceExpanded,
        "/providers/Microsoft.Compute/skus": compute.ResourceSku,
        "/providers/Microsoft.Compute/locations/eastus/usages": compute.Usage,
        "/providers/Microsoft.Compute/locations/eastus/vmSizes": compute.VirtualMachineSize,
        "/providers/Microsoft.Network/networkWatchers": network.NetworkWatcher,
        "/providers": resources.Provider,
    }
    for url, model in lists.items():
        bodies = cloud.call("GET", url).body["value"]
        assert bodies, url
        assert sorted({misfit for body in bodies for misfit in strangers(model, body)}) == [], url


def test_the_check_itself_sees_a_stranger_deep_inside() -> None:
    body = {"properties": {"storageProfile": {"osDisk": {"colour": "blue"}}}}
    assert strangers(compute.VirtualMachine, body) == ["$.properties.storageProfile.osDisk.colour is not of OSDisk"]
