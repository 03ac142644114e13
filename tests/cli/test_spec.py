"""From file and flags to the spec: who wins, what is completed, what is kept."""

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudtrain import config
from cloudtrain.errors import InvalidSpec
from cloudtrain.spec import RunSpec, Settings, merge_arguments, resolve

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me"


class Defaults:
    """A cloud's."""

    location = "eastus"
    size = "Standard_D2s_v3"
    vm_image = "publisher:offer:sku:latest"
    mount = "/app/Saved_Model"
    disk_gb = 64
    trainer_image: str | None = "cloudtrain-trainer"
    arguments: tuple[str, ...] = ("--dataset", "silhouettes", "--epochs", "4")


def settings(table: dict[str, object] | None = None, directory: Path = Path("/x/horses"), **flags: object) -> Settings:
    return config.settings_for_up(table or {}, flags, directory)


def test_flags_win_over_the_file_and_defaults_fill_the_rest() -> None:
    table: dict[str, object] = {"size": "Standard_D4s_v3", "location": "westeurope", "max_price": 1}
    spec = resolve(settings(table, run="mine", size="Standard_NC4as_T4_v3"), Defaults(), KEY)
    assert spec == RunSpec(
        run="mine",
        location="westeurope",
        size="Standard_NC4as_T4_v3",
        vm_image="publisher:offer:sku:latest",
        image="cloudtrain-trainer",
        mount="/app/Saved_Model",
        arguments=("--dataset", "silhouettes", "--epochs", "4"),
        max_price=1.0,
        eviction_policy="Deallocate",
        ssh_public_key=KEY,
        disk_gb=64,
    )


def test_what_is_not_said_again_stays_as_the_run_is() -> None:
    first = resolve(settings(size="Standard_D4s_v3", trainer_args=["--epochs", "9"]), Defaults(), KEY)
    assert resolve(settings(), Defaults(), KEY, first) == first
    again = resolve(settings(max_price=0.5), Defaults(), KEY, first)
    assert again == msgspec.structs.replace(first, max_price=0.5)
    other = resolve(settings(trainer_args=["--seed", "3"]), Defaults(), KEY, first)
    assert other.arguments == ("--dataset", "silhouettes", "--epochs", "4", "--seed", "3")


def test_without_any_trainer_image_the_flag_is_named() -> None:
    class Azure(Defaults):
        trainer_image = None

    with pytest.raises(InvalidSpec) as refused:
        resolve(settings(), Azure(), KEY)
    assert "--image" in refused.value.hint
    assert resolve(settings(image="me/trainer:1"), Azure(), KEY).image == "me/trainer:1"


@pytest.mark.parametrize(
    ("alias", "urn"),
    [
        ("nvidia", "nvidia:ngc_azure_17_11:ngc-base-version-25_9_1_gen2:latest"),
        ("ubuntu-hpc", "microsoft-dsvm:ubuntu-hpc:2204:latest"),
        ("microsoft-dsvm:ubuntu-hpc:2404:22.04.2026010101", "microsoft-dsvm:ubuntu-hpc:2404:22.04.2026010101"),
    ],
)
def test_a_vm_image_is_an_alias_or_a_urn(alias: str, urn: str) -> None:
    assert settings(vm_image=alias).vm_image == urn


@pytest.mark.parametrize(
    "image",
    [
        "ubuntu",
        "team/trainer:1.0",
        "localhost:5000/a/b__c:v1_2",
        "nvcr.io/nvidia/tensorflow:25.02-tf2-py3",
        "registry.example.com/trainer@sha256:" + "a" * 64,
        "Registry.example.com/trainer:Tag@sha256:" + "0" * 64,
    ],
)
def test_docker_references_are_taken(image: str) -> None:
    assert settings(image=image).image == image


@pytest.mark.parametrize("price", [-1, -1.0, 0.00001, 0.12345, 3, 99.5])
def test_prices_are_taken(price: float) -> None:
    assert settings(max_price=price).max_price == price


@pytest.mark.parametrize("run", ["a", "a1", "my-run", "a--b", "a" * 40, "g2", "x-g"])
def test_names_are_taken(run: str) -> None:
    assert settings(run=run).run == run


def test_the_spec_has_to_fit_into_tags() -> None:
    long = settings(trainer_args=["--note", "x" * 9000])
    with pytest.raises(InvalidSpec, match="7168"):
        resolve(long, Defaults(), KEY)


def test_a_key_is_read_from_its_file_beside_the_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key.pub").write_text(f"# mine\n{KEY}\n")
    assert settings({"ssh_key": "key.pub"}, tmp_path).ssh_key == KEY
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings(ssh_key="~/key.pub").ssh_key == KEY
    assert settings(ssh_key=KEY).ssh_key == KEY


@pytest.mark.parametrize(
    ("directory", "run"),
    [("horses", "horses"), ("My Project", "my-project"), ("Käse_2", "kase-2"), ("2-cats", "cats"), ("x-g3", "x")],
)
def test_a_run_is_named_after_its_directory(directory: str, run: str) -> None:
    assert config.run_from_directory(Path("/x") / directory) == run
    notes = config.name_note(run, False, Path("/x") / directory)
    assert bool(notes) == (directory != run)


@given(st.text(min_size=1).filter(lambda name: "/" not in name and "\0" not in name and name not in (".", "..")))
def test_a_directory_gives_a_valid_name_or_says_so(name: str) -> None:
    try:
        run = config.run_from_directory(Path("/x") / name)
    except InvalidSpec:
        return
    assert settings(run=run).run == run


flags = st.sampled_from(["--epochs", "--seed", "--dataset"])
argument = st.tuples(flags, st.sampled_from(["1", "2", "3"]))


@given(st.lists(argument), st.lists(argument))
def test_arguments_given_come_last_and_whole_and_take_the_place_of_defaults(
    defaults: list[tuple[str, str]], given: list[tuple[str, str]]
) -> None:
    ours, theirs = [a for pair in defaults for a in pair], [a for pair in given for a in pair]
    merged = merge_arguments(ours, theirs)
    assert list(merged[len(merged) - len(theirs) :]) == theirs
    said = {flag for flag, _ in given}
    assert list(merged[: len(merged) - len(theirs)]) == [a for pair in defaults if pair[0] not in said for a in pair]
    assert merge_arguments(ours, []) == tuple(ours)


def test_arguments_with_an_equals_sign_take_the_place_of_defaults_too() -> None:
    assert merge_arguments(["--epochs", "4", "--seed=1"], ["--epochs=9"]) == ("--seed=1", "--epochs=9")


def test_the_clouds_arguments_are_for_the_trainer_that_comes_along() -> None:
    ours = ("--dataset", "silhouettes", "--epochs", "4")
    assert resolve(settings(image="team/shell:1"), Defaults(), KEY).arguments == ()
    assert resolve(settings(image="team/shell:1", trainer_args=["--x"]), Defaults(), KEY).arguments == ("--x",)
    assert resolve(settings(), Defaults(), KEY, built=("reg/own:1", "own")).arguments == ()
    assert resolve(settings(), Defaults(), KEY, built=("reg/trainer:1", "trainer")).arguments == ours


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "cloudtrain.toml").write_bytes(b"\xef\xbb\xbfrun = 'a'\r\n")
    assert config.read(tmp_path) == {"run": "a"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cloudtrain.toml").touch(mode=0)
    with pytest.raises(InvalidSpec, match="Permission denied"):
        config.read(tmp_path)
