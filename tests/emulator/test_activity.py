"""The activity log: what somebody asked of a VM, and no eviction."""

from datetime import timedelta
from typing import Any

from azure.core.rest import HttpRequest

from tests.recovery.conftest import Rehearsal, cloudtrain, quick, rehearsal  # noqa: F401  # fixtures


def events(run: Rehearsal, ago: timedelta, about: str = "horses-g1") -> Any:
    """The answer: status and body."""
    from cloudtrain.azure.session import open_session

    with open_session("embedded", home=run.root, clock=run.clock) as session:
        vm = f"/subscriptions/{session.subscription_id}/resourceGroups/cloudtrain-horses/providers/"
        vm += f"Microsoft.Compute/virtualMachines/{about}"
        now = run.clock.now()
        span = f"eventTimestamp ge '{now - ago:%Y-%m-%dT%H:%M:%SZ}' and eventTimestamp le '{now:%Y-%m-%dT%H:%M:%SZ}'"
        path = f"/subscriptions/{session.subscription_id}/providers/Microsoft.Insights/eventtypes/management/values"
        request = HttpRequest(
            "GET", path, params={"api-version": "2015-04-01", "$filter": f"{span} and resourceUri eq '{vm}'"}
        )
        answer = session.resources.send_request(request)
        return answer.status_code, answer.json()


def test_a_deallocation_is_told_with_its_caller_and_an_eviction_is_not(rehearsal: Rehearsal) -> None:  # noqa: F811
    rehearsal.evict(0)
    rehearsal.clock.sleep(60)
    assert events(rehearsal, timedelta(hours=1)) == (200, {"value": []})
    assert rehearsal.cli("restart", "horses").code == 0
    rehearsal.stop_in_the_portal()
    rehearsal.clock.sleep(60)
    _, answer = events(rehearsal, timedelta(hours=1))
    told = [event["operationName"]["value"].split("/")[-2] for event in answer["value"]]
    assert told == ["deallocate", "start"]
    newest = answer["value"][0]
    assert newest["caller"] and newest["status"]["value"] == "Succeeded" and newest["resourceId"].endswith("horses-g1")
    assert events(rehearsal, timedelta(seconds=1))[1] == {"value": []}
    assert events(rehearsal, timedelta(hours=1), "ponies-g1")[1] == {"value": []}


def test_what_is_older_than_90_days_is_refused_in_a_shape_of_its_own(rehearsal: Rehearsal) -> None:  # noqa: F811
    status, answer = events(rehearsal, timedelta(days=91))
    assert (status, answer["Code"]) == (400, "BadRequest") and "90 days" in answer["Message"]
