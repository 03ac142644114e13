"""The embedded Azure through the command line: without a run, without a trainer."""

from typing import Any

from tests.cli.conftest import CommandLine

STATUS = (
    "directory",
    "kind",
    "subscription_id",
    "spot_cores",
    "resource_groups",
    "vms",
    "storage_accounts",
    "open_operations",
    "strays",
    "faults",
)


def test_an_empty_cloud_has_no_runs_and_nothing_to_delete(quick: Any) -> None:
    told = quick("list", "--json").envelope
    assert (told["command"], told["run"], told["data"]) == ("list", None, {"runs": [], "searched": ["embedded"]})
    assert "No runs" in quick("list").out
    for _ in range(2):
        down = quick("down", "horses", "--json")
        assert down.code == 0
        assert down.envelope["data"] == {
            "run": "horses",
            "cloud": "embedded",
            "deleted": [],
            "left": [],
            "kept": [],
            "kept_images": [],
            "searched": ["embedded"],
            "pulled": None,
        }


def test_an_unknown_run_is_exit_3_and_says_where_it_looked(quick: Any) -> None:
    for verb in ("status", "logs", "stop", "restart", "simulate-eviction"):
        told = quick(verb, "ghost", "--json")
        assert (told.code, told.error["code"], told.envelope["run"]) == (3, "NoSuchRun", "ghost")
        assert "the embedded Azure" in told.error["message"]
        assert told.error["hint"]


def test_a_refused_run_leaves_no_trace(quick: Any, cloudtrain: CommandLine) -> None:
    told = quick("up", "horses", "--size", "Standard_B2s", "--json")
    assert told.code in (2, 4)
    assert "Standard_B2s" in told.error["message"]
    assert not [path for path in cloudtrain.made() if "horses" in path]
    assert quick("list", "--json").envelope["data"]["runs"] == []
    assert told.err.splitlines()[0].startswith("This is a rehearsal")
    assert "--cloud azure" in told.err


def test_an_image_that_only_azure_could_pull_is_refused(quick: Any, cloudtrain: CommandLine) -> None:
    told = quick("up", "horses", "--image", "team/trainer:1", "--json")
    assert told.code == 2 and "team/trainer:1" in told.error["message"]
    assert not [path for path in cloudtrain.made() if "horses" in path]


def test_reset_begins_anew_and_fresh_as_a_subscription_of_the_first_day(quick: Any) -> None:
    first = quick("emulator", "status", "--json").envelope
    assert first["command"] == "emulator status"
    assert tuple(first["data"]) == STATUS
    assert first["data"]["spot_cores"] == 16
    fresh = quick("emulator", "reset", "--fresh", "--yes", "--json").envelope["data"]
    assert tuple(fresh) == STATUS
    assert fresh["spot_cores"] == 3
    assert fresh["subscription_id"] != first["data"]["subscription_id"]
    assert quick("emulator", "reset", "--yes", "--json").envelope["data"]["spot_cores"] == 16


def test_a_damaged_database_is_told_and_reset_mends_it(quick: Any, cloudtrain: CommandLine) -> None:
    assert quick("list").code == 0
    database = cloudtrain.home / "emulator" / "azure.db"
    for damage in (b"", b"not a database" * 500, database.read_bytes()[:5000]):
        for name in ("azure.db-wal", "azure.db-shm"):
            database.with_name(name).unlink(missing_ok=True)
        database.write_bytes(damage)
        told = quick("list", "--json")
        assert (told.code, told.error["code"]) == (1, "DamagedStore")
        assert "cloudtrain emulator reset" in told.error["hint"]
        assert quick("emulator", "reset", "--yes", "--json").code == 0
        assert quick("list", "--json").envelope["data"]["runs"] == []


def test_only_the_user_can_read_what_is_kept(quick: Any, cloudtrain: CommandLine) -> None:
    quick("list")
    assert cloudtrain.home.stat().st_mode & 0o077 == 0


def test_quiet_leaves_only_the_result(quick: Any) -> None:
    assert quick("down", "horses", "-q").err == ""
    assert "what is left: done in" in quick("down", "horses").err
