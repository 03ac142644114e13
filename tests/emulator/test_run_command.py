"""RunCommand: the action, and managed commands, with what is odd about each."""

from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import ResourceExistsError

from cloudtrain.emulator.machines import OffCause

from .conftest import Cloud, open_cloud

VM = "/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm"
GO = f"{VM}/runCommands/go"


def action(*lines: str, **rest: Any) -> dict[str, Any]:
    return {"commandId": "RunShellScript", "script": list(lines), **rest}


def managed(script: str | None = None, **properties: Any) -> dict[str, Any]:
    source = {} if script is None else {"script": script}
    return {"location": "eastus", "properties": {"source": source, "asyncExecution": False, **properties}}


def view(cloud: Cloud) -> dict[str, Any]:
    return cloud.call("GET", f"{GO}?$expand=instanceView").body["properties"]["instanceView"]


# the action


def test_the_action_answers_one_entry_with_both_streams(cloud: Cloud) -> None:
    cloud.vm()
    begun = cloud.call("POST", f"{VM}/runCommand", action("#test: Succeeded hi"))
    assert (begun.status, begun.body) == (202, None)
    entry = {
        "code": "ProvisioningState/succeeded",
        "level": "Info",
        "displayStatus": "Provisioning succeeded",
        "message": "Enable succeeded: \n[stdout]\nhi\n[stderr]\n",
    }
    assert cloud.finish(begun).body["properties"] == {"output": {"value": [entry]}}
    assert cloud.call("GET", begun.headers["Location"]).body == {"value": [entry]}
    result = cloud.compute.virtual_machines.begin_run_command("g", "vm", action("#test: Succeeded x")).result()
    assert result.value[0].message == "Enable succeeded: \n[stdout]\nx\n[stderr]\n"


def test_the_action_reports_success_for_a_failing_script(cloud: Cloud) -> None:
    cloud.vm()
    status = cloud.finish(cloud.call("POST", f"{VM}/runCommand", action("#test: Failed no")))
    assert status.body["status"] == "Succeeded"
    assert "exit" not in status.body["properties"]["output"]["value"][0]["message"]


def test_lines_are_joined_and_parameters_become_arguments_or_variables(cloud: Cloud) -> None:
    vm = cloud.vm()
    parameters = [{"name": "A", "value": "1"}, {"name": "", "value": "two"}]
    cloud.call("POST", f"{VM}/runCommand", action("a", "b", parameters=parameters))
    script = next(iter(cloud.machines.scripts(vm.vm_id).values()))
    assert (script["text"], script["flavour"]) == ("a\nb", "action")
    assert (script["arguments"], script["environment"]) == (["two"], {"A": "1"})


def test_only_one_action_at_a_time(cloud: Cloud) -> None:
    vm = cloud.vm()
    first = cloud.call("POST", f"{VM}/runCommand", action("sleep"))
    second = cloud.call("POST", f"{VM}/runCommand", action("sleep"))
    assert (second.status, second.body["error"]["code"]) == (409, "Conflict")
    assert second.body["error"]["message"].startswith("Run command extension execution is in progress.")
    assert cloud.call("GET", first.headers["Location"]).status == 202
    cloud.machines.finish(vm.vm_id, next(iter(cloud.machines.scripts(vm.vm_id))), "Succeeded")
    cloud.finish(first)
    assert cloud.call("POST", f"{VM}/runCommand", action("sleep")).status == 202


def test_the_action_needs_a_running_vm(cloud: Cloud) -> None:
    cloud.vm()
    cloud.compute.virtual_machines.begin_deallocate("g", "vm").result()
    with pytest.raises(ResourceExistsError) as caught:
        cloud.compute.virtual_machines.begin_run_command("g", "vm", action("x")).result()
    assert caught.value.error.code == "OperationNotAllowed"


def test_a_script_that_a_reboot_cut_off_did_not_finish_and_still_succeeds(cloud: Cloud) -> None:
    vm = cloud.vm()
    begun = cloud.call("POST", f"{VM}/runCommand", action("sleep"))
    cloud.machines.reboot(vm.vm_id)
    status = cloud.finish(begun)
    message = status.body["properties"]["output"]["value"][0]["message"]
    assert message == "Enable succeeded: Last script execution didn't finish."
    assert len(cloud.machines.scripts(vm.vm_id)) == 1


def test_a_script_whose_vm_went_away_fails(cloud: Cloud) -> None:
    vm = cloud.vm()
    begun = cloud.call("POST", f"{VM}/runCommand", action("sleep"))
    cloud.machines.cut(vm.vm_id, OffCause.EVICTED)
    assert cloud.finish(begun).body["error"]["code"] == "OperationPreempted"


def test_an_unknown_command_id_is_not_found(cloud: Cloud) -> None:
    cloud.vm()
    reply = cloud.call("POST", f"{VM}/runCommand", {"commandId": "RunPerl"})
    assert (reply.status, reply.body["error"]["code"]) == (404, "NotFound")


def test_a_script_waits_for_the_agent(cloud: Cloud) -> None:
    vm = cloud.vm()
    cloud.machines.ready = False
    begun = cloud.call("POST", f"{VM}/runCommand", action("#test: Succeeded late"))
    for _ in range(3):
        cloud.clock.sleep(1)
        assert cloud.call("GET", begun.headers["Azure-AsyncOperation"]).body["status"] == "InProgress"
    assert cloud.machines.scripts(vm.vm_id) == {}
    cloud.machines.ready = True
    assert "late" in str(cloud.finish(begun).body)


# managed commands


def test_a_put_is_201_creating_without_location_and_the_view_only_when_asked_for(cloud: Cloud) -> None:
    cloud.vm()
    begun = cloud.call("PUT", GO, managed("#test: Succeeded out"))
    assert begun.status == 201
    assert begun.body["properties"]["provisioningState"] == "Creating"
    assert begun.body["properties"]["timeoutInSeconds"] == 0
    assert begun.body["properties"]["asyncExecution"] is False
    assert "Location" not in begun.headers
    assert cloud.finish(begun).body["status"] == "Succeeded"
    shown = cloud.call("GET", GO).body["properties"]
    assert shown["provisioningState"] == "Succeeded"
    assert "instanceView" not in shown
    seen = view(cloud)
    assert (seen["executionState"], seen["executionMessage"]) == ("Succeeded", "Execution completed")
    assert (seen["exitCode"], seen["output"], seen["error"]) == (0, "out", "")
    assert cloud.call("PUT", GO, managed("#test: Succeeded out")).status == 200


def test_a_command_without_a_script_succeeds_runs_forever_and_exits_with_0(cloud: Cloud) -> None:
    vm = cloud.vm()
    assert cloud.finish(cloud.call("PUT", GO, managed())).body["status"] == "Succeeded"
    seen = view(cloud)
    assert (seen["executionState"], seen["exitCode"], seen["output"]) == ("Running", 0, "")
    assert seen["executionMessage"].startswith("Execution failed: failed to get configuration")
    assert seen["startTime"] == seen["endTime"]
    assert cloud.machines.scripts(vm.vm_id) == {}


def test_a_failing_script_leaves_provisioning_succeeded_unless_told_otherwise(cloud: Cloud) -> None:
    cloud.vm()
    cloud.finish(cloud.call("PUT", GO, managed("#test: Failed no")))
    seen = view(cloud)
    assert (seen["executionState"], seen["exitCode"]) == ("Failed", 3)
    assert seen["executionMessage"].endswith("command terminated with exit status=3")
    assert cloud.call("GET", GO).body["properties"]["provisioningState"] == "Succeeded"
    strict = cloud.call("PUT", GO, managed("#test: Failed no", treatFailureAsDeploymentFailure=True))
    assert cloud.finish(strict).body["status"] == "Failed"
    assert cloud.call("GET", GO).body["properties"]["provisioningState"] == "Failed"


def test_an_asynchronous_command_is_provisioned_once_it_has_started(cloud: Cloud) -> None:
    vm = cloud.vm()
    cloud.finish(cloud.call("PUT", GO, managed("sleep", asyncExecution=True)))
    key = next(iter(cloud.machines.scripts(vm.vm_id)))
    assert (view(cloud)["executionState"], view(cloud)["executionMessage"]) == (
        "Running",
        "Execution in progress",
    )
    cloud.machines.finish(vm.vm_id, key, "Running", "half ")
    assert view(cloud)["output"] == "half "
    assert "endTime" not in view(cloud)
    cloud.machines.finish(vm.vm_id, key, "Succeeded", "half whole")
    assert (view(cloud)["executionState"], view(cloud)["output"]) == ("Succeeded", "half whole")


def test_a_synchronous_command_is_in_progress_until_its_script_ends(cloud: Cloud) -> None:
    vm = cloud.vm()
    begun = cloud.call("PUT", GO, managed("sleep"))
    cloud.clock.sleep(10)
    assert cloud.call("GET", begun.headers["Azure-AsyncOperation"]).body["status"] == "InProgress"
    cloud.machines.finish(vm.vm_id, next(iter(cloud.machines.scripts(vm.vm_id))), "Succeeded")
    assert cloud.finish(begun).body["status"] == "Succeeded"


def test_the_same_name_again_ends_the_run_before_it_and_others_go_on(cloud: Cloud) -> None:
    vm = cloud.vm()
    other = f"{VM}/runCommands/other"
    for path in (GO, other, GO):
        cloud.finish(cloud.call("PUT", path, managed("sleep", asyncExecution=True)))
    states = {key: script["state"] for key, script in cloud.machines.scripts(vm.vm_id).items()}
    assert states == {"go/1": "Canceled", "other/2": "Running", "go/3": "Running"}


def test_deletion_ends_a_running_script(cloud: Cloud) -> None:
    vm = cloud.vm()
    cloud.finish(cloud.call("PUT", GO, managed("sleep", asyncExecution=True)))
    begun = cloud.call("DELETE", GO)
    assert (begun.status, {"Location", "Azure-AsyncOperation"} <= set(begun.headers)) == (202, True)
    cloud.finish(begun)
    assert cloud.machines.scripts(vm.vm_id)["go/1"]["state"] == "Canceled"
    assert cloud.call("GET", f"{VM}/runCommands").body == {"value": []}
    assert cloud.call("GET", GO).status == 404
    assert cloud.call("DELETE", GO).status == 204


def test_a_patch_is_200_updating_and_runs_again(cloud: Cloud) -> None:
    vm = cloud.vm()
    cloud.finish(cloud.call("PUT", GO, managed()))
    changes = {
        "source": {"script": "#test: Succeeded new"},
        "parameters": [{"name": "arg1", "value": "f1"}],
        "runAsUser": "user1",
        "timeoutInSeconds": 3600,
    }
    begun = cloud.call("PATCH", GO, {"properties": changes})
    assert (begun.status, begun.body["properties"]["provisioningState"]) == (200, "Updating")
    cloud.finish(begun)
    shown = cloud.call("GET", GO).body["properties"]
    assert {key: shown[key] for key in changes} == changes
    assert cloud.machines.scripts(vm.vm_id)["go/1"]["environment"] == {"arg1": "f1"}


def test_protected_parameters_reach_the_script_and_are_kept_nowhere(cloud: Cloud) -> None:
    vm = cloud.vm()
    cloud.machines.ready = False
    protected = [{"name": "SECRET", "value": "hunter2hunter2"}]
    begun = cloud.call("PUT", GO, managed("#test: Succeeded", protectedParameters=protected))
    root = cloud.azure.root
    assert "protectedParameters" not in begun.body["properties"]
    assert not _holds(root, b"hunter2hunter2")
    cloud.machines.ready = True
    cloud.finish(begun)
    assert cloud.machines.scripts(vm.vm_id)["go/1"]["environment"] == {"SECRET": "hunter2hunter2"}
    assert "protectedParameters" not in cloud.call("GET", GO).body["properties"]
    assert not _holds(root, b"hunter2hunter2")


def _holds(root: Path, secret: bytes) -> bool:
    return any(secret in path.read_bytes() for path in root.glob("azure.db*"))


def test_commands_need_a_running_vm(cloud: Cloud) -> None:
    cloud.vm()
    cloud.compute.virtual_machines.begin_deallocate("g", "vm").result()
    reply = cloud.call("PUT", GO, managed("x"))
    assert (reply.status, reply.body["error"]["code"]) == (409, "OperationNotAllowed")
    assert reply.body["error"]["message"] == "Cannot modify extensions in the VM when the VM is not running."


def test_an_evicted_vms_command_has_failed_and_its_output_can_still_be_read(cloud: Cloud) -> None:
    vm = cloud.vm()
    cloud.finish(cloud.call("PUT", GO, managed("sleep", asyncExecution=True)))
    cloud.machines.finish(vm.vm_id, "go/1", "Running", "so far")
    cloud.machines.cut(vm.vm_id, OffCause.EVICTED)
    seen = view(cloud)
    assert (seen["executionState"], seen["output"]) == ("Failed", "so far")


def test_what_is_not_emulated_of_a_command_says_so(cloud: Cloud) -> None:
    cloud.vm()
    body = managed("x", outputBlobUri="https://account.blob.core.windows.net/c/o")
    reply = cloud.call("PUT", GO, body)
    assert (reply.status, reply.body["error"]["code"]) == (501, "OperationNotEmulated")
    assert "outputBlobUri" in reply.body["error"]["message"]


def test_the_built_in_documents_are_listed(cloud: Cloud) -> None:
    path = "/providers/Microsoft.Compute/locations/eastus/runCommands"
    names = {document["id"] for document in cloud.call("GET", path).body["value"]}
    assert "RunShellScript" in names
    one = cloud.call("GET", f"{path}/RunShellScript").body
    assert one["script"][0] == "echo This is a sample script"


def test_a_command_goes_with_its_vm(cloud: Cloud, tmp_path: Path) -> None:
    cloud.vm()
    cloud.finish(cloud.call("PUT", GO, managed("sleep", asyncExecution=True)))
    cloud.compute.virtual_machines.begin_delete("g", "vm").result()
    kinds = {r.type for r in cloud.resources.resources.list_by_resource_group("g")}
    assert kinds == {"Microsoft.Network/virtualNetworks"}
    assert open_cloud(tmp_path / "other").call("GET", GO).status == 404
