"""Results as a person reads them: the cases that a journey cannot reach at will (real money, damage, odd guests)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloudtrain import render
from cloudtrain.lifecycle.money import MoneyInfo
from cloudtrain.lifecycle.results import Training, VmInfo
from cloudtrain.workflow.doctor import DoctorResult
from cloudtrain.workflow.down import DownResult, Pulled
from cloudtrain.workflow.follow import FollowResult
from cloudtrain.workflow.history import HistoryEntry, HistoryResult, Seconds
from cloudtrain.workflow.list_runs import ListResult, RunEntry
from cloudtrain.workflow.logs import LogsResult
from cloudtrain.workflow.plan import CheckInfo, Plan, PlannedResource, PriceInfo
from cloudtrain.workflow.pull import PulledFile, PullResult
from cloudtrain.workflow.restart import RestartResult
from cloudtrain.workflow.simulate_eviction import EvictionResult, TimelineEntry
from cloudtrain.workflow.status import RecoveryInfo, StatusResult
from cloudtrain.workflow.stop import StopResult
from cloudtrain.workflow.up import UpResult
from cloudtrain.workflow.watch import WatchLine, WatchResult

from .conftest import REPOSITORY

VM = VmInfo(
    name="horses-g1",
    size="Standard_D2s_v3",
    location="eastus",
    power_state="running",
    provisioning_state="Succeeded",
    priority="Spot",
    eviction_policy="Deallocate",
    max_price=-1.0,
    public_ip="20.1.2.3",
)
HALF_WAY = Training(
    under_way=True,
    step=90,
    total_steps=300,
    epoch=3,
    epochs=10,
    resumed_from_step=60,
    resumes=1,
    saved_step=60,
    metrics={"accuracy": 0.9123456, "loss": 0.25},
    examples_per_second=123.4,
    eta_seconds=65.0,
)
STATUS = StatusResult(
    run="horses",
    cloud="azure",
    resource_group="cloudtrain-horses",
    state="running",
    intent="running",
    generation=1,
    created="2026-01-01T00:00:00+00:00",
    image="team/trainer:1",
    arguments=["--name", "two words"],
    vm=VM,
    training=HALF_WAY,
    source="guest",
    note="",
    recovery=RecoveryInfo(
        watched=True,
        watcher=False,
        evictions=0,
        with_notice=0,
        resumes=0,
        steps_lost=0,
        refusals=0,
        goodput=None,
        next_attempt=None,
    ),
    money=MoneyInfo(
        spent=0.0,
        spot=0.0,
        on_demand_vms=0.0,
        disk=0.0,
        address=0.0,
        storage=0.0,
        hours=0.0,
        useful_hours=0.0,
        unpriced_hours=0.0,
        on_demand=None,
        savings=None,
        source="a list",
        at="2026-01-01T00:00:00+00:00",
    ),
)
# Fields of `data`: a promise to scripts. Adding one is fine; README has to name it.
PROMISED = {
    UpResult: "run cloud resource_group state created seen vm training image image_built image_pushed storage_account"
    " access access_until notes",
    Plan: "run cloud subscription resource_group action location size hardware vm_image image arguments"
    " disk_gb max_price max_duration max_cost eviction_policy zones other_sizes other_locations"
    " fallback bills price besides registers terms resources changes checks",
    PlannedResource: "type name exists by_azure",
    PriceInfo: "spot on_demand most_an_hour most_a_day source at spot_since",
    DoctorResult: "run cloud subscription location size checks",
    CheckInfo: "name state detail fix",
    StatusResult: "run cloud resource_group state intent generation created image arguments vm training source"
    " note recovery money",
    RecoveryInfo: "watched watcher evictions with_notice resumes steps_lost refusals goodput next_attempt",
    HistoryResult: "run cloud state events earlier_events evictions with_notice without_notice refusals resumes"
    " steps_lost seconds goodput money note",
    MoneyInfo: "spent spot on_demand_vms disk address storage hours useful_hours unpriced_hours on_demand"
    " savings source at",
    HistoryEntry: "at what place why step steps_lost notice_seconds price",
    Seconds: "starting useful redone saving waiting restarting stopped",
    WatchResult: "run cloud state action text next_look",
    WatchLine: "at run state action text",
    LogsResult: "run source bytes",
    StopResult: "run cloud state was saved_step",
    RestartResult: "run cloud state action seen training",
    EvictionResult: "run cloud state notice_seconds saved_step resumed_step steps_lost steps_lost_note timeline"
    " training",
    PullResult: "run cloud directory files fetched unchanged bytes step complete as_of refused",
    PulledFile: "path bytes",
    DownResult: "run cloud pulled deleted left kept kept_images searched",
    Pulled: "directory files bytes",
    ListResult: "runs searched",
    RunEntry: "run cloud resource_group location state size created",
    TimelineEntry: "event at_seconds",
    FollowResult: "run cloud state training",
    VmInfo: "name size location power_state provisioning_state priority eviction_policy max_price zone public_ip",
    Training: "under_way step total_steps epoch epochs resumed_from_step resumes saved_step finished failed exit_code"
    " metrics examples_per_second eta_seconds digest as_of",
}


def plain(text: str, style: str) -> str:
    return text


def shown(lines: Callable[..., list[str]], result: Any) -> str:
    return "\n".join(lines(render.cleaned(result), plain))


def changed(result: Any, **fields: object) -> Any:
    return msgspec.structs.replace(result, **fields)


@pytest.mark.parametrize(("result", "fields"), PROMISED.items(), ids=lambda part: getattr(part, "__name__", ""))
def test_the_fields_of_every_result_are_as_promised_and_in_the_readme(result: Any, fields: str) -> None:
    assert list(result.__struct_fields__) == fields.split()
    readme = (REPOSITORY / "README.md").read_text()
    missing = [field for field in fields.split() if f"`{field}`" not in readme]
    assert result is FollowResult or not missing


def test_the_readme_names_every_setting_verb_and_exit_code() -> None:
    from cloudtrain.errors import Exit
    from cloudtrain.spec import CHECKS

    readme = Path(REPOSITORY / "README.md").read_text()
    for key in CHECKS:
        assert f"| `{key}` |" in readme
    for verb in (
        "up",
        "doctor",
        "status",
        "logs",
        "pull",
        "stop",
        "restart",
        "simulate-eviction",
        "down",
        "list",
        "emulator status",
    ):
        assert f"| `{verb}" in readme
    for code in Exit:
        assert f"| {int(code)} |" in readme


def test_status_begins_with_the_state_and_tells_how_far_training_is() -> None:
    text = shown(render.status, STATUS)
    assert text.splitlines()[0] == "horses: running"
    for part in ("step 90 of 300 (30 %)", "epoch 3 of 10", "1 min 05 s to go", "1 time, last from step 60"):
        assert part in text
    assert "accuracy 0.9123" in text and "20.1.2.3" in text
    assert "--name 'two words'" in text


@pytest.mark.parametrize(
    ("fields", "bill"),
    [
        ({"cloud": "embedded"}, "nothing is billed"),
        ({}, "billed by the second"),
        ({"vm": changed(VM, power_state="deallocated")}, "disk and its public address are"),
        ({"vm": None}, "removes the rest"),
    ],
)
def test_status_says_what_costs_money(fields: dict[str, Any], bill: str) -> None:
    assert bill in shown(render.status, changed(STATUS, **fields)).splitlines()[-1]


@pytest.mark.parametrize(
    ("state", "command"),
    [
        ("running", "cloudtrain logs -f horses"),
        ("provisioning", "cloudtrain up horses"),
        ("evicted", "cloudtrain restart horses"),
        ("stopped", "cloudtrain restart horses"),
        ("finished", "cloudtrain down horses"),
        ("failed", "cloudtrain logs horses --source container"),
    ],
)
def test_every_state_has_a_next_step(state: str, command: str) -> None:
    assert command in shown(render.status, changed(STATUS, state=state))


def test_what_is_not_live_says_of_when_it_is() -> None:
    known = Training(step=60, total_steps=300, as_of="2026-01-01T00:00:00+00:00")
    text = shown(render.status, changed(STATUS, state="evicted", training=known))
    assert "2026-01-01 00:00:00 UTC (last known)" in text


def test_a_failed_training_shows_its_exit_code() -> None:
    text = shown(render.status, changed(STATUS, training=Training(failed=True, exit_code=1)))
    assert "failed (exit code 1)" in text


def test_a_guest_cannot_steer_the_terminal_through_any_text() -> None:
    evil = "\x1b[2Jx\x07\x9b31m\u202e"
    training = changed(HALF_WAY, metrics={evil: 1.0}, digest=evil, as_of=evil)
    result = changed(STATUS, note=evil, image=evil, arguments=[evil], training=training, vm=changed(VM, name=evil))
    text = shown(render.status, result)
    assert not set(text) & set("\x1b\x07\x9b\u202e")


def eviction(**fields: Any) -> EvictionResult:
    timeline = [TimelineEntry(event="notice", at_seconds=0.5), TimelineEntry(event="first new step", at_seconds=12.25)]
    base: dict[str, Any] = {
        "run": "horses",
        "cloud": "embedded",
        "state": "running",
        "notice_seconds": 30.0,
        "saved_step": 90,
        "resumed_step": 90,
        "steps_lost": 0,
        "steps_lost_note": "",
        "timeline": timeline,
        "training": None,
    }
    return EvictionResult(**(base | fields))


def test_an_eviction_ends_with_the_steps_lost() -> None:
    text = shown(render.simulate_eviction, eviction())
    assert "    0.50 s  notice" in text and "   12.25 s  first new step" in text
    assert text.splitlines()[-1] == "steps lost: 0"
    cut = eviction(notice_seconds=0.0, saved_step=80, resumed_step=80, steps_lost=7, steps_lost_note="at least")
    assert shown(render.simulate_eviction, cut).splitlines()[-1] == "steps lost: 7 (at least)"
    assert "notice        none" in shown(render.simulate_eviction, cut)


def test_steps_lost_may_be_unknown_and_an_evicted_run_can_be_brought_back() -> None:
    left = eviction(state="evicted", resumed_step=None, steps_lost=None, steps_lost_note="not brought back")
    text = shown(render.simulate_eviction, left)
    assert "steps lost: unknown (not brought back)" in text and "cloudtrain restart horses" in text


def test_down_names_what_is_left_and_what_is_kept() -> None:
    result = DownResult(
        run="horses",
        cloud="azure",
        pulled=Pulled("/here/horses", 2, 1_234_567),
        deleted=["/a"],
        left=["/b"],
        kept=["/w"],
        kept_images=["me/trainer:1"],
        searched=["azure"],
    )
    text = shown(render.down, result)
    assert "brought home 2 files (1.23 MB) to /here/horses" in text
    assert "deleted 1 resource." in text and "Still there (1):\n  /b" in text and "Kept: /w" in text
    assert "Kept: me/trainer:1" in text and "stay in their registry" in text
    assert "Nothing of the run is left" not in text
    assert "Nothing of the run is left" in shown(render.down, changed(result, left=[]))
    nothing = shown(render.down, changed(result, pulled=None, deleted=[], left=[], kept=[], kept_images=[]))
    assert "nothing to delete" in nothing and "Azure" in nothing


def test_a_list_is_a_table_with_aligned_columns() -> None:
    entry = RunEntry(
        run="a-long-name-of-a-run",
        cloud="embedded",
        resource_group="g",
        location="eastus",
        state="running",
        size="Standard_D2s_v3",
        created="2026-01-01T00:00:00+00:00",
    )
    text = shown(render.list_runs, ListResult(runs=[entry, changed(entry, run="b")], searched=["embedded"]))
    head, *rows = text.splitlines()
    assert [row.index("running") for row in rows] == [head.index("state")] * 2
    assert all("2026-01-01 00:00:00 UTC" in row for row in rows)


def test_up_without_progress_says_what_was_seen() -> None:
    result = UpResult(
        run="horses",
        cloud="azure",
        resource_group="g",
        state="running",
        created=True,
        seen="container",
        vm=VM,
        training=None,
        image="me/script:1",
        image_built=False,
        image_pushed=False,
        storage_account="cthorses",
        access="identity",
        access_until=None,
        notes=[],
    )
    assert "no step was seen" in shown(render.up, result)


@pytest.mark.parametrize(("price", "words"), [(-1.0, "up to the on-demand price"), (0.05, "at most 0.05 USD an hour")])
def test_the_price_is_told_in_words(price: float, words: str) -> None:
    assert words in shown(render.status, changed(STATUS, vm=changed(VM, max_price=price)))
