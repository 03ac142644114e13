"""What is looked at before anything is made: `doctor`, `up`, `up --dry-run`; and the first day of a subscription."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from .conftest import CommandLine
from .test_face import terminal_output
from .untrained import billing, patches

CHECKS = [
    "credential",
    "subscription",
    "providers",
    "region",
    "size",
    "spot",
    "restriction",
    "quota",
    "vm_image",
    "terms",
    "price",
    "trainer_image",
    "run",
]


@pytest.fixture
def untrained(quick: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The quick command line; `up` needs no trainer."""
    for target, value in patches().items():
        monkeypatch.setattr(target, value)
    return quick


@pytest.fixture
def billed(untrained: Any, cloudtrain: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same, where --cloud azure is the embedded Azure in a session that bills."""
    monkeypatch.setattr("cloudtrain.azure.session._azure", billing(cloudtrain.home))
    return untrained


def states(told: Any) -> dict[str, str]:
    return {check["name"]: check["state"] for check in told.envelope["data"]["checks"]}


def of(told: Any, name: str) -> dict[str, str]:
    return next(check for check in told.envelope["data"]["checks"] if check["name"] == name)


def codes(told: Any) -> list[str]:
    return [error["code"] for error in told.envelope["errors"]]


def resources(quick: Any) -> list[str]:
    return quick("emulator", "status", "--json").envelope["data"]["resource_groups"]


def test_a_subscription_in_use_passes_every_check_and_doctor_changes_nothing(
    untrained: Any, cloudtrain: CommandLine
) -> None:
    told = untrained("doctor", "horses", "--json")
    assert told.code == 0 and told.envelope["ok"]
    assert states(told) == dict.fromkeys(CHECKS, "passed")
    assert resources(untrained) == [] and not list(cloudtrain.home.glob("runs/*"))
    text = untrained("doctor", "horses").out
    assert [line.split()[1] for line in text.splitlines() if line.startswith("passed")] == CHECKS
    assert "cloudtrain up horses" in text


def test_the_first_day_from_doctor_to_a_run(untrained: Any) -> None:
    untrained("emulator", "reset", "--fresh", "--yes")
    first = untrained("doctor", "horses", "--json")
    failed = {name for name, state in states(first).items() if state == "failed"}
    assert first.code == 4 and failed == {"providers", "terms"}
    assert "--register" in of(first, "providers")["fix"]
    assert "--accept-terms" in of(first, "terms")["fix"] and "https://" in of(first, "terms")["detail"]
    # Looking has changed nothing.
    assert states(untrained("doctor", "horses", "--json")) == states(first)
    mended = untrained("doctor", "horses", "--register", "--accept-terms", "--json")
    assert mended.code == 0 and set(states(mended).values()) == {"passed"}
    assert "https://" in mended.err
    up = untrained("up", "horses", "--json")
    assert up.code == 0 and up.envelope["data"]["state"] == "running"
    # Its own two cores are no reason against it, though only one is left.
    again = untrained("doctor", "horses", "--json")
    assert states(again)["quota"] == "passed" and "'horses' exists" in of(again, "run")["detail"]
    assert states(untrained("doctor", "another", "--json"))["quota"] == "failed"


def test_on_the_first_day_up_registers_by_itself_but_accepts_no_terms_unasked(untrained: Any) -> None:
    untrained("emulator", "reset", "--fresh", "--yes")
    refused = untrained("up", "horses", "--json")
    assert refused.code == 4 and codes(refused) == ["ResourcePurchaseValidationFailed"]
    assert "--accept-terms" in refused.error["hint"] and "https://" in refused.error["message"]
    planned = untrained("up", "horses", "--accept-terms", "--dry-run", "--json")
    assert planned.code == 0 and planned.envelope["data"]["terms"].startswith("https://")
    assert planned.envelope["data"]["registers"] == [
        "Microsoft.Compute",
        "Microsoft.Network",
        "Microsoft.Storage",
        "Microsoft.MarketplaceOrdering",
    ]
    # What was refused has not even registered anything.
    assert states(untrained("doctor", "horses", "--json"))["providers"] == "failed"
    assert resources(untrained) == []
    up = untrained("up", "horses", "--accept-terms", "--json")
    assert up.code == 0 and up.envelope["data"]["created"]
    assert "https://" in up.err and "registering Microsoft.Compute" in up.err
    assert states(untrained("doctor", "horses", "--json"))["terms"] == "passed"


def test_terms_can_be_accepted_before_anything_else_is_registered(untrained: Any) -> None:
    untrained("emulator", "reset", "--fresh", "--yes")
    told = untrained("doctor", "horses", "--accept-terms", "--json")
    assert states(told)["terms"] == "passed"


def test_an_image_without_terms_needs_no_acceptance_nor_the_marketplace(untrained: Any) -> None:
    untrained("emulator", "reset", "--fresh", "--yes")
    told = untrained("doctor", "horses", "--vm-image", "ubuntu-hpc", "--json")
    assert states(told)["terms"] == "passed"
    assert "MarketplaceOrdering" not in of(told, "providers")["detail"]
    assert untrained("up", "horses", "--vm-image", "ubuntu-hpc", "--json").code == 0


@pytest.mark.parametrize(
    ("flags", "check", "code", "words"),
    [
        (("--location", "westurope"), "region", "LocationNotFound", "westeurope"),
        (("--size", "Standard_D2s_v33"), "size", "SizeNotFound", "Standard_D2s_v3"),
        (("--size", "Standard_B2s"), "spot", "AzureSpotIsNotSupportedForThisVMSize", "Standard_D2s_v3"),
        (("--size", "Standard_NC6s_v3"), "restriction", "SkuNotAvailable", "--location"),
        (("--size", "Standard_F16s_v2", "--location", "westus", "--max-price", "0.01"), "price", None, "--max-price"),
        (("--size", "Standard_NC64as_T4_v3"), "quota", "SpotQuotaExceeded", "Standard_NC16as_T4_v3"),
        (("--vm-image", "a:b:c:latest"), "vm_image", "ImageNotFound", "ubuntu-hpc"),
        (("--size", "Standard_D1_v2"), "vm_image", "ImageDoesNotFitSize", "--size"),
        (("--image", "team/trainer:1"), "trainer_image", None, "--cloud azure"),
    ],
)
def test_each_check_fails_with_its_fix_and_up_refuses_for_the_same_reason(
    untrained: Any, flags: tuple[str, ...], check: str, code: str | None, words: str
) -> None:
    told = untrained("doctor", "horses", *flags, "--json")
    assert [name for name, state in states(told).items() if state == "failed"] == [check]
    assert words in of(told, check)["fix"]
    refused = untrained("up", "horses", *flags, "--json")
    assert refused.code == told.code and refused.code in (2, 4)
    assert refused.error["hint"] == of(told, check)["fix"]
    assert code in (None, refused.error["code"])
    assert resources(untrained) == []


def test_a_size_that_the_kind_of_subscription_does_not_have_takes_another_one(untrained: Any) -> None:
    told = untrained("doctor", "horses", "--size", "Standard_NC40ads_H100_v5", "--json")
    assert "QuotaId" in of(told, "restriction")["detail"] and "--subscription" in of(told, "restriction")["fix"]
    # Its 40 cores are more than there are, too.
    assert [name for name, state in states(told).items() if state == "failed"] == ["restriction", "quota"]


def test_a_size_closed_in_one_zone_is_open_to_a_vm_without_a_zone(untrained: Any) -> None:
    told = untrained("doctor", "horses", "--size", "Standard_NC4as_T4_v3", "--json")
    assert states(told)["restriction"] == "passed" and "zone 3" in of(told, "restriction")["detail"]


def test_what_is_set_in_the_rehearsals_market_is_what_the_checks_see(untrained: Any) -> None:
    untrained("emulator", "set", "--spot-cores", "1", "--location", "eastus")
    untrained("emulator", "set", "--spot-price", "0.05", "--size", "Standard_D2s_v3")
    told = untrained("doctor", "horses", "--max-price", "0.04", "--json")
    assert [name for name, state in states(told).items() if state == "failed"] == ["quota", "price"]
    refused = untrained("up", "horses", "--max-price", "0.04", "--json").envelope["errors"]
    assert [(error["code"], error["blocks"]) for error in refused] == [
        ("SpotQuotaExceeded", "spot"),
        ("SpotPriceGreaterThanProvidedMaxPrice", "size"),
    ]


def test_up_names_everything_that_is_wrong_at_once(untrained: Any, cloudtrain: CommandLine) -> None:
    line = ("up", "horses", "--size", "Standard_B20ms", "--vm-image", "a:b:c:latest", "--image", "team/trainer:1")
    told = untrained(*line, "--json")
    assert told.code == 4 and told.envelope["data"] is None
    assert codes(told) == [
        "AzureSpotIsNotSupportedForThisVMSize",
        "SpotQuotaExceeded",
        "ImageNotFound",
        "InvalidSpec",
    ]
    assert all(error["hint"] for error in told.envelope["errors"])
    assert untrained(*line).err.count("error: ") == 4
    assert not [path for path in cloudtrain.made() if "horses" in path]


def test_a_price_list_out_of_reach_is_said_and_keeps_nobody_from_anything(
    untrained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise requests.exceptions.ConnectionError("no route to host")

    monkeypatch.setattr("cloudtrain.emulator.prices.answer", gone)
    told = untrained("doctor", "horses", "--json")
    assert told.code == 0 and states(told)["price"] == "unknown"
    assert "no route to host" in of(told, "price")["detail"]
    plan = untrained("up", "horses", "--max-price", "0.05", "--dry-run", "--json").envelope["data"]
    assert plan["price"]["spot"] is None and plan["price"]["at"] == ""
    assert (plan["price"]["most_an_hour"], plan["price"]["most_a_day"]) == (0.05, 1.2)
    assert "unknown" in untrained("up", "horses", "--dry-run").out
    up = untrained("up", "horses")
    assert up.code == 0 and "price: unknown" in up.err


def test_prices_are_read_over_all_pages(untrained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = of(untrained("doctor", "horses", "--json"), "price")["detail"]
    monkeypatch.setattr("cloudtrain.emulator.prices.PAGE", 1)
    assert of(untrained("doctor", "horses", "--json"), "price")["detail"] == whole
    assert "0.0192" in whole and "0.096" in whole


def test_a_price_list_that_makes_no_sense_is_unknown(untrained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloudtrain.emulator.wire import Answer

    for body in ([], {"Items": [{}]}, {"Items": [], "NextPageLink": "https://elsewhere.example/x"}):
        monkeypatch.setattr("cloudtrain.emulator.prices.answer", lambda *_, body=body: Answer(200, body))
        told = untrained("doctor", "horses", "--json")
        assert told.code == 0 and states(told)["price"] == "unknown"


@pytest.mark.parametrize(
    ("fields", "state", "code"),
    [
        ({"state": "Disabled"}, "failed", "ReadOnlyDisabledSubscription"),
        ({"state": "PastDue"}, "passed", None),
        ({"subscriptionPolicies": {"quotaId": "FreeTrial_2014-09-01"}}, "failed", "AzureSpotFeatureNotEnabledFor"),
        ({"subscriptionPolicies": {"quotaId": "AzureForStudents_2018-01-01"}}, "failed", "AzureSpotFeatureNotEnabled"),
    ],
)
def test_a_subscription_that_is_disabled_or_has_no_spot(
    untrained: Any, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], state: str, code: str | None
) -> None:
    from cloudtrain.emulator import providers

    ordinary = providers._subscription
    monkeypatch.setattr(providers, "_subscription", lambda *names: ordinary(*names) | fields)
    told = untrained("doctor", "horses", "--json")
    assert states(told)["subscription"] == state
    assert told.code == (0 if code is None else 4)
    assert code is None or codes(told)[0].startswith(code)


def test_a_login_without_rights_to_look_leaves_checks_unknown(untrained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from cloudtrain.emulator import app
    from cloudtrain.emulator.wire import ArmError

    def forbidden(*_: object, **__: object) -> None:
        raise ArmError(403, "AuthorizationFailed", "The client 'x' does not have authorization.")

    locked, match = ("Usage_List", "ResourceSkus_List"), app.match

    def matched(method: str, path: str) -> Any:
        route, names = match(method, path)
        return (replace(route, handler=forbidden) if route.operation in locked else route), names

    monkeypatch.setattr(app, "match", matched)
    told = untrained("doctor", "horses", "--json")
    assert told.code == 0
    unknown = {name for name, state in states(told).items() if state == "unknown"}
    assert unknown == {"size", "spot", "restriction", "quota"}
    assert "does not have authorization" in of(told, "quota")["detail"]


# the plan


def test_a_dry_run_prints_the_plan_and_makes_nothing(untrained: Any, cloudtrain: CommandLine) -> None:
    told = untrained("up", "horses", "--dry-run", "--max-price", "0.05", "--json")
    plan = told.envelope["data"]
    assert told.code == 0 and plan["action"] == "create" and not plan["bills"]
    (account,) = [one["name"] for one in plan["resources"] if one["type"] == "Microsoft.Storage/storageAccounts"]
    assert account.startswith("cthorses") and len(account) == 24
    assert [(one["type"], one["name"]) for one in plan["resources"] if not one["by_azure"]] == [
        ("Microsoft.Resources/resourceGroups", "cloudtrain-horses"),
        ("Microsoft.Network/networkSecurityGroups", "horses-nsg"),
        ("Microsoft.Network/virtualNetworks", "horses-vnet"),
        ("Microsoft.Storage/storageAccounts", account),
        ("Microsoft.Compute/virtualMachines", "horses-g1"),
        ("Microsoft.Network/networkInterfaces", "horses-g1-nic"),
        ("Microsoft.Network/publicIPAddresses", "horses-g1-ip"),
        ("Microsoft.Compute/disks", "horses-g1-disk"),
        ("Microsoft.Compute/virtualMachines/runCommands", "horses-g1/cloudtrain-start"),
    ]
    assert not any(one["exists"] for one in plan["resources"])
    price = plan["price"]
    assert (price["spot"], price["on_demand"]) == (0.0192, 0.096)
    assert (price["most_an_hour"], price["most_a_day"]) == (0.05, 1.2)
    assert "not what Azure asks" in price["source"] and price["at"].startswith("20")
    assert resources(untrained) == [] and not list(cloudtrain.home.glob("runs/*"))
    text = untrained("up", "horses", "--dry-run").out
    for part in (
        "0.0192 USD an hour",
        "0.096 USD an hour",
        "2.30 USD",
        "nothing is billed",
        "Standard_D2s_v3",
        "eastus",
    ):
        assert part in text


def test_what_a_plan_names_is_what_up_makes_and_afterwards_it_exists(untrained: Any) -> None:
    planned = untrained("up", "horses", "--dry-run", "--json").envelope["data"]["resources"]
    assert untrained("up", "horses", "--json").code == 0
    after = untrained("up", "horses", "--dry-run", "--json").envelope["data"]
    assert after["action"] == "none"
    assert [one["exists"] for one in after["resources"]] == [not one["type"].endswith("runCommands") for one in planned]
    deleted = untrained("down", "horses", "--json").envelope["data"]["deleted"]
    commands = [one for one in planned if one["by_azure"] or one["type"].endswith("runCommands")]
    assert len(deleted) == len(planned) - len(commands)


def test_a_maximum_duration_takes_a_provider_and_a_resource_more(untrained: Any) -> None:
    untrained("emulator", "reset", "--fresh", "--yes")
    limited = ("up", "horses", "--vm-image", "ubuntu-hpc", "--max-duration", "2h", "--max-cost", "5")
    planned = untrained(*limited, "--dry-run", "--json").envelope["data"]
    assert "Microsoft.DevTestLab" in planned["registers"]
    assert (planned["max_duration"], planned["max_cost"]) == (7200, 5.0)
    assert [one["name"] for one in planned["resources"]][8] == "shutdown-computevm-horses-g1"
    assert "2 h 00 min or 5 USD" in untrained(*limited, "--dry-run").out
    made = untrained(*limited)
    assert made.code == 0 and "could not be set" not in made.err
    after = untrained("up", "horses", "--dry-run", "--json").envelope["data"]["resources"]
    assert [one["exists"] for one in after if one["type"] == "Microsoft.DevTestLab/schedules"] == [True]


def test_a_dry_run_of_what_would_be_refused_shows_plan_and_reasons(untrained: Any) -> None:
    told = untrained("up", "horses", "--size", "Standard_NC64as_T4_v3", "--dry-run", "--json")
    assert told.code == 4 and codes(told) == ["SpotQuotaExceeded"]
    assert told.envelope["data"]["hardware"] == "Standard_NC64as_T4_v3: 64 vCPUs, 440 GiB, 4 GPUs"
    untrained("up", "horses", "--json")
    moved = untrained("up", "horses", "--location", "westus", "--dry-run", "--json")
    assert moved.code == 2 and codes(moved) == ["SpecChanged"]


def test_a_larger_size_is_checked_before_the_vm_is_changed(untrained: Any) -> None:
    untrained("emulator", "reset", "--fresh", "--yes")
    untrained("up", "horses", "--vm-image", "ubuntu-hpc", "--json")
    assert untrained("doctor", "horses", "--size", "Standard_D4s_v3", "--json").code == 4
    assert untrained("doctor", "horses", "--size", "Standard_D2s_v5", "--json").code == 0


# money


def test_on_a_terminal_an_up_that_costs_money_shows_its_plan_and_asks_once(cloudtrain: CommandLine) -> None:
    refused = played_azure(cloudtrain, [*PAID, "horses"], "n")
    assert refused.count("Make it? [y/N]") == 1 and "0.0192 USD an hour" in refused and "at most 2.30 USD" in refused
    assert "Nothing was made." in refused
    assert not [path for path in cloudtrain.made() if "horses" in path]
    made = played_azure(cloudtrain, [*PAID, "horses"], "y")
    assert "Make it?" in made and "horses: running" in made


PAID = ["up", "--cloud", "azure", "--image", "cloudtrain-trainer"]


def test_nothing_is_asked_of_a_rehearsal_with_yes_without_a_terminal_or_of_a_vm_that_is_there(
    billed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert billed(*PAID, "piped").code == 0
    # From here on somebody is there who would say no.
    monkeypatch.setattr("cloudtrain.cli._somebody_is_here", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n" * 9))
    assert billed(*PAID, "asked").code == 1
    for line in (["up", "horses"], [*PAID, "piped"], [*PAID, "paid", "--yes"], [*PAID, "other", "--dry-run"]):
        told = billed(*line)
        assert told.code == 0 and "Make it?" not in told.err


def played_azure(cloudtrain: CommandLine, line: list[str], answer: str) -> str:
    """What a terminal shows of `cloudtrain LINE` on a cloud that bills; answer: what is typed there."""
    command = [sys.executable, "-m", "tests.cli.untrained", *line]
    environment = cloudtrain.environment(TERM="xterm", NO_COLOR="1")
    return terminal_output(command, environment, str(cloudtrain.directory), answer.encode() + b"\n").decode()


# the login


def test_without_a_login_doctor_says_how_to_log_in(cloudtrain: CommandLine, tmp_path: Path) -> None:
    told = cloudtrain(
        "doctor", "horses", "--cloud", "azure", "--json", AZURE_TOKEN_CREDENTIALS="AzureCliCredential", PATH=""
    )
    assert told.code == 8 and told.error["code"] == "NotLoggedIn"
    assert states(told) == {"credential": "failed"}
    assert "az login" in of(told, "credential")["fix"]
    up = cloudtrain(
        "up",
        "horses",
        "--cloud",
        "azure",
        "--image",
        "a/b:1",
        "--json",
        AZURE_TOKEN_CREDENTIALS="AzureCliCredential",
        PATH="",
    )
    assert up.code == 8 and cloudtrain.made() == []


def test_a_login_with_several_subscriptions_passes_and_the_choice_is_what_is_missing(
    quick: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloudtrain.errors import InvalidSpec

    def several(*_: object) -> None:
        raise InvalidSpec("This login sees several subscriptions: A, B.", "Say --subscription.", "SubscriptionNeeded")

    monkeypatch.setattr("cloudtrain.azure.session._azure", several)
    told = quick("doctor", "horses", "--cloud", "azure", "--json")
    assert told.code == 2 and states(told) == {"credential": "passed", "subscription": "failed"}
    assert of(told, "subscription")["fix"] == "Say --subscription."


def test_doctor_names_the_credential_that_was_used(
    quick: Any, cloudtrain: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    az = tmp_path / "bin" / "az"
    az.parent.mkdir()
    token = {"accessToken": "x.y.z", "expires_on": 2**31, "subscription": "s", "tenant": "t", "tokenType": "Bearer"}
    az.write_text(f"#!/bin/sh\necho '{json.dumps(token)}'\n")
    az.chmod(0o755)
    monkeypatch.setenv("PATH", f"{az.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "dev")

    def unreachable(*_: object, **__: object) -> None:
        raise requests.exceptions.ConnectionError("no route to host")

    monkeypatch.setattr("requests.Session.request", unreachable)
    monkeypatch.setattr("cloudtrain.clock.SystemClock.sleep", lambda self, seconds: None)
    told = quick(
        "doctor", "horses", "--cloud", "azure", "--subscription", "0" * 8 + "-0000-0000-0000-" + "0" * 12, "--json"
    )
    assert of(told, "credential") == {
        "name": "credential",
        "state": "passed",
        "detail": "AzureCliCredential",
        "fix": "",
    }
    assert told.code == 8 and states(told)["subscription"] == "failed"
    assert states(told)["trainer_image"] == "failed" and "--image" in of(told, "trainer_image")["fix"]


# registration


def test_no_request_registers_a_provider_behind_the_users_back(untrained: Any, cloudtrain: CommandLine) -> None:
    from cloudtrain.azure import providers
    from cloudtrain.azure.session import open_session
    from cloudtrain.clock import SystemClock
    from cloudtrain.errors import Refused

    untrained("emulator", "reset", "--fresh", "--yes")
    with open_session("embedded", home=cloudtrain.home, clock=SystemClock()) as session:
        session.resources.resource_groups.create_or_update("g", {"location": "eastus"})
        with pytest.raises(Refused) as refused:
            session.network.network_security_groups.begin_create_or_update("g", "n", {"location": "eastus"}).result()
        assert refused.value.code == "MissingSubscriptionRegistration"
        assert providers.states(session, ["Microsoft.Network"]) == {"Microsoft.Network": "NotRegistered"}
